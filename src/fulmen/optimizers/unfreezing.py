"""`unfreeze`: an optimizer that begins later in the run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fulmen.core.fields import static
from fulmen.core.mode import Plan
from fulmen.optimizers.optimizer import Built, Enclosing, build
from fulmen.schedules.schedule_lengths import after, run_length

__all__ = ["unfreeze"]


class Unfreeze(Enclosing):
    """See `unfreeze`."""

    at: int | float = static(default=0.5)

    def built(self, system: Any, plan: Plan) -> Built:
        start, rest = after(self.at, plan, "unfreeze")
        inside = build(self.optimizer, system, rest)
        start = start // inside.every  # in its own updates

        def rate(before: Any, after: Any) -> Any:
            begun = inside.rate(before.inner, after.inner)
            return None if begun is None else jnp.where(before.step < start, 0.0, begun)

        end = None if inside.end is None else start + inside.end
        return inside._replace(transformation=begin_at(inside.transformation, start), rate=rate, end=end)


def unfreeze(optimizer: Any, *, at: float) -> Unfreeze:
    """An optimizer that leaves its parameters as they are until some place in the run, and then begins.

    Until then its own state is as `init` made it: no moments are gathered and no steps counted; and its schedules span what
    is left of the run. Buffers, such as running statistics, move from the start. Howard and Ruder 2018, arXiv:1801.06146,
    unfreeze a network so from its head downwards:

        optimizer={"model.head": optax.adam, "model.body": fm.unfreeze(optax.adam, at=0.5)}, lr=1e-3

    Args:
        optimizer: what may be given as an optimizer; a constructor takes the `lr=` that is given beside `optimizer=`.
        at: when to begin: an int is a step, a float a fraction of the run.

    >>> fm.unfreeze(fm.optimizers.Optimizer(optax.adam, 1e-3), at=0.5)
    Unfreeze(optimizer=adam(0.001), at=0.5)
    """
    return Unfreeze(optimizer, at=run_length(at, "at"))


class BeginAtState(NamedTuple):
    """How many steps have been done, and the state of what begins later."""

    step: Any
    inner: Any


def begin_at(inner: optax.GradientTransformationExtraArgs, start: int) -> optax.GradientTransformationExtraArgs:
    """A transformation that gives zeros, and keeps its state, for the first `start` steps."""

    def init(params: Any) -> Any:
        return BeginAtState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        changes, moved = inner.update(updates, state.inner, params, **extra)
        begun = state.step >= start
        changes = jax.tree.map(lambda change: jnp.where(begun, change, jnp.zeros_like(change)), changes)
        kept = jax.tree.map(lambda new, old: jnp.where(begun, new, old), moved, state.inner)
        return changes, BeginAtState(optax.safe_increment(state.step), kept)

    return optax.GradientTransformationExtraArgs(init, update)
