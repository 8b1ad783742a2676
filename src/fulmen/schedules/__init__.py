"""Learning rates and other numbers over a run: functions of the plan, written over optax's schedules of the step."""

from fulmen.core.schedule import Schedule
from fulmen.schedules.shapes import cosine, linear, one_cycle, step_decay, warmup

__all__ = [
    "Schedule",
    "cosine",
    "linear",
    "one_cycle",
    "step_decay",
    "warmup",
]
