"""Arrays, and tuples, lists, dicts and batches of arrays: checked once, then cut into batches."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fulmen.core import Batch
from fulmen.core.batch_checks import as_arrays, check_array, is_float, named_arrays, native
from fulmen.core.foreign_arrays import is_wide, native_type, warn_of_float64
from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.dispatching.registry import dispatch

_CHUNK = 1 << 20  # bytes gathered at once; batches are views of them, and a larger chunk would not stay in the cache


def check_arrays(data: Any) -> Any:
    """The data as NumPy arrays of types that JAX accepts; float64 becomes float32, with a warning.

    Args:
        data: an array, or a tuple, list, dict or `Batch` of arrays that share their first axis.

    Raises:
        TypeError: for anything but arrays of numbers.
        ValueError: for different lengths, no examples, NaN or infinity.
    """
    data = as_arrays(data)
    named = dict(named_arrays(data))
    if not named:
        raise ValueError("the data is empty: it has no array.")
    for name, value in named.items():
        check_array(name, value)
        if not isinstance(value, np.memmap):  # the check would read the whole file
            check_finite(name, value)
    check_lengths(named)
    mapped = lambda value: isinstance(value, np.memmap)  # read and converted batch by batch
    warn_of_float64((name, v) for name, v in named.items() if not mapped(v))
    return jax.tree.map(lambda v: v if mapped(v) else host_array(v), data)


def check_lengths(named: dict[str, Any]) -> None:
    """Raise for arrays with different numbers of rows, or without rows."""
    lengths = {name: len(value) for name, value in named.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the arrays have different lengths: {', '.join(f'{n} {k}' for n, k in lengths.items())}. One row of each is an example."
        )
    if not next(iter(lengths.values())):
        raise ValueError(f"the data is empty: {', '.join(named)} of length 0.")


def check_finite(name: str, value: Any) -> None:
    """Raise for NaN and infinity."""
    if is_float(value) and not (finite := np.isfinite(value := np.asarray(value))).all():
        index = np.argwhere(~finite)[0]
        raise ValueError(f"{name} must be finite, got {value[tuple(index)]} at [{', '.join(map(str, index))}].")


def host_dtype(dtype: Any) -> Any:
    """The type of `host_array(value)` for values of a type."""
    dtype = native_type(dtype)
    long = dtype in (np.int64, np.uint64) and jax.dtypes.canonicalize_dtype(dtype) != dtype
    return np.dtype(np.int32) if long else np.dtype(np.float32) if is_wide(dtype) else dtype


def host_array(value: Any) -> Any:
    """The array on the host as JAX reads it: in this machine's byte order, and numbers of 64 bits as 32."""
    value = native(np.asarray(value))
    if host_dtype(value.dtype) != value.dtype:
        limits = np.iinfo(np.int32)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise ValueError(f"integers must fit into 32 bits, got {value.min()} to {value.max()}.")
        return value.astype(np.int32)
    return value


def count(data: Any) -> int:
    """The number of examples."""
    return jax.tree.leaves(data)[0].shape[0]


def order(n: int, plan: Any, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch: a pure function of the plan's seed and the epoch's number."""
    return np.arange(n) if plan.seed is None else np.random.default_rng([plan.seed, epoch]).permutation(n)


def index_batches(n: int, plan: Any, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """The indices of each batch of an epoch of `n` examples, from the batch `start` on."""
    indices = order(n, plan, epoch)[: n - n % plan.batch_size if plan.drop_last else n]
    return (indices[i : i + plan.batch_size] for i in range(start * plan.batch_size, len(indices), plan.batch_size))


@dispatch
def steps_per_epoch(data: np.ndarray | tuple | list | dict | Batch, plan):
    return batch_count(count(data), plan)


def batch_count(n: int, plan: Any) -> int:
    """The number of batches in an epoch of `n` examples."""
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


def check_positive(name: str, value: Any) -> None:
    """Raise unless a value is a positive integer."""
    is_integer = hasattr(value, "__index__")
    if not is_integer or value < 1:
        whole = isinstance(value, float) and value.is_integer() and value >= 1
        write = f"; write {name}={int(value)}" if whole else ""
        raise (ValueError if is_integer else TypeError)(f"{name} must be a positive integer, got {value!r}{write}.")


def check_seed(seed: Any) -> None:
    """Raise for a seed that is not None and not an integer that JAX and NumPy accept."""
    is_integer = hasattr(seed, "__index__") and np.ndim(seed) == 0
    if seed is not None and not (is_integer and 0 <= seed < 2**63):
        kind = ValueError if is_integer else TypeError
        raise kind(f"seed must be an integer from 0 to 2**63 - 1, or None, got {seed!r}.")


def split(data: Any, fraction: float | Sequence[float] = 0.8, *, seed: int | None = 0) -> tuple[Any, ...]:
    """Split data into random parts, by default two.

    Args:
        data: an array, or a tuple, list, dict or `Batch` of arrays that share their first axis.
        fraction: the share of the first part, between 0 and 1; or the share of each part, which add up to 1.
        seed: the seed of the shuffling; None keeps the order.

    Returns:
        The parts, each of the data's structure.

    Raises:
        TypeError: for anything but numbers as fractions.
        ValueError: for fractions that do not add up to 1, and if a part would be empty.

    >>> first, second = fm.split((jnp.arange(10.0), jnp.arange(10)), 0.8, seed=0)
    >>> len(first[0]), len(second[1])
    (8, 2)
    """
    fractions = _fractions(fraction)
    data = check_arrays(data)
    n = count(data)
    cuts = [0, *(round(share * n) for share in np.cumsum(fractions[:-1])), n]
    if any(end <= begin for begin, end in itertools.pairwise(cuts)):
        raise ValueError(f"split: fraction must leave examples in every part, got {fraction} of {n} examples.")
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    parts = [order[begin:end] for begin, end in itertools.pairwise(cuts)]
    return tuple(jax.tree.map(lambda v, rows=rows: v[rows], data) for rows in parts)


def _fractions(fraction: Any) -> list[float]:
    """The share of each part."""
    several = isinstance(fraction, tuple | list)
    if not all(isinstance(share, int | float | np.number) for share in (fraction if several else [fraction])):
        hint = " Inputs and targets are one argument: fm.split((x, y), 0.8)." if hasattr(fraction, "shape") else ""
        raise TypeError(
            f"split: fraction must be a number such as 0.8, or one for each part, got {type(fraction).__name__}.{hint}"
        )
    fractions = [float(share) for share in fraction] if several else [float(fraction), 1 - float(fraction)]
    if len(fractions) < 2 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split: fractions must add up to 1, such as (0.8, 0.1, 0.1), got {fraction}.")
    return fractions
