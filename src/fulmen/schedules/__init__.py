"""Schedules: functions of the plan that return a function of the step."""

from fulmen.core import Schedule
from fulmen.schedules.shapes import cosine, linear, one_cycle, step_decay, warmup

__all__ = ["Schedule", "cosine", "linear", "one_cycle", "step_decay", "warmup"]
