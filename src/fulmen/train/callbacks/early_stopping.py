"""`EarlyStopping`: ends a run when a metric no longer improves."""

from __future__ import annotations

from typing import Any

from fulmen.core.suggestions import suggesting
from fulmen.core.verbs import on, owns
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.callbacks.watched_metric import WatchedMetric
from fulmen.train.checkpoints import state_at
from fulmen.train.events import FitEnd, FitStart


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
def on(event: FitStart, callback: EarlyStopping, run):
    callback.best_state = None
    if not run.done:  # the run is not resumed
        callback.forget()
        return
    callback.stop_if_due(run)
    if callback.restore_best and callback.best_step is not None:
        run.best_step = callback.best_step
        if run.step == callback.best_step:
            callback.best_state = run.state
        elif run.resumed is not None:
            callback.best_state = state_at(run.resumed, callback.best_step, run.arrays())


@dispatch
def on(event: FitEnd, callback: EarlyStopping, run):
    if not callback.restore_best or not callback.waited:
        return
    if callback.best_state is None:
        warn(
            f"EarlyStopping: the best state, of epoch {(callback.best_epoch or 0) + 1}, is in no checkpoint from which this run was "
            "resumed, so the last state is returned. fm.Checkpoint(directory) in `callbacks` keeps it if it saves when the metric is "
            "measured: with validate_every=fm.Every(steps=n), write every=fm.Every(steps=n) there too."
        )
    else:
        run.result, callback.best_state = callback.best_state, None
