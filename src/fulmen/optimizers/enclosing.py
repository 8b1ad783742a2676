"""Optimizers that enclose another one: `plateau`, `unfreeze` and `every`; and the default of `intervals`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from fulmen.core import remake, static
from fulmen.core.mode import Plan, UnreadPlan
from fulmen.core.verbs import intervals
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers.optimizer import Built, Enclosing, build
from fulmen.schedules.schedule_lengths import after, run_length


class Plateau(Enclosing):
    """An optimizer whose steps are scaled down by `factor` when the training loss has not fallen for `patience` epochs.

    The loss is the mean over the steps of an epoch. The logged `lr` includes the scale.

    Args:
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.
        factor: factor of each reduction, between 0 and 1.
        patience: number of epochs without an improvement before a reduction.
        cooldown: number of epochs after a reduction that do not count.
        tolerance: the smallest relative improvement of the best loss.
        floor: the smallest scale.

    >>> fm.plateau(fm.optimizers.Optimizer(optax.adam, 1e-3), patience=5)
    Plateau(optimizer=adam(0.001), factor=0.1, patience=5, cooldown=0, tolerance=0.0001, floor=0.0)
    """

    factor: float = static(default=0.1, kw_only=True)
    patience: int = static(default=10, kw_only=True)
    cooldown: int = static(default=0, kw_only=True)
    tolerance: float = static(default=1e-4, kw_only=True)
    floor: float = static(default=0.0, kw_only=True)

    def built(self, system: Any, plan: Plan) -> Built:
        reduction = optax.contrib.reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.tolerance,
            cooldown=self.cooldown,
            accumulation_size=plan.steps_per_epoch or 1,
            min_scale=self.floor,
        )
        return build(self.optimizer, system, plan).followed_by(reduction, lambda state: state.scale)


plateau = Plateau


class Unfreeze(Enclosing):
    """See `unfreeze`."""

    at: int | float = static(default=0.5)

    def built(self, system: Any, plan: Plan) -> Built:
        start, rest = after(self.at, plan, "unfreeze", "at")
        inner = build(self.optimizer, system, rest)
        start = start // inner.every  # in updates of the inner optimizer

        def rate(before: Any, after: Any) -> Any:
            started = inner.rate(before.inner, after.inner)
            return None if started is None else jnp.where(before.step < start, 0.0, started)

        end = None if inner.end is None else start + inner.end
        return inner._replace(transformation=start_at(inner.transformation, start), rate=rate, end=end)


def unfreeze(optimizer: Any, *, at: float) -> Unfreeze:
    """An optimizer that leaves its parameters unchanged until a time in the run.

    Until then its state is that of `init`: moments and step counts do not change. Its schedules span the rest of the run.
    Buffers, such as running statistics, change from the start. Gradual unfreezing, from the head downwards, is by Howard and
    Ruder 2018, arXiv:1801.06146:

        optimizer={"model.head": optax.adam, "model.body": fm.unfreeze(optax.adam, at=0.5)}, lr=1e-3

    Args:
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.
        at: the start: an int is a step, a float a fraction of the run.

    >>> fm.unfreeze(fm.optimizers.Optimizer(optax.adam, 1e-3), at=0.5)
    Unfreeze(optimizer=adam(0.001), at=0.5)
    """
    return Unfreeze(optimizer, at=run_length(at, "at"))


class StartAtState(NamedTuple):
    """The number of previous steps, and the state of the inner transformation."""

    step: Any
    inner: Any


def start_at(inner: optax.GradientTransformationExtraArgs, start: int) -> optax.GradientTransformationExtraArgs:
    """A transformation that returns zeros and keeps its state in the first `start` steps."""

    def init(params: Any) -> Any:
        return StartAtState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        changes, new = inner.update(updates, state.inner, params, **extra)
        started = state.step >= start
        changes = jax.tree.map(lambda change: jnp.where(started, change, jnp.zeros_like(change)), changes)
        kept = jax.tree.map(lambda new, old: jnp.where(started, new, old), new, state.inner)
        return changes, StartAtState(optax.safe_increment(state.step), kept)

    return optax.GradientTransformationExtraArgs(init, update)


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

        optimizer={"generator": fm.optimizers.every(5, optax.adam), "critic": optax.adam}, lr=1e-4

    Args:
        n: number of steps per update, at least 1.
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.

    >>> fm.optimizers.every(5, fm.optimizers.Optimizer(optax.adam, 1e-3))
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
