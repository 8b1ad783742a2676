"""Arrays of other kinds as NumPy arrays in JAX's types: tensors, data frames and series of other libraries, and float64."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fulmen.dispatching.warning import warn

_OURS = (np.ndarray, np.generic, jax.Array)


def is_foreign_array(value: Any) -> bool:
    """Whether a value is another library's array, which NumPy can read."""
    return hasattr(type(value), "__array__") and not isinstance(value, _OURS)


def as_array(name: str, value: Any) -> Any:
    """Another library's array, such as a tensor of PyTorch or a frame of pandas, as a NumPy array; any other value as it is.

    Raises:
        TypeError: if NumPy cannot read it, and for a frame with a column that is not numbers.
    """
    if not is_foreign_array(value):
        return value
    try:
        array = np.asarray(value)
    except Exception as error:
        kind = type(value).__name__
        raise TypeError(f"{name} must be convertible to an array, got {kind}: {error}") from error
    return _from_columns(name, value) if array.dtype == object and hasattr(value, "columns") else array


def _from_columns(name: str, frame: Any) -> np.ndarray:
    """The columns of a frame whose columns have several types, as one array."""
    columns = {str(column): np.asarray(frame[column]) for column in frame.columns}
    for column, values in columns.items():
        require_numbers(f"{name}, column {column!r},", values)
    with jax.numpy_dtype_promotion("standard"):
        return np.stack(list(columns.values()), 1)


def require_numbers(name: str, array: Any) -> None:
    """Raise for an array of text, dates or objects."""
    if np.dtype(array.dtype).kind in "OSUMmV":
        raise TypeError(
            f"{name} must be numbers, got an array of type {array.dtype}. Encode text, dates and objects as numbers first: class names "
            "by np.unique(…, return_inverse=True), text for a language model by np.frombuffer(text.encode(), np.uint8)."
        )


def native_type(dtype: Any) -> Any:
    """A type of NumPy in this machine's byte order; the type of a random key has no byte order."""
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def is_wide(dtype: Any) -> bool:
    """Whether it is float64, in either byte order, which JAX would round to float32."""
    return native_type(dtype) == np.float64 != jax.dtypes.canonicalize_dtype(np.float64)


def warn_of_float64(arrays: Iterable[tuple[str, Any]]) -> None:
    """Warn of float64 arrays, which are converted, except for vectors of whole numbers: they lose nothing and may be class labels."""
    names = [name for name, value in arrays if is_wide(value.dtype) and not _is_whole_vector(value)]
    if names:
        which = f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
        warn(
            f"{which} converted from float64 to float32, the type that JAX computes in. Write {names[0]}.astype(np.float32) to do it "
            "once, or switch jax_enable_x64 on."
        )


_LARGEST_EXACT = 2.0**24  # float32 represents all whole numbers up to it


def _is_whole_vector(value: Any) -> bool:
    return value.ndim == 1 and bool(((np.abs(value) <= _LARGEST_EXACT) & (value == np.round(value))).all())


def single(array: np.ndarray) -> np.ndarray:
    """A float64 array as float32.

    Raises:
        ValueError: for numbers that float32 cannot represent.
    """
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all() and np.isfinite(array).all():
        raise ValueError(f"numbers must fit into float32, got up to {np.abs(array).max():.3g}; scale them.")
    return found
