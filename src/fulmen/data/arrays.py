"""Arrays, and tuples, dicts and batches of them: checked once, then cut into batches."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.border import check_array, is_float, named_arrays, native
from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.dispatching.registry import dispatch

__all__ = [
    "check_arrays",
    "check_batch_size",
    "count",
    "cut",
    "cuts",
    "host_array",
    "order",
    "split",
]

_CHUNK = 1 << 20  # bytes gathered at once, of which batches are views; more would have left the cache when they are used


def check_arrays(data: Any) -> Any:
    """The data as NumPy arrays of types that jax takes, or an error that names the array.

    Args:
        data: an array, or a tuple, list, dict or `Batch` of arrays that share their first axis.

    Raises:
        TypeError: for what is no array, and for types that jax would not take as they are.
        ValueError: for different lengths, no examples, NaN or infinity.
    """
    named = dict(named_arrays(data))
    if not named:
        raise ValueError("the data is empty: no array came.")
    for name, value in named.items():
        check_array(name, value)
        if not isinstance(value, np.memmap):  # of which all would be read
            check_finite(name, value)
    check_lengths(named)
    return jax.tree.map(lambda v: v if isinstance(v, np.memmap) else host_array(v), data)


def check_lengths(named: dict[str, Any]) -> None:
    """Raise for arrays that do not have the same number of rows, or none."""
    lengths = {name: len(value) for name, value in named.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the arrays have different lengths: {', '.join(f'{n} {k}' for n, k in lengths.items())}. One row of each is an example."
        )
    if not next(iter(lengths.values())):
        raise ValueError(f"the data is empty: {', '.join(named)} of length 0.")


def check_finite(name: str, value: Any) -> None:
    """Raise for NaN and infinity."""
    if not is_float(value):
        return
    value = np.asarray(value)
    finite = np.isfinite(value)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name}: finite numbers were expected, and {value[tuple(bad)]} is at [{', '.join(map(str, bad))}]."
        )


def host_dtype(dtype: Any) -> Any:
    """The type that `host_array` gives arrays of a type."""
    dtype = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype  # a random key's type has no byte order
    long = dtype in (np.int64, np.uint64) and jax.dtypes.canonicalize_dtype(dtype) != dtype
    return np.dtype(np.int32) if long else dtype


def host_array(value: Any) -> Any:
    """The array on the host as JAX reads it: in this machine's byte order, and integers of 64 bits as 32."""
    value = native(np.asarray(value))
    if host_dtype(value.dtype) != value.dtype:
        limits = np.iinfo(np.int32)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise ValueError(f"integers that fit into 32 bits were expected, and {value.min()} to {value.max()} came.")
        return value.astype(np.int32)
    return value


def count(data: Any) -> int:
    """How many examples there are."""
    return jax.tree.leaves(data)[0].shape[0]


def order(n: int, plan: Any, epoch: int) -> np.ndarray:
    """In which order an epoch has the examples: a pure function of the plan's seed and the epoch's number."""
    return np.arange(n) if plan.seed is None else np.random.default_rng([plan.seed, epoch]).permutation(n)


@dispatch
def steps_per_epoch(data: np.ndarray | tuple | list | dict | Batch, plan):
    return cuts(count(data), plan)


def cuts(n: int, plan: Any) -> int:
    """How many batches an epoch of `n` examples is cut into."""
    return n // plan.batch_size if plan.drop_last else -(-n // plan.batch_size)


def cut(data: np.ndarray | tuple | list | dict | Batch, plan, epoch, start=0) -> Generator[Any, None, None]:
    """The batches of one epoch of arrays."""
    n, size = count(data), plan.batch_size
    last = n - n % size if plan.drop_last else n
    if plan.seed is None:
        for begin in range(start * size, last, size):
            yield jax.tree.map(lambda v, begin=begin: v[begin : min(begin + size, last)], data)
        return
    chosen = order(n, plan, epoch)[start * size : last]
    width = sum(v.nbytes for v in jax.tree.leaves(data)) // n + 1
    rows = max(_CHUNK // width // size, 1) * size
    structure = jax.tree.structure(data)
    for begin in range(0, len(chosen), rows):
        some = chosen[begin : begin + rows]
        arrays = [v[some] for v in jax.tree.leaves(data)]
        for first in range(0, len(some), size):
            yield structure.unflatten([v[first : first + size] for v in arrays])


batches.dispatch(cut)


def check_batch_size(n: int, batch_size: int) -> None:
    """Raise on batches that cannot be."""
    if batch_size < 1:
        raise ValueError(f"batch_size: at least 1 was expected, and {batch_size} came.")
    if batch_size > n:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data, which has {n} examples: give batch_size={n} or less."
        )


def split(data: Any, fraction: float = 0.8, *, seed: int | None = 0) -> tuple[Any, Any]:
    """The data in two, at random.

    Args:
        data: an array, or a tuple, list, dict or `Batch` of arrays that share their first axis.
        fraction: how much goes into the first, between 0 and 1.
        seed: of the shuffling; None keeps the order.

    Returns:
        Two of what came.

    >>> first, second = fm.split((jnp.arange(10.0), jnp.arange(10)), 0.8, seed=0)
    >>> len(first[0]), len(second[1])
    (8, 2)
    """
    data = check_arrays(data)
    n = count(data)
    cut = round(fraction * n)
    if not 0 < cut < n:
        raise ValueError(f"split: a fraction that leaves examples on both sides was expected, and {fraction} of {n} came.")
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    return jax.tree.map(lambda v: v[order[:cut]], data), jax.tree.map(lambda v: v[order[cut:]], data)
