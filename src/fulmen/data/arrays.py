"""Arrays, and tuples, dicts and batches of them: checked once, then cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.batch import Batch
from fulmen.dispatch import dispatch
from fulmen.tree import children
from fulmen.verbs import batches

__all__ = ["check_arrays", "count", "epoch", "split"]

_CHUNK = 64 << 20  # bytes gathered at once: shuffled rows are then cut as views, without a copy a batch


def check_arrays(data: Any) -> Any:
    """The data as NumPy arrays of types that jax takes, or an error that names the array.

    Args:
        data: an array, or a tuple, list, dict or `Batch` of arrays that share their first axis.

    Raises:
        TypeError: for what is no array, and for types that jax would not take as they are.
        ValueError: for different lengths, no examples, NaN or infinity.
    """
    named = dict(_named(data))
    if not named:
        raise ValueError("the data is empty: no array came.")
    for name, value in named.items():
        _check_array(name, value)
    lengths = {name: len(value) for name, value in named.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the arrays have different lengths: {', '.join(f'{n} {k}' for n, k in lengths.items())}. One row of each is an example."
        )
    if not next(iter(lengths.values())):
        raise ValueError(f"the data is empty: {', '.join(named)} of length 0.")
    return jax.tree.map(_host, data)


def _named(data: Any) -> Iterator[tuple[str, Any]]:
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
            yield from ((f"{k}.{name}", inner) for name, inner in _named(v)) if deep else [(str(k), v)]
    elif isinstance(data, Batch):
        for name, value in children(data):
            if value is not None:
                yield from [(name, value)] if hasattr(value, "shape") else _named(value)
    else:
        yield "x", data


def _check_array(name: str, value: Any) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name}: a NumPy or JAX array was expected, and a {type(value).__name__} came.")
    kind = np.dtype(value.dtype).kind if not jnp.issubdtype(value.dtype, jnp.floating) else "f"
    if kind in "OSUMmV":
        raise TypeError(
            f"{name}: numbers were expected, and an array of type {value.dtype} came. "
            "Encode text and objects as numbers first, such as class names by np.unique(…, return_inverse=True)."
        )
    if value.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError(
            f"{name}: float32 was expected, and float64 came, which jax would round silently. Write {name}.astype(np.float32), "
            "or switch jax_enable_x64 on."
        )
    if not value.shape:
        raise ValueError(f"{name}: an array with one row per example was expected, and a single number came.")
    if kind == "f" and not bool(np.isfinite(np.asarray(value)).all()):
        bad = np.argwhere(~np.isfinite(np.asarray(value)))[0]
        where = ", ".join(map(str, bad))
        raise ValueError(f"{name}: finite numbers were expected, and {np.asarray(value)[tuple(bad)]} is at [{where}].")


def _host(value: Any) -> Any:
    value = np.asarray(value)
    if value.dtype in (np.int64, np.uint64) and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        limits = np.iinfo(np.int32)
        if value.size and (value.min() < limits.min or value.max() > limits.max):
            raise ValueError(f"integers that fit into 32 bits were expected, and {value.min()} to {value.max()} came.")
        return value.astype(np.int32)  # once, and not at every step
    return value


def count(data: Any) -> int:
    """How many examples there are."""
    return jax.tree.leaves(data)[0].shape[0]


def epoch(data: Any, batch_size: int, seed: int | None, number: int, drop_last: bool = False) -> Iterator[Any]:
    """The batches of one epoch, as raw as the data. The order is a pure function of `seed` and `number`."""
    n = count(data)
    last = n - n % batch_size if drop_last else n
    if seed is None:
        for start in range(0, last, batch_size):
            yield jax.tree.map(lambda v, start=start: v[start : min(start + batch_size, last)], data)
        return
    order = np.random.default_rng([seed, number]).permutation(n)
    size = sum(v.nbytes for v in jax.tree.leaves(data)) // n + 1
    rows = max(_CHUNK // size // batch_size, 1) * batch_size
    structure = jax.tree.structure(data)
    for begin in range(0, last, rows):
        some = order[begin : min(begin + rows, last)]
        arrays = [v[some] for v in jax.tree.leaves(data)]
        for start in range(0, len(some), batch_size):
            yield structure.unflatten([v[start : start + batch_size] for v in arrays])


def check_batch_size(n: int, batch_size: int) -> None:
    """Raise on batches that cannot be."""
    if batch_size < 1:
        raise ValueError(f"batch_size: at least 1 was expected, and {batch_size} came.")
    if batch_size > n:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data, which has {n} examples: give batch_size={n} or less."
        )


def steps_per_epoch(n: int, batch_size: int, drop_last: bool = False) -> int:
    """How many batches an epoch has."""
    return n // batch_size if drop_last else -(-n // batch_size)


@dispatch
def batches(data, *, batch_size=32, seed=0, epochs=1, drop_last=False):
    data = check_arrays(data)
    check_batch_size(count(data), batch_size)
    return itertools.chain.from_iterable(epoch(data, batch_size, seed, e, drop_last) for e in range(epochs))


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
