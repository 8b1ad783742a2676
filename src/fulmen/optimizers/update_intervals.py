"""`every`: an optimizer that updates its parameters in one of n steps; and the default of `intervals`."""

from typing import Any

from fulmen.core import remake, static
from fulmen.core.mode import Plan, UnreadPlan
from fulmen.core.verbs import intervals
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers.optimizer import Built, Enclosing, build


class Every(Enclosing):
    """See `every`."""

    n: int = static(default=1)

    def built(self, system: Any, plan: Plan) -> Built:
        inner = build(self.optimizer, system, plan_of_updates(plan, self.n))
        return inner._replace(every=self.n * inner.every)


def every(n: int, optimizer: Any) -> Every:
    """An optimizer that updates its parameters in the last of every `n` steps.

    In the other steps no gradient is computed for them, and they, the optimizer's state and the buffers at the same path do
    not change, not by `after_update` either. Each set of updated parameters has a compiled program, chosen on the host by the
    number of the step. A schedule counts updates: in a run of 1000 steps, `every(5, …)` with `fm.cosine(1e-3)` ends with the
    200th update.

        optimizer={"generator": fm.every(5, optax.adam), "critic": optax.adam}, lr=1e-4

    Args:
        n: number of steps per update, at least 1.
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.

    >>> fm.every(5, fm.optimizers.Optimizer(optax.adam, 1e-3))
    Every(optimizer=adam(0.001), n=5)
    """
    return Every(optimizer, n=interval(n, "every: n"))


@dispatch
def intervals(component: object):
    return {}


def interval(n: Any, what: str) -> int:
    """`n`, if it is a positive integer."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{what} must be a positive integer, the number of steps per update, got {n!r}.")
    return n


def plan_of_updates(plan: Plan, n: int) -> Plan:
    """The plan of a group that is updated every `n` steps, in updates instead of steps."""
    if isinstance(plan, UnreadPlan):
        return plan
    counts = {name: getattr(plan, name) for name in ("total_steps", "steps_per_epoch")}
    return remake(plan, {name: None if count is None else max(count // n, 1) for name, count in counts.items()})
