"""`every`: an optimizer that moves its parameters in one of so many steps; and `intervals`, by which a system says it."""

from __future__ import annotations

from typing import Any

from fulmen.core.fields import static
from fulmen.core.mode import Plan, UnreadPlan
from fulmen.core.tree import remake
from fulmen.core.verbs import intervals
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers.optimizer import Built, Enclosing, build

__all__ = ["every", "fewer"]


class Every(Enclosing):
    """See `every`."""

    n: int = static(default=1)

    def built(self, system: Any, plan: Plan) -> Built:
        inside = build(self.optimizer, system, fewer(plan, self.n))
        return inside._replace(every=self.n * inside.every)


def every(n: int, optimizer: Any) -> Every:
    """An optimizer that moves its parameters in the last of every `n` steps.

    In the other steps they rest: no gradient is computed for them, and the optimizer's own state, the buffers at the same
    place and what `after_update` would make of them stay as they are. Who moves follows from the step's number, on the host:
    there is a compiled program for each set of movers. A schedule spans the moves: in a run of 1000 steps, `every(5, …)` with
    `fm.cosine(1e-3)` comes to its end with the 200th move.

        optimizer={"generator": fm.every(5, optax.adam), "critic": optax.adam}, lr=1e-4

    Args:
        n: how many steps to a move, at least 1.
        optimizer: what may be given as an optimizer; a constructor takes the `lr=` that is given beside `optimizer=`.

    >>> fm.every(5, fm.optimizers.Optimizer(optax.adam, 1e-3))
    Every(optimizer=adam(0.001), n=5)
    """
    return Every(optimizer, n=whole(n, "every"))


@dispatch
def intervals(component: object):
    return {}


def whole(n: Any, what: str) -> int:
    """The number, if it is a whole one of at least 1."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{what}: a whole number of steps, at least 1, was expected, and {n!r} came.")
    return n


def fewer(plan: Plan, n: int) -> Plan:
    """The plan of a group that is updated every `n` steps, counted in its updates."""
    if isinstance(plan, UnreadPlan):
        return plan
    counts = {name: getattr(plan, name) for name in ("total_steps", "steps_per_epoch")}
    return remake(plan, {name: None if count is None else max(count // n, 1) for name, count in counts.items()})
