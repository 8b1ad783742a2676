"""Training: setup, steps, the loop, evaluation, events, checkpoints."""

# For their methods of the verbs.
from fulmen.train import compiled_step, evaluation, loop, phases, step, step_generator, tune, verbs_of_state
from fulmen.train.checkpoints import Best, Checkpoint, Latest, OrbaxStore, load, restore, save
from fulmen.train.events import (
    Due,
    EpochEnd,
    EpochStart,
    Event,
    FitEnd,
    FitStart,
    Interrupted,
    Logs,
    LogsRead,
    Run,
    StepEnd,
    Stopped,
    ValidationEnd,
)
from fulmen.train.every_interval import Every
from fulmen.train.folds import CrossValidation, cross_validate
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.history import History
from fulmen.train.phases import Phase, Training, Validation

__all__ = [
    "Best",
    "Checkpoint",
    "CrossValidation",
    "Due",
    "EpochEnd",
    "EpochStart",
    "Event",
    "Every",
    "FitEnd",
    "FitStart",
    "History",
    "Interrupted",
    "Latest",
    "Logs",
    "LogsRead",
    "OrbaxStore",
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
    "load",
    "restore",
    "save",
    "tune",
]
