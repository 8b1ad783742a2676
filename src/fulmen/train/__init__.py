"""Training: setup, steps, the loop, evaluation, events, checkpoints."""

from fulmen.train import evaluation, loop  # for their methods of the verbs
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
from fulmen.train.history import History
from fulmen.train.step import apply_gradients, differentiate

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
