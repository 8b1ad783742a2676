"""`WatchedMetric`: a metric that should improve, for callbacks that act when it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fulmen.core.verbs import due, on, restore_run_state, run_state
from fulmen.data.arrays import check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import Due, FitStart, LogReader, ValidationEnd
from fulmen.train.every_interval import Every
from fulmen.train.history import best_direction, find_metric
from fulmen.train.phases import ValidationSets

_VALIDATION = "validation/"


class WatchedMetric(LogReader):
    """A callback that looks at a metric after each evaluation, or of a training metric after each epoch.

    **Extending.** A subclass defines `after(run, improved)`, which is called each time.

    Args:
        metric: its name in the logs.
        patience: how often in a row it may fail to improve.
        min_delta: the smallest change that is an improvement.
        mode: "min" or "max"; None decides by the name, as for losses and accuracies.

    Attributes:
        best: the best value so far, or None.
        best_epoch: the number of its epoch, from 0.
        best_step: the number of steps that its state has had.
        waited: how often in a row the metric has not improved.
    """

    def __init__(self, metric: str, patience: int, min_delta: float, mode: str | None) -> None:
        name = type(self).__name__
        check_positive(f"{name}.patience", patience)
        if not min_delta >= 0:
            raise ValueError(f"{name}.min_delta must not be negative, got {min_delta!r}.")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.highest = best_direction(metric, mode, name) == "max"
        self.forget()

    def forget(self) -> None:
        """Start to count from the beginning."""
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.waited = 0

    def look(self, run: Any) -> None:
        """Compare the newest value with the best one. NaN is no improvement."""
        value = find_metric(run.logs, self.metric, type(self).__name__)
        if np.ndim(value):
            raise ValueError(
                f"{type(self).__name__}.metric must be one number, but {self.metric!r} has the shape {np.shape(value)}."
            )
        gain = math.inf if self.best is None else (value - self.best) * (1 if self.highest else -1)
        improved = not math.isnan(value) and gain > self.min_delta
        if improved:
            self.best, self.best_epoch, self.best_step, self.waited = float(value), run.epoch, run.step, 0
        else:
            self.waited += 1
        self.after(run, improved)

    def after(self, run: Any, improved: bool) -> None:
        """Act on the newest value.

        Args:
            run: the `Run`.
            improved: whether the value is the best one so far.
        """
        raise NotImplementedError


@dispatch
def due(callback: WatchedMetric):
    return Every(epochs=1)


@dispatch
def on(event: FitStart, callback: WatchedMetric, run):
    if not run.done:  # the run is not resumed
        callback.forget()


@dispatch
def on(event: ValidationEnd, callback: WatchedMetric, run):
    if callback.metric.startswith(_VALIDATION):
        callback.look(run)


@dispatch
def on(event: Due, callback: WatchedMetric, run):
    if not callback.metric.startswith(_VALIDATION):
        callback.look(run)
    elif not any(isinstance(other, ValidationSets) for other in run.callbacks):
        find_metric(run.logs, callback.metric, type(callback).__name__)  # raises: there is no validation data


@dispatch
def run_state(callback: WatchedMetric):
    names = "best", "best_epoch", "best_step", "waited"
    return {name: getattr(callback, name) for name in names}


@dispatch
def restore_run_state(callback: WatchedMetric, saved):
    vars(callback).update(saved)
