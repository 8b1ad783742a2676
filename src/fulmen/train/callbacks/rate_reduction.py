"""`ReduceOnPlateau`: lowers the learning rate when a metric no longer improves."""

from __future__ import annotations

from typing import Any

from fulmen.core.suggestions import suggesting
from fulmen.core.verbs import owns
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import learning_rate
from fulmen.train.callbacks.watched_metric import WatchedMetric


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
