"""What of a batch an attack changes, and what each example's loss is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.losses import per_example, total_loss
from fulmen.core.batch import Attacked, PartBatches
from fulmen.core.component import System
from fulmen.core.tree import remake
from fulmen.core.verbs import loss, losses

__all__ = ["added", "example_losses", "index", "inputs", "unweighted", "with_inputs", "with_labels"]


def inputs(batch: Any) -> Any:
    """What is attacked: the batch's `attackable` fields, and where parts have batches of their own, theirs too."""
    if isinstance(batch, Attacked):
        return inputs(batch.batch)
    if isinstance(batch, PartBatches):
        whole = {} if batch.batch is None else {"": inputs(batch.batch)}
        return {**whole, **{name: inputs(part) for name, part in batch.parts.items()}}
    names = type(batch).attackable
    found = {name: getattr(batch, name, None) for name in names}
    missing = [name for name, value in found.items() if value is None]
    if missing or not names:
        raise TypeError(
            f"batch: one with an `{missing[0] if missing else 'x'}`, which the attack changes, was expected, and {batch!r} came. "
            "A batch type says which of its fields may be attacked: `attackable: ClassVar = ('image', 'text')`."
        )
    return found[names[0]] if len(names) == 1 else found


def with_inputs(batch: Any, x: Any) -> Any:
    """The batch with other inputs, of the structure that `inputs` gives."""
    if isinstance(batch, Attacked):
        return Attacked(with_inputs(batch.batch, x), batch.clean)
    if isinstance(batch, PartBatches):
        parts = {name: with_inputs(part, x[name]) for name, part in batch.parts.items()}
        return remake(batch, {"batch": batch.batch and with_inputs(batch.batch, x[""]), "parts": parts})
    names = type(batch).attackable
    return remake(batch, {names[0]: x} if len(names) == 1 else x)


def with_labels(batch: Any, y: Any) -> Any:
    """The batch with other labels."""
    if isinstance(batch, Attacked):
        return Attacked(with_labels(batch.batch, y), batch.clean)
    if isinstance(batch, PartBatches):
        parts = {name: with_labels(part, y) for name, part in batch.parts.items()}
        return remake(batch, {"batch": batch.batch and with_labels(batch.batch, y), "parts": parts})
    return remake(batch, {"y": y})


def index(batch: Any) -> jax.Array:
    """By which number each example draws: its `index`, or else its place in the batch."""
    while isinstance(batch, Attacked):
        batch = batch.batch
    n = jax.tree.leaves(inputs(batch))[0].shape[0]
    return jnp.arange(n, dtype=jnp.uint32) if batch.index is None else jnp.asarray(batch.index).astype(jnp.uint32)


def unweighted(batch: Any) -> Any:
    """The batch with every example counting 1: how much one counts is nothing to its attack."""
    changes: dict[str, Any] = {} if batch.weight is None else {"weight": jnp.ones_like(batch.weight)}
    if isinstance(batch, Attacked | PartBatches):
        changes["batch"] = batch.batch and unweighted(batch.batch)
    if isinstance(batch, PartBatches):
        changes["parts"] = {name: unweighted(part) for name, part in batch.parts.items()}
    return remake(batch, changes)


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
