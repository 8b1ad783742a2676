"""From the data that a user gives to the data that `batches` dispatches on."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.core import Batch, Plan, Tree, check_array
from fulmen.core.batch_checks import as_arrays
from fulmen.core.foreign_arrays import is_foreign_array
from fulmen.core.verbs import batches
from fulmen.data.arrays import check_arrays, cut
from fulmen.data.iterables import BatchList, describe_data, iterate
from fulmen.data.mixed import Sources


def normalized(data: Any) -> Any:
    """The data as `batches` takes it: arrays are checked.

    Raises:
        TypeError, ValueError: for anything that cannot be data.
    """
    if isinstance(data, jax.Array):
        data = np.asarray(data)
    if _are_batches(data):
        return BatchList(data)
    _require_clear_list(data)
    if is_foreign_array(data) and _reader(data) is iterate:  # not if a user has a method for its type
        data = as_arrays(data)
    if not takes_back(data):
        return (batch for batch in data)  # a generator has weak references, so that batches can be put back
    if type(data) is dict and any(_is_source(own) for own in data.values()):
        return Sources({str(name): normalized(own) for name, own in data.items()})
    if are_arrays(data):
        return check_arrays(data)
    if _reader(data) is iterate:
        _require_readable(data)
    return data


def _are_batches(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], tuple | dict | Batch)


def _require_clear_list(data: Any) -> None:
    """Raise for a list of arrays alike: they may be inputs and targets, or batches without targets."""
    if not isinstance(data, list) or len(data) < 2 or not all(hasattr(v, "shape") for v in data):
        return
    rows = {np.shape(v)[1:] for v in data}
    if len(rows) == 1 and rows != {()}:
        raise ValueError(
            f"data must be a tuple (x, y) or batches, and a list of {len(data)} arrays with rows of the same shape may be either; "
            "write a tuple, or for batches without targets fm.Unlabeled(x) for each."
        )


def _is_source(own: Any) -> bool:
    """Whether an entry of a dict of data is a source of batches, not an array."""
    if _are_batches(own):
        return True
    if isinstance(own, str | bytes) or hasattr(own, "__fspath__") or hasattr(own, "shape") or are_arrays(own):
        return False
    return isinstance(own, Iterable) or callable(own) or _reader(own) is not iterate


def are_arrays(data: Any) -> bool:
    """Whether the data is arrays, which `batches` cuts."""
    return _reader(data) is cut


def in_memory(data: Any) -> bool:
    """Whether the data is arrays of which none is memory-mapped: those are read and checked batch by batch."""
    return are_arrays(data) and not any(isinstance(v, np.memmap) for v in jax.tree.leaves(data))


def _reader(data: Any) -> Callable[..., Any]:
    """The function that `batches` calls for an epoch of this data."""
    return batches.method(data, Plan(), 0).function


def takes_back(data: Any) -> bool:
    """Whether a batch that is read from the data can be read again: an iterator must have weak references."""
    try:
        return not isinstance(data, Iterator) or bool(weakref.ref(data))
    except TypeError:
        return False


def _require_readable(data: Any) -> None:
    is_component = isinstance(data, Tree) and callable(data)
    is_text = isinstance(data, str | bytes) or hasattr(data, "__fspath__")
    arrays = (np.ndarray, jax.Array, Batch)
    is_class = isinstance(data, type) and (not hasattr(data, "__iter__") or issubclass(data, arrays))
    if is_component or is_text or is_class:
        check_array("data", data)  # raises, and says what to write
    if not isinstance(data, Iterable) and not callable(data):
        raise TypeError(
            f"data must be arrays, an iterable of batches or a function that makes one, got {describe_data(data)}. For a "
            f"user-defined type, write `batches(data: {type(data).__name__}, plan, epoch)`, which yields the batches of an epoch."
        )
