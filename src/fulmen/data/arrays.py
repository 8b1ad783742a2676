"""Arrays, and tuples, dicts and batches of them: checked once, then cut into batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.tree import children
from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.dispatching.registry import dispatch

__all__ = [
    "check_array",
    "check_arrays",
    "check_batch_size",
    "count",
    "cut",
    "cuts",
    "host_array",
    "named_arrays",
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


def named_arrays(data: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a tuple, list, dict or `Batch`, or the one array, with what they are called in errors."""
    if isinstance(data, tuple | list) and not hasattr(data, "_fields"):
        if isinstance(data, list) and data and not any(hasattr(v, "shape") for v in data):
            raise TypeError(
                "the data is a list of numbers or lists; NumPy or JAX arrays were expected: np.asarray(…, np.float32)."
            )
        names = ("x", "y", "weight") if len(data) <= 3 else [str(i) for i in range(len(data))]
        yield from zip(names, data, strict=False)
    elif isinstance(data, dict):
        for k, v in data.items():  # a part's own data may be a pair, or a dict again
            deep = isinstance(v, tuple | list | dict | Batch)
            yield from ((f"{k}.{name}", inner) for name, inner in named_arrays(v)) if deep else [(str(k), v)]
    elif isinstance(data, Batch):
        for name, value in children(data):
            if value is not None:
                yield from [(name, value)] if hasattr(value, "shape") else named_arrays(value)
    else:
        yield "x", data


def check_array(name: str, value: Any) -> None:
    """Raise for what is no array of numbers, with a row for each example, of a type that jax takes as it is."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        if isinstance(value, dict | tuple):
            inside = "dict(a=…, b=…)" if isinstance(value, dict) else "(…, …)"
            raise TypeError(
                f"{name}: a NumPy or JAX array was expected, and a {type(value).__name__} came. Several arrays for one field go in "
                f"as a batch: fm.Labeled({inside}, y), or fm.Unlabeled({inside}) without labels."
            )
        raise TypeError(
            f"{name}: a NumPy or JAX array was expected, and a {type(value).__name__} came: np.asarray(…, np.float32)."
        )
    if not isinstance(value, np.ndarray | jax.Array) and _is_foreign(value.dtype):
        kind = type(value)
        raise TypeError(
            f"{name}: a NumPy or JAX array was expected, and a {kind.__module__}.{kind.__name__} came: np.asarray({name})."
        )
    if not _is_float(value) and np.dtype(value.dtype).kind in "OSUMmV":
        raise TypeError(
            f"{name}: numbers were expected, and an array of type {value.dtype} came. "
            "Encode text, dates and objects as numbers first, such as class names by np.unique(…, return_inverse=True)."
        )
    if value.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError(
            f"{name}: float32 was expected, and float64 came, which jax would round silently. Write {name}.astype(np.float32), "
            "or switch jax_enable_x64 on."
        )
    if not value.shape:
        raise ValueError(f"{name}: an array with one row per example was expected, and a single number came.")


def _is_foreign(dtype: Any) -> bool:
    """Whether it is another library's type of numbers, which NumPy does not know."""
    try:
        np.dtype(dtype)
    except TypeError:
        return True
    return False


def check_finite(name: str, value: Any) -> None:
    """Raise for NaN and infinity."""
    if not _is_float(value):
        return
    value = np.asarray(value)
    finite = np.isfinite(value)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name}: finite numbers were expected, and {value[tuple(bad)]} is at [{', '.join(map(str, bad))}]."
        )


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def host_dtype(dtype: Any) -> Any:
    """The type that `host_array` gives arrays of a type."""
    long = dtype in (np.int64, np.uint64) and jax.dtypes.canonicalize_dtype(dtype) != dtype
    return np.dtype(np.int32) if long else dtype


def host_array(value: Any) -> Any:
    """The array on the host; integers of 64 bits as 32, once and not at every step."""
    value = np.asarray(value)
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
