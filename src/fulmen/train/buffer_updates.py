"""What a training step does to buffers, such as the statistics of a `BatchNorm`.

While a loss is differentiated, every buffer has a slot of zeros, and `record` is written so that the gradient with respect to
the slot is the sum and the count of the recorded values. The buffer's next value is their mean.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.component import Buffer, still
from fulmen.core.tree import remake


def empty_slots(buffer: Buffer) -> Any:
    """A sum and a count of zero for every array of a buffer."""
    return jax.tree.map(_empty_slot, buffer.value)


def _empty_slot(value: Any) -> tuple[jax.Array, jax.Array]:
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    # One count per number: in a stack of blocks, only some may record.
    return jnp.zeros(value.shape, dtype), jnp.zeros(value.shape)


def with_slots(buffer: Buffer, slots: Any) -> Buffer:
    """The buffer as the forward pass sees it: no gradient flows through its value, and `record` uses the slots."""
    return remake(buffer, {"value": still(buffer.value), "slot": slots})


def recorded_mean(buffer: Buffer, recorded: Any) -> Any:
    """The next value of a buffer: the mean of what was recorded, or the old value if nothing was.

    Args:
        buffer: the buffer before the step.
        recorded: the gradient with respect to its slots: the sum and the count of the recorded values.
    """
    return jax.tree.map(_mean_or_old, buffer.value, recorded)


def _mean_or_old(old: jax.Array, recorded: Any) -> jax.Array:
    total, count = recorded
    mean = total / jnp.maximum(count, 1).astype(total.dtype)
    return jnp.where(count > 0, mean.astype(old.dtype), old)
