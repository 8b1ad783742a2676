"""`OverfittingGuard`: stops a run when robust accuracy under a stronger attack collapses."""

import warnings
from typing import Any

import numpy as np

from fulmen.core import fold_name
from fulmen.core.verbs import attempt, on
from fulmen.data.arrays import check_arrays
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.train.events import EpochEnd, FitStart


class OverfittingGuard:
    """A callback that detects catastrophic overfitting: a model trained against a single-step attack becomes robust to that
    attack only (Wong, Rice and Kolter 2020, arXiv:2001.03994, section 5).

    After an epoch it runs a stronger attack on some examples. If the robust accuracy has dropped from its maximum by more than
    `drop`, it warns and stops the run; `best` is the state to use then.

    Args:
        attack: the attack, such as PGD with ten steps.
        data: some hundred examples of the training data, with labels.
        every: the number of epochs between two checks.
        drop: the largest allowed drop of the robust accuracy, between 0 and 1.
        stop: whether to stop the run; otherwise it only warns, once.

    Attributes:
        accuracy: the robust accuracy by epoch, counted from 0.
        best: the state with the highest robust accuracy.
        found: the epoch in which the drop was found, or None.

    >>> from fulmen.robust.defences import OverfittingGuard
    >>> attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.025, steps=10)
    >>> guard = OverfittingGuard(attack, (jnp.zeros((4, 64)), jnp.zeros(4, int)))
    """

    def __init__(self, attack: Attack, data: Any, *, every: int = 1, drop: float = 0.2, stop: bool = True) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(f"OverfittingGuard: attack must be an attack such as fm.PGD(region, 0.02, 10), got {attack!r}.")
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"OverfittingGuard: every must be a positive number of epochs, got {every!r}.")
        if not 0 < drop < 1:
            raise ValueError(f"OverfittingGuard: drop must be between 0 and 1, got {drop!r}.")
        self.attack, self.data, self.every, self.drop, self.stop = attack, check_arrays(data), every, drop, stop
        self.accuracy: dict[int, float] = {}
        self.best: Any = None
        self.found: int | None = None

    def robust_accuracy(self, state: Any) -> float:
        """The accuracy of a state on the examples under the attack."""
        result = attempt(self.attack, state, self.data, fold_name(state.key, "guard"))
        return 1 - float(np.mean(np.asarray(result.succeeded)))


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
            f"catastrophic overfitting: after epoch {run.epoch + 1}, {now:.1%} of the guard's examples are robust to "
            f"{guard.attack!r}, down from {before:.1%}. The attack in training is too weak, or its steps are too large; the guard's "
            "`best` is the state before the drop.",
            stacklevel=2,
        )
        if guard.stop:
            run.stop()
