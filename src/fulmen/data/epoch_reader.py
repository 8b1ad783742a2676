"""`EpochReader`: the batches of one epoch of a source, checked one by one."""

import contextlib
import itertools
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

from fulmen.core import Plan
from fulmen.core.verbs import batches
from fulmen.data.arrays import count
from fulmen.data.batch_spec import BatchSpec
from fulmen.data.iterables import describe_data

Batches: TypeAlias = Generator[Any, None, None]


class EpochReader:
    """Reads the epochs of data that is not in memory.

    Args:
        data: normalized data, on which `batches` dispatches.
        name: the name of the data in errors.

    Attributes:
        rows: the size of a batch that the user gave, or None.
    """

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name
        self.rows: int | None = None
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
                yield batch
                index += 1
        if not index:
            raise ValueError(f"{self.name} gave no batch in epoch {epoch}{self._used_up()}.")
        if declared is not None and index < declared:
            raise ValueError(f"{self.name} ended after {index} of its declared {declared} batches in epoch {epoch}.")

    def _open(self, plan: Plan, epoch: int, start: int) -> Batches:
        if start and self.seeks():
            yield from batches(self.data, plan, epoch, start)
        else:
            yield from itertools.islice(batches(self.data, plan, epoch), start, None)

    def _used_up(self) -> str:
        if not isinstance(self.data, Iterator):
            return ""
        return (
            ": it is used up, since it can be iterated only once. Give a function that makes one for each epoch, such as the "
            "generator function itself, or an iterator with enough batches for all steps"
        )
