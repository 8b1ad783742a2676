"""From what a user may give as data to what `batches` dispatches on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.mode import Plan
from fulmen.core.tree import Tree
from fulmen.core.verbs import batches
from fulmen.data.arrays import check_arrays, cut
from fulmen.data.iterables import Listed, iterate, told
from fulmen.data.libraries import teach
from fulmen.data.mapped import Mapped
from fulmen.data.side_by_side import Sources

__all__ = ["can_put_back", "in_memory", "settle"]


def settle(data: Any) -> Any:
    """The data as `batches` takes it: arrays checked, and what another library made known to the verbs.

    Raises:
        TypeError, ValueError: for what cannot be data.
    """
    teach(type(data))
    if isinstance(data, jax.Array):
        data = np.asarray(data)
    if _are_batches(data):
        return Listed(data)
    if isinstance(data, Iterator) and not _weakly(data):
        return (batch for batch in data)  # what is taken out to be looked at is put back by a weak reference
    if type(data) is dict and any(_is_source(own) for own in data.values()):
        return Sources({str(name): settle(own) for name, own in data.items()})
    if in_memory(data):
        data = check_arrays(data)
        return Mapped(data) if any(isinstance(v, np.memmap) for v in jax.tree.leaves(data)) else data
    if _reader(data) is iterate:
        _require_readable(data)
    return data


def _are_batches(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], tuple | dict | Batch)


def _is_source(own: Any) -> bool:
    """Whether an entry of a dict of data makes its batches itself, or is cut by a method of its own."""
    teach(type(own))
    if _are_batches(own):
        return True
    if isinstance(own, str | bytes) or hasattr(own, "__fspath__") or hasattr(own, "shape") or in_memory(own):
        return False
    return isinstance(own, Iterable) or callable(own) or _reader(own) is not iterate


def in_memory(data: Any) -> bool:
    """Whether the data is arrays, which `batches` cuts."""
    return _reader(data) is cut


def _reader(data: Any) -> Callable[..., Any]:
    """The function that `batches` calls for an epoch of this data."""
    return batches.method(data, Plan(), 0).function


def can_put_back(data: Any) -> bool:
    """Whether a batch that is taken out of an iterator can be put back."""
    return not isinstance(data, Iterator) or _weakly(data)


def _weakly(data: Any) -> bool:
    try:
        weakref.ref(data)
    except TypeError:
        return False
    return True


def _require_readable(data: Any) -> None:
    if isinstance(data, Tree) and isinstance(data, Callable):  # a component, which can be called as a function is
        raise TypeError(
            f"data: arrays or a source of batches was expected, and the {type(data).__name__} came: the component comes first, and "
            "then the data, fit(component, data)."
        )
    if isinstance(data, str | bytes) or hasattr(data, "__fspath__"):
        raise TypeError(
            f"data: arrays or a source of batches was expected, and the {type(data).__name__} {str(data)[:60]!r} came. "
            "fm.data.open(path) opens a file that np.save or np.savez wrote."
        )
    if isinstance(data, type) and (not hasattr(data, "__iter__") or issubclass(data, np.ndarray | jax.Array)):
        raise TypeError(f"data must be arrays or a source of batches, got the class {data.__name__}: an instance is meant?")
    if not isinstance(data, Iterable) and not callable(data):
        raise TypeError(
            f"data: arrays, an iterable of batches or a function that makes one was expected, and {told(data)} came. For a type "
            f"of one's own, write `batches(data: {type(data).__name__}, plan, epoch)`, which yields an epoch's batches."
        )
