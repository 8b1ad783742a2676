"""Training: setup, steps, the loop, evaluation, events, checkpoints."""

# For their methods of the verbs.
from fulmen.train import compiled_step, evaluation, loop, phases, step, tune, verbs_of_state
from fulmen.train.events import (
    Due,
    EpochEnd,
    EpochStart,
    Event,
    FitEnd,
    FitStart,
    Interrupted,
    LogsRead,
    Run,
    StepEnd,
    Stopped,
    ValidationEnd,
)
from fulmen.train.every_interval import Every
from fulmen.train.folds import cross_validate
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.history import History
from fulmen.train.phases import Phase, Training, Validation

__all__ = [
    "Due",
    "EpochEnd",
    "EpochStart",
    "Event",
    "Every",
    "FitEnd",
    "FitStart",
    "History",
    "Interrupted",
    "LogsRead",
    "Phase",
    "Run",
    "StepEnd",
    "Stopped",
    "Training",
    "Validation",
    "ValidationEnd",
    "apply_gradients",
    "cross_validate",
    "differentiate",
    "tune",
]
