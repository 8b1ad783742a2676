"""A batch in parts, one after another in a compiled loop, so that a step needs the memory of one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import microbatching

from fulmen.core import Mergeable, by_path, remake
from fulmen.core.batch import batches_inside, numbered
from fulmen.core.tree import with_article


def microbatches_of(batch: Any, mode: Any) -> int:
    """The number of microbatches of a step in a mode, at most the number of examples."""
    wanted = getattr(mode, "microbatches", 1)
    return wanted if wanted == 1 else min(wanted, len(batch))


def mapped(function: Callable[[Any, Any], Any], batch: Any, mode: Any) -> Any:
    """`function(batch, mode)`, a tree of arrays with a row for each example, computed microbatch by microbatch."""
    found = [part[0] for part in _parts(function, batch, mode, microbatching.AccumulationType.CONCAT)]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *found)


def summed(function: Callable[[Any, Any], Any], batch: Any, mode: Any) -> Any:
    """The sum over the microbatches of `function(batch, mode)`, a tree of arrays and mergeable values.

    Of a mergeable value such as a learning rate, it is the newest.
    """
    zeros = lambda shapes: jax.tree.map(jnp.zeros_like, shapes)
    adding = microbatching.Accumulator(zeros, lambda old, new, _: _added(old, new), lambda total: total, lambda each: each)
    first, *rest = (part[0] for part in _parts(function, batch, mode, adding))
    for other in rest:
        first = _added(first, other)
    return first


def _added(old: Any, new: Any) -> Any:
    is_value = lambda v: isinstance(v, Mergeable)
    add = lambda a, b: b if is_value(b) and b.newest else jax.tree.map(jnp.add, a, b)
    return jax.tree.map(add, old, new, is_leaf=is_value)


def _parts(function: Callable[[Any, Any], Any], batch: Any, mode: Any, accumulator: Any) -> list[tuple[Any]]:
    """The accumulated results of the microbatches of each size: sizes differ by at most one example, so none is padded."""
    n, k = len(batch), microbatches_of(batch, mode)
    _require_rows(batch, n)
    size, more = divmod(n, k)
    everything = numbered(batch, jnp.arange(n, dtype=jnp.uint32)), jnp.arange(n)
    found = []
    for begin, end, each in ((0, more * (size + 1), size + 1), (more * (size + 1), n, size)):
        if begin < end:
            run = lambda part, rows: (function(part, remake(mode, {"microbatches": 1, "batch": rows[0]})),)
            run = jax.jit(run, inline=True)  # optax evaluates it for the shapes of the results first: it is traced once
            some = jax.tree.map(lambda v, begin=begin, end=end: jnp.asarray(v)[begin:end], everything)
            found.append(microbatching.microbatch(run, (0, 1), each, (accumulator,))(*some))
    return found


def _require_rows(batch: Any, n: int) -> None:
    """Raise unless every array of a batch has the same number of rows, and only the batch itself has weights."""
    for name, leaf in by_path(batch):
        if leaf.shape[:1] != (n,):
            raise ValueError(
                f"microbatches: every array of a batch must have one row for each of its {n} examples, got {name} of shape "
                f"{leaf.shape}; write microbatches=1."
            )


def require_one_weight(batch: Any) -> None:
    """Raise if the parts of a batch have weights that the batch does not have: their means have other denominators."""
    if batch.weight is None and any(part.weight is not None for part in batches_inside(batch)):
        raise ValueError(
            f"microbatches: the weights must be those of the whole batch, got {with_article(type(batch))} whose parts have separate "
            "weights; write microbatches=1."
        )
