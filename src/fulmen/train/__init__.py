"""Training: setup, steps, the loop, evaluation, events, checkpoints."""

from fulmen.train import compiled_step, evaluation, loop, step, verbs_of_state  # for their methods of the verbs
from fulmen.train.checkpoint import load, save
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
    ValidationEnd,
)
from fulmen.train.every_interval import Every
from fulmen.train.folds import CrossValidation, cross_validate
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.history import History
from fulmen.train.phases import Phase, Training

__all__ = [
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
    "Logs",
    "LogsRead",
    "Phase",
    "Run",
    "StepEnd",
    "Training",
    "ValidationEnd",
    "apply_gradients",
    "cross_validate",
    "differentiate",
    "load",
    "save",
]
