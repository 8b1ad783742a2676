"""Checks and conversions of data that all verbs share, before JAX receives it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.batch import Batch, PartBatches
from fulmen.core.component import Component
from fulmen.core.foreign_arrays import (
    as_array,
    is_foreign_array,
    is_wide,
    native_type,
    require_numbers,
    single,
    warn_of_float64,
)
from fulmen.core.prepared_batch import prepared
from fulmen.core.tree import Tree, data_fields
from fulmen.core.verbs import as_batch
from fulmen.dispatching.registry import dispatch

# Most batches have only these types, and need no further check.
_PLAIN = frozenset({np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)})
_PLAIN |= frozenset(map(np.dtype, ("bool", "float16", "float32")))
_ARRAYS = (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)
_NUMBERS = (*_ARRAYS, int, float, complex)


def checked_batch(data: Any) -> Any:
    """One batch of data, or raw data, in a form that JAX accepts, or an error that names the array.

    Returns:
        The data with NumPy arrays for other libraries' arrays, in native byte order, and float32 for float64, with a warning; the
        same object if nothing was to be converted.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for negative or NaN weights on the host.
    """
    leaves, structure = jax.tree.flatten(data)
    if not all(isinstance(leaf, jax.Array) or (type(leaf) is np.ndarray and leaf.dtype in _PLAIN) for leaf in leaves):
        data = _converted(data, structure)
    if isinstance(data, Batch):
        for part in data.parts.values() if isinstance(data, PartBatches) else (data,):
            if isinstance(part.weight, np.ndarray):  # reading others waits for the device
                check_weight(part.weight)
    return data


@dispatch
def prepared(batch: object, component):
    made = as_batch(component, batch)
    # A user's method of `as_batch` may return another type, which is not checked.
    return checked_batch(made) if isinstance(made, Batch) else made


@dispatch
def prepared(batch: Component, component):  # `as_batch` refuses it
    return as_batch(component, batch)


@dispatch
def prepared(batch: Tree, component):
    return batch


@dispatch
def prepared(batch: Batch, component):
    return checked_batch(batch)


def _converted(data: Any, structure: Any) -> Any:
    data = as_arrays(data)
    leaves = jax.tree.leaves(data)
    if not all(isinstance(leaf, _NUMBERS) for leaf in leaves):
        for name, value in named_arrays(data):
            check_array(name, value)
    found = jax.tree_util.tree_flatten_with_path(data)[0]
    arrays = [(leaf_name(data, path), leaf) for path, leaf in found if isinstance(leaf, np.ndarray) and leaf.shape]
    for name, array in arrays:
        check_array(name, array)
    warn_of_float64(arrays)
    return structure.unflatten([native(leaf) for leaf in leaves])


def as_arrays(data: Any) -> Any:
    """Raw data, or a batch, with NumPy arrays for the arrays of other libraries."""
    found, structure = jax.tree_util.tree_flatten_with_path(data, is_leaf=_is_list_of_values)
    if not any(is_foreign_array(value) for _, value in found):
        return data
    return structure.unflatten([as_array(leaf_name(data, path), value) for path, value in found])


def _is_list_of_values(value: Any) -> bool:
    """Whether it is a list of numbers, text or lists, which is refused later without looking at all of it."""
    return isinstance(value, list) and not any(
        hasattr(item, "shape") or isinstance(item, tuple | dict | Batch) for item in value
    )


def leaf_name(data: Any, path: tuple[Any, ...]) -> str:
    """The name of an array in errors, from its path in a batch or in raw data as JAX's functions on trees return it."""
    if isinstance(data, tuple | list) and len(data) <= 3 and len(path) == 1:
        return ("x", "y", "weight")[getattr(path[0], "idx", 0)]
    return jax.tree_util.keystr(path, simple=True, separator=".") or "x"


def check_weight(weight: Any) -> None:
    """Raise for negative or NaN weights; tracers are not checked."""
    if isinstance(weight, Tracer) or not isinstance(weight, np.ndarray | jax.Array) or not weight.size:
        return
    low = np.min(np.asarray(weight))
    if not low >= 0:
        raise ValueError(
            f"weight must not be negative or NaN, got {low:.4g}; write np.maximum(weight, 0) to ignore those examples."
        )


def native(value: Any) -> Any:
    """A host array in native byte order, since JAX misreads the other one, and float64 as float32, to which JAX would round it."""
    if not isinstance(value, np.ndarray):
        return value
    if is_wide(value.dtype):
        return single(value)
    return value if value.dtype.isnative else value.astype(native_type(value.dtype))


def named_arrays(data: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a tuple, list, dict or `Batch`, or the one array, with their names for errors."""
    if isinstance(data, tuple | list) and not hasattr(data, "_fields"):
        if isinstance(data, list) and data and not any(hasattr(v, "shape") for v in data):
            if isinstance(data[0], str):
                require_numbers("data", np.asarray(data[:1]))
            raise TypeError(
                "data must be NumPy or JAX arrays, got a list of numbers or lists; write np.asarray(…, np.float32)."
            )
        names = ("x", "y", "weight") if len(data) <= 3 else [str(i) for i in range(len(data))]
        yield from zip(names, data, strict=False)
    elif isinstance(data, dict):
        for k, v in data.items():  # a part's data may be a pair, or a dict again
            deep = isinstance(v, tuple | list | dict | Batch)
            yield from ((f"{k}.{name}", inner) for name, inner in named_arrays(v)) if deep else [(str(k), v)]
    elif isinstance(data, Batch):
        for name in data_fields(type(data)):
            value = getattr(data, name)
            if value is not None:
                yield from [(name, value)] if hasattr(value, "shape") else named_arrays(value)
    else:
        yield "x", data


def check_array(name: str, value: Any) -> None:
    """Raise unless a value is an array of numbers with one row per example."""
    kind = type(value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or isinstance(value, type):
        _refuse(name, value)
    if not isinstance(value, _ARRAYS) and (_is_foreign(value.dtype) or not hasattr(kind, "__array__")):
        remedy = f"{name}.toarray()" if hasattr(value, "toarray") else f"np.asarray({name})"
        raise TypeError(f"{name} must be a NumPy or JAX array, got {kind.__module__}.{kind.__name__}; write {remedy}.")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, since JAX ignores the mask. Write {name}.filled(0), and give masked examples the "
            "weight 0: (x, y, weight)."
        )
    if not is_float(value):
        require_numbers(name, value)
    if not value.shape:
        raise ValueError(
            f"{name} must be an array with one row per example, got a single number. Data is whole arrays, or an iterable of batches, not "
            "of single examples."
        )


def _refuse(name: str, value: Any) -> None:
    """Raise for a value that is not an array, with the remedy."""
    kind = type(value).__name__
    got, instead = kind, "Data is an array, a pair (x, y), a triple (x, y, weight), a dict or a fm.Batch of arrays."
    if isinstance(value, dict | tuple):
        inside = "dict(a=…, b=…)" if isinstance(value, dict) else "(…, …)"
        instead = (
            f"Several arrays for one field need a batch: fm.Labeled({inside}, y), or fm.Unlabeled({inside}) without labels."
        )
    elif isinstance(value, list | int | float):
        instead = f"Write np.asarray({name}, np.float32), or np.int32 for labels."
    elif isinstance(value, type):
        got, instead = f"the class {value.__name__}", f"{value.__name__}(…) makes an instance."
    elif isinstance(value, str | bytes) or hasattr(value, "__fspath__"):
        got = f"the {kind} {str(value)[:60]!r}"
        instead = "fm.data.open(path) opens a file of np.save or np.savez."
    elif isinstance(value, Tree) and callable(value):
        got, instead = f"the component {kind}", "The component is the first argument, and the data the second."
    raise TypeError(f"{name} must be a NumPy or JAX array, got {got}. {instead}")


def _is_foreign(dtype: Any) -> bool:
    """Whether it is another library's type of numbers, unknown to NumPy."""
    try:
        np.dtype(dtype)
    except TypeError:
        return True
    return False


def is_float(value: Any) -> bool:
    """Whether an array has floating-point numbers, including bfloat16."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))
