"""`Source`: data as the verbs read it, looked at once, then batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from fulmen.core.border import checked_batch
from fulmen.core.mode import Plan
from fulmen.core.tree import remake
from fulmen.core.verbs import as_batch, batches, steps_per_epoch, validate
from fulmen.data.arrays import check_batch_size, count, cut
from fulmen.data.batch_spec import Expected
from fulmen.data.iterables import put_back, told
from fulmen.data.mapped import Mapped
from fulmen.data.normalize import can_put_back, in_memory, settle
from fulmen.data.prefetch import Prefetch, ahead
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn

__all__ = ["Source", "check_seed"]

Batches: TypeAlias = Generator[Any, None, None]

_BATCH_SIZE = 32
_DEPTH = 2


def check_seed(seed: Any) -> None:
    """Raise on a seed that is not an integer that JAX and NumPy take, or None."""
    if seed is not None and (not hasattr(seed, "__index__") or np.ndim(seed) > 0):
        raise TypeError(f"seed must be an integer or None, got {seed!r}.")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}.")


class Source:
    """Data that a verb was given: what it may be is settled here once, so that the verbs need not ask.

    Args:
        data: as for `fm.batches`.
        what: what it is in errors.

    Attributes:
        data: what `batches` dispatches on.
        in_memory: whether it is arrays, all of which were looked at.
        depth: how many batches are read ahead.
    """

    def __init__(self, data: Any, what: str = "data") -> None:
        self.what, depth = what, None
        if isinstance(data, Prefetch):
            data, depth = data.data, data.depth
        self.lasts = can_put_back(data)
        self.data = settle(data)
        self.in_memory = in_memory(self.data)
        # A thread takes more from a quick step than batches of arrays cost.
        self.depth = depth if depth is not None else 0 if self.in_memory else _DEPTH
        self.said_depth = depth or 0
        self.is_iterator = isinstance(self.data, Iterator)
        self._expected = Expected()
        self._rows: int | None = None  # of a batch, where the user said how many
        self._begun: Any = None
        self._validated = False

    @classmethod
    def of(cls, data: Any, what: str = "data") -> Source:
        """The source of some data; a source stays what it is."""
        return data if isinstance(data, Source) else cls(data, what)

    @classmethod
    def looked_at(cls, data: Any) -> Source:
        """The source of data of which the first batch is only looked at, and so is put back."""
        source = cls.of(data)
        if source is not data and not source.lasts:
            kind = type(data).__name__
            raise TypeError(
                f"data: the {kind} would lose the batch that is looked at here. Give one batch, or a function that makes the {kind}; "
                "`fit` takes it as it is."
            )
        return source

    @property
    def name(self) -> str:
        """What it is called in errors."""
        return f"{self.what}: {told(self.data)}"

    # What is known ahead

    @property
    def examples(self) -> int | None:
        """How many there are, of arrays."""
        if self.in_memory:
            return count(self.data)
        return count(self.data.arrays) if isinstance(self.data, Mapped) else None

    def plan(
        self,
        batch_size: int | None = None,
        *,
        usual: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> Plan:
        """What is known of a run over the data.

        Args:
            batch_size: what the user said, or None.
            usual: what is taken otherwise, if there are as many examples.
            epochs, steps, seed, drop_last: as in `fit`.
        """
        for name, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and not hasattr(value, "__index__"):
                raise TypeError(f"{name}: a whole number was expected, and {value!r} came.")
            if value is not None and value < 1:
                raise ValueError(f"{name}: at least 1 was expected, and {value} came.")
        check_seed(seed)
        if self.is_iterator and epochs is not None and epochs > 1:
            raise ValueError(
                f"{self.name} is good for one epoch, and epochs={epochs} came. Give a function that makes one for each epoch, such "
                "as the generator function itself, which is then called for each."
            )
        n, self._rows = self.examples, batch_size
        size = batch_size if batch_size is not None else _BATCH_SIZE if usual is None else usual
        if n is not None and batch_size is None:
            size = min(size, n)
        check_batch_size(size if n is None else n, size)
        plan = Plan(epochs=epochs, batch_size=size, seed=seed, drop_last=drop_last)
        each = steps_per_epoch(self.data, plan)
        total = steps if steps is not None else epochs * each if epochs is not None and each is not None else None
        return remake(plan, {"steps_per_epoch": each, "total_steps": total})

    def seeks(self) -> bool:
        """Whether an epoch can be begun in its midst: a method of `batches` takes `start`, and none that does not is nearer."""
        if not batches.has(self.data, Plan(), 0, 0):
            return False
        seeking, plain = batches.method(self.data, Plan(), 0, 0), batches.method(self.data, Plan(), 0)
        return seeking.hints[0] == plain.hints[0]

    # Reading

    def first(self, plan: Plan) -> Any:
        """The first batch, to be looked at: whoever reads the first epoch next has it again."""
        if self.in_memory:
            return jax.tree.map(lambda v: v[: plan.batch_size], self.data)
        if self._begun is None:
            found = self._checked(plan, 0, 0)
            batch = next(found)
            if self.is_iterator:
                put_back(self.data, batch)
                return batch
            self._begun = plan, batch, found
        return self._begun[1]

    def read(self, plan: Plan, epoch: int, start: int = 0, *, limit: int | None = None, depth: int | None = None) -> Batches:
        """The batches of an epoch, checked, and read ahead where that is worth it.

        Args:
            plan: as `plan` gave it.
            epoch: the epoch's number.
            start: the batch to begin at.
            limit: how many are wanted at most, so that no more are taken from the data.
            depth: how many are read ahead; by default the source's own.
        """
        depth = self.depth if depth is None else depth
        found = cut(self.data, plan, epoch, start) if self.in_memory else self._go_on(plan, epoch, start)
        found = found if limit is None else _some(found, limit)
        return ahead(found, depth) if depth else found

    def epochs(self, plan: Plan, place: int, left: Callable[[], int | None], component: Any) -> Iterator[Batches]:
        """One epoch after the other, for ever.

        Args:
            plan: as `plan` gave it.
            place: how many batches the state has had.
            left: gives how many are wanted still, or None.
            component: what `validate` is asked for with the first batch.
        """
        number, start = self._find(plan, place)
        while True:
            limit, each = left(), plan.steps_per_epoch
            if limit is not None and each is not None and start + limit >= each:
                limit = None  # its end is seen to, where it has one
            found = self.read(plan, number, start, limit=limit)
            yield found if self.in_memory else self._validating(found, component)
            number, start = number + 1, 0

    def _find(self, plan: Plan, place: int) -> tuple[int, int]:
        """The epoch and the batch in it at which a run goes on."""
        if self.is_iterator:
            return 0, 0  # it stands where it stands
        number, start = divmod(place, plan.steps_per_epoch) if plan.steps_per_epoch else (0, place)
        if not start or (self.seeks() and plan.steps_per_epoch):
            return number, start
        kind = type(self.data).__name__
        warn(
            f"{self.name} cannot seek: to go on after {place} steps, {start} batches are read and passed over, and they are those "
            f"of the run before only if each epoch has its order by its number. `batches(data: {kind}, plan, epoch, start=0)` that "
            "begins at a batch (and `steps_per_epoch`) would go there at once.",
        )
        while not plan.steps_per_epoch:
            n = sum(1 for _ in itertools.islice(self._checked(plan, number, 0), start + 1))  # one more: it goes on after it
            if n > start:
                break
            number, start = number + 1, start - n
        return number, start

    def _go_on(self, plan: Plan, epoch: int, start: int) -> Batches:
        begun, self._begun = self._begun, None
        if begun is not None and epoch == start == 0:
            before, batch, found = begun
            if before.seed == plan.seed and plan.batch_size in (before.batch_size, count(batch)):
                return _with(batch, found)
        return self._checked(plan, epoch, start)

    def _opened(self, plan: Plan, epoch: int, start: int) -> Batches:
        if not start:
            yield from batches(self.data, plan, epoch)
        elif self.seeks():
            yield from batches(self.data, plan, epoch, start)
        else:
            found = iter(batches(self.data, plan, epoch))
            for _ in itertools.islice(found, start):
                pass
            yield from found

    def _checked(self, plan: Plan, epoch: int, start: int) -> Batches:
        """The batches on the host, each as the first one was."""
        found, index, declared = self._opened(plan, epoch, start), start, plan.steps_per_epoch
        try:
            while True:
                where = f"{self.name}, batch {index} of epoch {epoch}"
                try:
                    raw = next(found)
                except StopIteration:
                    break
                except Exception as error:
                    raise RuntimeError(f"{where} raised {type(error).__name__}: {error}") from error
                if index == declared:
                    raise ValueError(f"{self.name} goes on after the {declared} batches that it declares, in epoch {epoch}.")
                try:
                    batch = self._expected.check(raw)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{where}: {error}") from error
                if index == 0 and self._rows is not None:
                    self._check_rows(batch)
                yield batch
                index += 1
        finally:
            found.close()
        if not index:
            raise ValueError(f"{self.name} gave no batch in epoch {epoch}{self._used_up()}.")
        if declared is not None and index < declared:
            raise ValueError(
                f"{self.name} ended after {index} of the {declared} batches that it declares, in epoch {epoch}."
            )

    def _used_up(self) -> str:
        if not self.is_iterator:
            return ""
        return (
            ": it is used up, and good for one epoch. Give a function that makes one for each epoch, such as the generator function "
            "itself, or one that goes on for all steps"
        )

    def _check_rows(self, batch: Any) -> None:
        if count(batch) != self._rows:
            raise ValueError(
                f"batch_size: {self._rows} came, and the batches of {told(self.data)} have {count(batch)} examples. Leave it out, or "
                "have batches of that size made there."
            )

    def _validating(self, found: Batches, component: Any) -> Batches:
        # Here, and not on the thread that reads: it traces, under the settings of this one.
        try:
            for batch in found:
                self.validate(component, batch)
                yield batch
        finally:
            found.close()

    def validate(self, component: Any, batch: Any) -> None:
        """Ask the component about the first batch that is seen; of arrays it was asked about all."""
        if not self._validated:
            self._validated = True
            validate(component, checked_batch(as_batch(component, batch)))


def _with(batch: Any, found: Batches) -> Batches:
    try:
        yield batch
        yield from found
    finally:
        found.close()


def _some(found: Batches, limit: int) -> Batches:
    """The first batches, and the rest not even asked for."""
    try:
        yield from itertools.islice(found, limit)
    finally:
        found.close()


@dispatch
def batches(data: object, *, batch_size=None, seed=0, epochs=1, drop_last=False):
    source = Source.of(data)
    plan = source.plan(batch_size, epochs=epochs, seed=seed, drop_last=drop_last)
    reading = (source.read(plan, number, depth=source.said_depth) for number in range(epochs))
    return itertools.chain.from_iterable(reading)
