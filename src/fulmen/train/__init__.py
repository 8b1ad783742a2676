"""Training: setup, steps, the loop, evaluation, events, checkpoints."""

from fulmen.train import compiled_step, evaluation, loop, step, verbs_of_state  # for their methods of the verbs
from fulmen.train.checkpoint import load, save
from fulmen.train.events import (
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
from fulmen.train.folds import CrossValidation, cross_validate
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.history import History

__all__ = [
    "CrossValidation",
    "EpochEnd",
    "EpochStart",
    "Event",
    "FitEnd",
    "FitStart",
    "History",
    "Interrupted",
    "Logs",
    "LogsRead",
    "Run",
    "StepEnd",
    "ValidationEnd",
    "apply_gradients",
    "cross_validate",
    "differentiate",
    "load",
    "save",
]
