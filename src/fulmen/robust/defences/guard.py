"""`OverfittingGuard`: ends a run when robustness against a stronger attack breaks down."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from fulmen.core.component import fold_name
from fulmen.core.verbs import attempt, on
from fulmen.data.arrays import check_arrays
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.train.events import EpochEnd, FitStart

__all__ = ["OverfittingGuard"]


class OverfittingGuard:
    """A callback that looks out for catastrophic overfitting: training against an attack of one step, after which a model
    withstands that attack and no other (Wong, Rice and Kolter 2020, arXiv:2001.03994, section 5).

    After an epoch it runs a stronger attack on some examples, and if the share that withstands it has dropped from the best
    so far by more than `drop`, it warns and ends the run. `best` is then the state to go on with.

    Args:
        attack: the attack, such as PGD with ten steps.
        data: the examples, some hundred of the training data, with labels.
        every: after how many epochs it looks.
        drop: how much less than the best so far is too little.
        stop: whether the run is ended; otherwise it only warns, once.

    Attributes:
        accuracy: the shares so far, from the epoch's number to the share.
        best: the state with the highest share.
        found: the epoch in which the drop was seen, or None.

    >>> from fulmen.robust.defences import OverfittingGuard
    >>> attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.025, steps=10)
    >>> guard = OverfittingGuard(attack, (jnp.zeros((4, 64)), jnp.zeros(4, int)))
    """

    def __init__(self, attack: Attack, data: Any, *, every: int = 1, drop: float = 0.2, stop: bool = True) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(f"OverfittingGuard, attack: such as fm.PGD(region, 0.02, 10) was expected, and {attack!r} came.")
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                f"OverfittingGuard, every: a whole number of epochs of at least 1 was expected, and {every!r} came."
            )
        if not (math.isfinite(drop) and 0 < drop < 1):
            raise ValueError(f"OverfittingGuard, drop: a share between 0 and 1 was expected, and {drop!r} came.")
        self.attack, self.data, self.every, self.drop, self.stop = attack, check_arrays(data), every, drop, stop
        self.accuracy: dict[int, float] = {}
        self.best: Any = None
        self.found: int | None = None

    def robust_accuracy(self, state: Any) -> float:
        """The share of the examples that withstand the attack."""
        walk = attempt(self.attack, state, self.data, fold_name(state.key, "guard"))
        return 1 - float(np.mean(np.asarray(walk.succeeded)))


@dispatch
def on(event: FitStart, guard: OverfittingGuard, run):
    guard.accuracy, guard.best, guard.found = {}, None, None


@dispatch
def on(event: EpochEnd, guard: OverfittingGuard, run):
    if (run.epoch + 1) % guard.every:
        return
    state = run.state
    now, before = guard.robust_accuracy(state), max(guard.accuracy.values(), default=0.0)
    guard.accuracy[run.epoch] = now
    if guard.best is None or now > before:
        guard.best = state
    if guard.found is None and before - now > guard.drop:
        guard.found = run.epoch
        warnings.warn(
            f"catastrophic overfitting: after epoch {run.epoch + 1}, {now:.1%} of the guard's examples withstand {guard.attack!r}, "
            f"and {before:.1%} did. The attack in training is too weak, or its steps are too large; the guard's `best` has the state "
            "before.",
            stacklevel=2,
        )
        if guard.stop:
            run.stop()
