"""`unfreeze`: an optimizer that starts later in the run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fulmen.core import Plan, static
from fulmen.optimizers.optimizer import Built, Enclosing, build
from fulmen.schedules.schedule_lengths import after, run_length


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
