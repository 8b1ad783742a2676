"""`EpochReader`: the batches of one epoch of a source, each checked against the first one, whose `BatchSpec` it is."""

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from fulmen.core import Batch, Plan, short
from fulmen.core.batch_checks import check_array, leaf_name
from fulmen.core.foreign_arrays import as_array, warn_of_float64
from fulmen.core.verbs import batches, position
from fulmen.data.arrays import check_finite, check_lengths, count, host_array, host_dtype
from fulmen.data.iterables import describe_data


class BatchSpec:
    """The structure of a source's batches, and the type and shape of each array's rows."""

    def __init__(self) -> None:
        self.structure: Any = None
        self.text = ""
        self.rows: list[tuple[Any, Any]] = []

    def check(self, raw: Any) -> Any:
        """A copy of a batch on the host. It must be a copy, since a source may fill the same arrays again.

        Raises:
            TypeError, ValueError: for anything but a batch, a batch unlike the first one, NaN and infinity.
        """
        values, structure = jax.tree.flatten(raw)
        values = [_as_array(value, raw, i) for i, value in enumerate(values)]
        by_rows = _by_rows(raw)
        if self.structure is None:
            self._learn(raw, values, structure, by_rows)
        elif structure != self.structure:
            raise TypeError(f"the batch must be {self.text}, as the first one, got {short(raw)}.")
        for i, (value, row) in enumerate(zip(values, self.rows, strict=True)):
            if _row(value) != row:
                raise _unlike(_name(raw, i), value, *row)
        if by_rows and ({len(v) for v in values} != {len(values[0])} or not len(values[0])):
            check_lengths({_name(raw, i): v for i, v in enumerate(values)})
        return structure.unflatten([_copied(v, lambda i=i: _name(raw, i)) for i, v in enumerate(values)])

    def _learn(self, raw: Any, values: list[Any], structure: Any, by_rows: bool) -> None:
        if not values:
            raise TypeError(f"a batch must be arrays, or a tuple, dict or fm.Batch of arrays, got {short(raw)}.")
        for i, value in enumerate(values):
            if by_rows or value.shape:
                check_array(_name(raw, i), value)
        warn_of_float64((_name(raw, i), value) for i, value in enumerate(values))
        self.structure, self.text = structure, short(raw)
        self.rows = [_row(value) for value in values]


def _row(value: Any) -> tuple[Any, tuple[int, ...] | None]:
    """The type of an array on the host, and the shape of its rows: None for a single number."""
    return host_dtype(value.dtype), value.shape[1:] if value.shape else None


def _unlike(name: str, value: Any, dtype: Any, shape: tuple[int, ...] | None) -> Exception:
    kind = TypeError if host_dtype(value.dtype) != dtype else ValueError
    expected = "a number" if shape is None else f"rows of {short(np.broadcast_to(np.zeros((), dtype), shape))}"
    return kind(f"{name} must be {expected}, as in the first batch, got {short(value)}.")


def _as_array(value: Any, raw: Any, i: int) -> Any:
    """The arrays of other libraries as NumPy arrays."""
    if isinstance(value, np.ma.MaskedArray):
        check_array(_name(raw, i), value)
    if isinstance(value, np.ndarray | jax.Array):
        return value
    if not hasattr(value, "__array__"):
        raise TypeError(
            f"{_name(raw, i)} must be an array, got {type(value).__name__}. A batch is an array, or a tuple, dict or fm.Batch of "
            "arrays: np.asarray(…, np.float32)."
        )
    return np.asarray(as_array(_name(raw, i), value))


def _copied(value: Any, name: Callable[[], str]) -> Any:
    if isinstance(value, jax.Array):
        return value
    # A sum is faster than a test of each number. It is not finite if a number is not, and may overflow otherwise.
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
    """The name of the i-th array of a batch."""
    return leaf_name(raw, jax.tree_util.tree_flatten_with_path(raw)[0][i][0])


def _by_rows(raw: Any) -> bool:
    """Whether each array of a batch has one row per example; a type with its own `__len__` may have others."""
    if isinstance(raw, Batch):
        return type(raw).__len__ is Batch.__len__
    return type(raw) in (tuple, list, dict) or hasattr(raw, "__array__")


Batches: TypeAlias = Generator[Any, None, None]


def made_of(reading: Batches, batches: Iterable[Any]) -> Batches:
    """Batches that are made of others, which are closed with them."""
    with contextlib.closing(reading):
        yield from batches


class EpochReader:
    """Reads the epochs of data that is not in memory.

    Attributes:
        data: normalized data, on which `batches` dispatches.
        name: the name of the data in errors.
        rows: the size of a batch that the user gave, or None.
        positions: the data's own position after each batch that was read and not taken yet, for data that has one.
        moved: whether the data is already at the batch `start` of the next epoch that is read.
    """

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name
        self.rows: int | None = None
        self.positions: collections.deque[Any] = collections.deque()
        self.moved = False
        self._spec = BatchSpec()

    def seeks(self) -> bool:
        """Whether an epoch can begin at any batch: the most specific method of `batches` takes `start`."""
        if not batches.has(self.data, Plan(), 0, 0):
            return False
        seeking, plain = batches.method(self.data, Plan(), 0, 0), batches.method(self.data, Plan(), 0)
        return seeking.hints[0] == plain.hints[0]

    def read(self, plan: Plan, epoch: int, start: int = 0) -> Batches:
        """The batches of an epoch from `start` on, on the host, each checked against the first one of the source.

        Raises:
            RuntimeError: for an error in the source, which is its cause.
            TypeError, ValueError: for a batch that is unlike the first one, and for another number of batches than declared.
        """
        raw_batches, index, declared = self._open(plan, epoch, start), start, plan.steps_per_epoch
        with contextlib.closing(raw_batches):
            while True:
                where = f"{self.name}, batch {index} of epoch {epoch}"
                try:
                    raw = next(raw_batches)
                except StopIteration:
                    break
                except Exception as error:
                    raise RuntimeError(f"{where} raised {type(error).__name__}: {error}") from error
                if index == declared:
                    raise ValueError(f"{self.name} has more than its declared {declared} batches in epoch {epoch}.")
                try:
                    batch = self._spec.check(raw)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{where}: {error}") from error
                if index == 0 and self.rows not in (None, count(batch)):
                    raise ValueError(
                        f"batch_size must be left out or {count(batch)}, the size of the batches that {describe_data(self.data)} makes, "
                        f"got {self.rows}."
                    )
                where = position(self.data)
                if where is not None:
                    self.positions.append(where)
                yield batch
                index += 1
        if not index:
            raise ValueError(f"{self.name} gave no batch in epoch {epoch}{self._used_up()}.")
        if declared is not None and index < declared:
            raise ValueError(f"{self.name} ended after {index} of its declared {declared} batches in epoch {epoch}.")

    def _open(self, plan: Plan, epoch: int, start: int) -> Batches:
        moved, self.moved = self.moved, False
        if start and not moved and self.seeks():
            yield from batches(self.data, plan, epoch, start)
        else:
            yield from itertools.islice(batches(self.data, plan, epoch), 0 if moved else start, None)

    def _used_up(self) -> str:
        if not isinstance(self.data, Iterator):
            return ""
        return (
            ": it is used up, since it can be iterated only once. Give a function that makes one for each epoch, such as the "
            "generator function itself, or an iterator with enough batches for all steps"
        )
