"""Callbacks of a run, and the verbs for user-defined ones."""

from fulmen.core.verbs import due, on, owns, restore_run_state, run_state
from fulmen.train.callbacks.gradient_norms import GradientNorms
from fulmen.train.callbacks.logged_predictions import Predictions
from fulmen.train.callbacks.nan_guard import NaNGuard, NonFinite
from fulmen.train.callbacks.profiler import Profiler
from fulmen.train.callbacks.throughput import Throughput
from fulmen.train.callbacks.time_limit import TimeLimit
from fulmen.train.callbacks.watched_metric import EarlyStopping, ReduceOnPlateau, WatchedMetric
from fulmen.train.events import Due, Event, LogReader, LogsRead, Run, Saver
from fulmen.train.progress import Printer

__all__ = [
    "Due",
    "EarlyStopping",
    "Event",
    "GradientNorms",
    "LogReader",
    "LogsRead",
    "NaNGuard",
    "NonFinite",
    "Predictions",
    "Printer",
    "Profiler",
    "ReduceOnPlateau",
    "Run",
    "Saver",
    "Throughput",
    "TimeLimit",
    "WatchedMetric",
    "due",
    "on",
    "owns",
    "restore_run_state",
    "run_state",
]
