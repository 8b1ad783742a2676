"""Each example's loss, as attacks compare it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.losses import per_example, total_loss
from fulmen.core.batch import inputs, unweighted
from fulmen.core.component import System
from fulmen.core.verbs import loss, losses

__all__ = ["added", "example_losses"]


def example_losses(system: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """What an attack makes large.

    Args:
        system: anything that has a loss, bound to a mode.
        batch: a batch of `n` examples.

    Returns:
        `(total, each)`: a number whose gradient at an example's input is that example's own, and `(n,)`, by which points of
        one example are compared. For systems that say `per_example` they are the sums of the entries of `losses`, where an
        entry that is one number counts once in the total and for every example in `each`; for all others the loss of each
        example by itself, as a batch of one, so that a loss that looks at the whole batch cannot couple them.
    """
    batch = unweighted(batch)
    if not per_example(system):
        each = jax.vmap(lambda one: total_loss(system, one))(jax.tree.map(lambda v: v[:, None], batch))
        each = each.astype(jnp.result_type(float))
        return each.sum(), each
    return added(
        jax.tree.leaves(losses(system, batch) if isinstance(system, System) else loss(system, batch)), system, batch
    )


def added(entries: list[Any], who: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The total of some entries, and each example's sum of them."""
    n = jax.tree.leaves(inputs(batch))[0].shape[0]
    dtype = jnp.result_type(float)
    total, each = jnp.zeros((), dtype), jnp.zeros(n, dtype)
    for entry in map(jnp.asarray, entries):
        if entry.shape not in ((), (n,)):
            raise ValueError(
                f"an entry of the losses of {type(who).__name__} has shape {entry.shape}; a number or one per example, "
                f"({n},), was expected."
            )
        total, each = total + entry.astype(dtype).sum(), each + jnp.broadcast_to(entry.astype(dtype), (n,))
    return total, each
