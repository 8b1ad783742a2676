"""`EarlyStopping`: ends a run when a metric no longer improves."""

from __future__ import annotations

from typing import Any

from fulmen.core.suggestions import suggesting
from fulmen.core.verbs import on, owns
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.callbacks.watched_metric import WatchedMetric
from fulmen.train.events import FitEnd


class EarlyStopping(WatchedMetric):
    """A callback that ends the run when a metric has not improved for some time.

    It looks at a `validation/…` metric after each evaluation, and at a training metric after each epoch. A resumed run continues
    to count.

    Args:
        metric: its name in the logs, such as `"validation/accuracy"`.
        patience: the run ends when the metric has failed to improve so often in a row, a positive integer.
        min_delta: the smallest change that is an improvement, at least 0.
        mode: "min" or "max", what is better. None decides by the name: lower losses and errors, higher accuracies.
        restore_best: whether the run returns the state with the best value instead of the last one. That state is copied, and kept
            on the device.

    Attributes:
        best: the best value so far, or None.
        best_epoch: the number of its epoch, from 0.
        best_state: the state with the best value, with `restore_best`.
        waited: how often in a row the metric has not improved.

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
            self.best_state = run.state
        if self.waited >= self.patience:
            run.stop()


@dispatch
def owns(callback: EarlyStopping):
    return ("stopping",)


@dispatch
def on(event: FitEnd, callback: EarlyStopping, run):
    if not callback.restore_best or not callback.waited:
        return
    if callback.best_state is None:
        warn(
            f"EarlyStopping: the best state, of epoch {(callback.best_epoch or 0) + 1}, is older than the checkpoint that this run was "
            'resumed from, so the last state is returned. fm.restore(directory, like=state, step="best") reads a checkpoint of it, if '
            "fm.Checkpoint(…, keep=fm.Best(metric)) kept one."
        )
    else:
        run.state, callback.best_state = callback.best_state, None
