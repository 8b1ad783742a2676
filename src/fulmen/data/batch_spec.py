"""What the batches of a source look like, learnt from the first one and held against the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.border import check_array, leaf_name
from fulmen.core.tree import short
from fulmen.data.arrays import check_finite, check_lengths, host_array, host_dtype

__all__ = ["Expected"]


class Expected:
    """The structure of a source's batches, and the type and shape of each array's rows."""

    def __init__(self) -> None:
        self.structure: Any = None
        self.shown = ""
        self.kinds: list[tuple[Any, Any]] = []

    def check(self, raw: Any) -> Any:
        """A batch on the host, in memory of its own, since a source may fill the same arrays again and again.

        Raises:
            TypeError, ValueError: for what is no batch, or is unlike the first one; for NaN and infinity.
        """
        values, structure = jax.tree.flatten(raw)
        values = [_as_array(value, raw, i) for i, value in enumerate(values)]
        by_rows = _by_rows(raw)
        if self.structure is None:
            self._learn(raw, values, structure, by_rows)
        elif structure != self.structure:
            raise TypeError(f"{self.shown} was expected, as in the first batch, and {short(raw)} came.")
        for i, (value, kind) in enumerate(zip(values, self.kinds, strict=True)):
            if _kind(value) != kind:
                _unlike(_name(raw, i), value, *kind)
        if by_rows and ({len(v) for v in values} != {len(values[0])} or not len(values[0])):
            check_lengths({_name(raw, i): v for i, v in enumerate(values)})
        return structure.unflatten([_owned(v, lambda i=i: _name(raw, i)) for i, v in enumerate(values)])

    def _learn(self, raw: Any, values: list[Any], structure: Any, by_rows: bool) -> None:
        if not values:
            raise TypeError(f"arrays, or a tuple, dict or fm.Batch of them, were expected, and {short(raw)} came.")
        for i, value in enumerate(values):
            if by_rows or value.shape:
                check_array(_name(raw, i), value)
        self.structure, self.shown = structure, short(raw)
        self.kinds = [_kind(value) for value in values]


def _kind(value: Any) -> tuple[Any, Any]:
    # As it is on the host, since a first batch that was put back comes again as that.
    return host_dtype(value.dtype), _row(value)


def _row(value: Any) -> tuple[int, ...] | None:
    return value.shape[1:] if value.shape else None


def _unlike(name: str, value: Any, dtype: Any, row: tuple[int, ...] | None) -> None:
    kind = TypeError if host_dtype(value.dtype) != dtype else ValueError
    expected = "a number" if row is None else f"rows of {short(np.broadcast_to(np.zeros((), dtype), row))}"
    raise kind(f"{name}: {expected} were expected, as in the first batch, and {short(value)} came.")


def _as_array(value: Any, raw: Any, i: int) -> Any:
    """The arrays of other libraries as NumPy's."""
    if isinstance(value, np.ma.MaskedArray):
        check_array(_name(raw, i), value)
    if isinstance(value, np.ndarray | jax.Array):
        return value
    if not hasattr(value, "__array__"):
        raise TypeError(
            f"{_name(raw, i)}: an array was expected, and a {type(value).__name__} came. A batch is an array, or a tuple, dict "
            "or fm.Batch of arrays: np.asarray(…, np.float32)."
        )
    try:
        return np.asarray(value)
    except Exception as error:
        raise TypeError(f"{_name(raw, i)}: the {type(value).__name__} cannot be made an array: {error}") from error


def _owned(value: Any, name: Callable[[], str]) -> Any:
    if isinstance(value, jax.Array):
        return value
    # A sum is not finite if one of its numbers is not, and quicker to come by; the other way round it may overflow.
    if value.dtype.kind not in "biu":
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(value.sum()):
                check_finite(name(), value)
    try:
        new = host_array(value)
    except ValueError as error:
        raise ValueError(f"{name()}: {error}") from None
    return np.array(value) if new is value else new


def _name(raw: Any, i: int) -> str:
    """What the i-th array of a batch is called."""
    return leaf_name(raw, jax.tree_util.tree_flatten_with_path(raw)[0][i][0])


def _by_rows(raw: Any) -> bool:
    """Whether each array of a batch has a row for each example: what has a structure of its own may have others."""
    if isinstance(raw, Batch):
        return type(raw).__len__ is Batch.__len__
    return type(raw) in (tuple, list, dict) or hasattr(raw, "__array__")
