"""`WatchedMetric`, a metric that should improve, and what is done when it does not: `EarlyStopping` and `ReduceOnPlateau`."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from fulmen.core.suggestions import suggesting
from fulmen.core.verbs import due, on, owns, restore_run_state, run_state
from fulmen.data.arrays import check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.optimizers import learning_rate
from fulmen.train.checkpoints import restore
from fulmen.train.checkpoints.saved_arrays import DamagedFileError
from fulmen.train.events import Due, FitEnd, FitStart, LogReader, ValidationEnd
from fulmen.train.every_interval import Every
from fulmen.train.history import best_direction, find_metric
from fulmen.train.phases import ValidationSets

_VALIDATION = "validation/"
_SAVED = ("best", "best_epoch", "best_step", "waited")


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

    def start(self, run: Any) -> None:
        """Prepare for a run. A resumed one continues to count."""
        if self.metric.startswith(_VALIDATION) and not any(isinstance(other, ValidationSets) for other in run.callbacks):
            raise ValueError(
                f"{type(self).__name__}: {self.metric!r} is a metric of the validation, and the run has no validation data; write "
                "fm.fit(…, validation=…)."
            )
        if not run.done:
            self.forget()

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
        """Act on the newest value, which has `improved` if it is the best one so far."""
        raise NotImplementedError


@dispatch
def due(callback: WatchedMetric):
    return Every(epochs=1)


@dispatch
def on(event: FitStart, callback: WatchedMetric, run):
    callback.start(run)


@dispatch
def on(event: ValidationEnd, callback: WatchedMetric, run):
    if callback.metric.startswith(_VALIDATION):
        callback.look(run)


@dispatch
def on(event: Due, callback: WatchedMetric, run):
    if not callback.metric.startswith(_VALIDATION):
        callback.look(run)


@dispatch
def run_state(callback: WatchedMetric):
    return {name: getattr(callback, name) for name in _SAVED}


@dispatch
def restore_run_state(callback: WatchedMetric, saved):
    vars(callback).update({name: saved[name] for name in _SAVED})


class EarlyStopping(WatchedMetric):
    """A callback that ends the run when a metric has not improved for some time.

    It looks at a `validation/…` metric after each evaluation, and at a training metric after each epoch. A resumed run continues
    to count; a run that this callback has ended is complete, and resuming it trains nothing.

    Args:
        metric: its name in the logs, such as `"validation/accuracy"`.
        patience: the run ends when the metric has failed to improve so often in a row, a positive integer.
        min_delta: the smallest change that is an improvement, at least 0.
        mode: "min" or "max", what is better. None decides by the name: lower losses and errors, higher accuracies.
        restore_best: whether `fit` returns the state with the best value instead of the last one. That state is copied, and kept on
            the device. A `Checkpoint` keeps it too, for a run that is killed, if it saves when the metric is measured: after
            epochs it always does; with `validate_every=fm.Every(steps=n)` give it the same `every`.

    Attributes:
        best_state: the state with the best value, with `restore_best`; and those of `WatchedMetric`.

    Raises:
        ValueError: if neither the name nor `mode` tells what is better.
            And at the start of a run without validation data, for a metric of the validation.
        KeyError: during the run, after the first epoch or evaluation, for a metric that does not exist.

    >>> stopping = fm.EarlyStopping("loss", patience=1, min_delta=1e9)
    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> system = fm.Classifier(fm.models.Dense(4, 3))
    >>> options = dict(optimizer=optax.sgd, lr=0.1, epochs=9, callbacks=[stopping], progress=False)
    >>> state, history = fm.fit(system, data, **options)
    >>> len(history["loss"]), stopping.best_epoch
    (2, 0)
    """

    @suggesting
    def __init__(
        self,
        metric: str = "validation/loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str | None = None,
        restore_best: bool = False,
    ) -> None:
        super().__init__(metric, patience, min_delta, mode)
        self.restore_best = restore_best
        self.best_state: Any = None

    def start(self, run: Any) -> None:
        super().start(run)
        self.best_state = None
        self.stop_if_due(run)
        if self.restore_best and self.best_step is not None:
            run.best_step = self.best_step
            if run.step == self.best_step:
                self.best_state = run.state
            elif run.resumed is not None:
                with contextlib.suppress(FileNotFoundError, DamagedFileError):  # the end of the run warns
                    self.best_state = restore(run.resumed, run.arrays(), self.best_step)

    def after(self, run: Any, improved: bool) -> None:
        if improved and self.restore_best:
            self.best_state, run.best_step = run.state, run.step
        self.stop_if_due(run)

    def stop_if_due(self, run: Any) -> None:
        """End the run if the patience is exhausted; this callback remembers it, so the run is complete."""
        if self.waited >= self.patience:
            run.stop()
            run.complete = True


@dispatch
def owns(callback: EarlyStopping):
    return ("stopping",)


@dispatch
def on(event: FitEnd, callback: EarlyStopping, run):
    if not callback.restore_best or not callback.waited:
        return
    if callback.best_epoch is None:
        warn(f"EarlyStopping: {callback.metric!r} was NaN each time, never a finite number, so the last state is returned.")
    elif callback.best_state is None:
        warn(
            f"EarlyStopping: the best state, of epoch {callback.best_epoch + 1}, is in no checkpoint from which this run was "
            "resumed, so the last state is returned. fm.Checkpoint(directory) in `callbacks` keeps it if it saves when the metric is "
            "measured: with validate_every=fm.Every(steps=n), write every=fm.Every(steps=n) there too."
        )
    else:
        run.result, callback.best_state = callback.best_state, None


class ReduceOnPlateau(WatchedMetric):
    """A callback that lowers the learning rate when a metric has not improved for some time.

    `fm.plateau` does the same by the training loss, within the compiled step; this callback can watch the validation.

    Args:
        metric: its name in the logs.
        factor: the factor of each reduction, between 0 and 1.
        patience: the rate is lowered when the metric has failed to improve so often in a row, a positive integer.
        min_delta: the smallest change that is an improvement, at least 0.
        mode: "min" or "max", what is better. None decides by the name.
        floor: the smallest learning rate.

    Raises:
        ValueError: in the run, for an optimizer without one learning rate as data, such as one with a schedule.

    >>> fm.callbacks.ReduceOnPlateau("validation/accuracy", factor=0.5).highest
    True
    """

    @suggesting
    def __init__(
        self,
        metric: str = "validation/loss",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str | None = None,
        floor: float = 0.0,
    ) -> None:
        super().__init__(metric, patience, min_delta, mode)
        if not 0 < factor < 1:
            raise ValueError(f"ReduceOnPlateau.factor must be between 0 and 1, got {factor!r}.")
        self.factor, self.floor = factor, floor

    def after(self, run: Any, improved: bool) -> None:
        if self.waited < self.patience:
            return
        self.waited, rate = 0, learning_rate(run.state.optimizer)
        if not isinstance(rate, float | int) and getattr(rate, "shape", None) != ():
            raise ValueError(
                f"ReduceOnPlateau: the optimizer must have one constant learning rate, got {rate!r}; write optimizer=optax.adam, lr=1e-3."
            )
        if rate > self.floor:
            run.learning_rate = max(rate * self.factor, self.floor)


@dispatch
def owns(callback: ReduceOnPlateau):
    return ("learning_rate",)
