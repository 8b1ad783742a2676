"""`Source`: any data that a user gives, as the verbs read it: normalized once, then batch by batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from fulmen.core import Plan, checked_batch, remake
from fulmen.core.tree import with_article
from fulmen.core.verbs import as_batch, batches, seek, steps_per_epoch, validate
from fulmen.data.arrays import check_positive, check_seed, count, cut
from fulmen.data.epoch_reader import Batches, EpochReader, made_of
from fulmen.data.iterables import describe_data, put_back
from fulmen.data.normalize import are_arrays, in_memory, normalized, takes_back
from fulmen.data.prefetch import Prefetch, ahead, never
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn

_BATCH_SIZE = 32
_DEPTH = 2


class Source:
    """Data that was given to a verb. All questions about its type are answered here, so that the verbs need not ask.

    Args:
        data: as for `fm.batches`.
        argument: the name of the verb's argument, for errors.

    Attributes:
        data: the object that `batches` dispatches on.
        in_memory: whether it is arrays, all of which are checked.
        is_iterator: whether it can be iterated only once.
        depth: the number of batches that are prefetched.
        given_depth: the depth that the user gave, or 0.
        reader: reads and checks the epochs of data that is not in memory.
        place: puts a training batch on devices; None leaves that to the step.
        position: the data's own position after the newest batch of `epochs`, if it has one.
    """

    def __init__(self, data: Any, argument: str = "data") -> None:
        depth = None
        if isinstance(data, Prefetch):
            data, depth = data.data, data.depth
        self.keeps_first = takes_back(data)
        self.data = normalized(data)
        self.in_memory = in_memory(self.data)
        self.given_depth = depth or 0
        # For arrays, a thread would cost a fast step more than it saves.
        self.depth = depth if depth is not None else 0 if self.in_memory else _DEPTH
        self.is_iterator = isinstance(self.data, Iterator)
        self.reader = EpochReader(self.data, f"{argument}: {describe_data(self.data)}")
        self._started: Any = None  # the plan, the first batch and the generator of the others, after `first`
        self._validated = False
        self.place: Callable[[Any], Any] | None = None
        self.position: Any = None

    @classmethod
    def of(cls, data: Any, argument: str = "data") -> Source:
        """The source of some data; a source is returned as it is."""
        return data if isinstance(data, Source) else cls(data, argument)

    @classmethod
    def with_first(cls, data: Any) -> Source:
        """The source of data whose first batch is read, and is read again by the next reader."""
        source = cls.of(data)
        if source is not data and not source.keeps_first:
            kind = with_article(type(data))
            raise TypeError(
                f"data must be readable again after its first batch, got {kind}, which would lose that batch here. Give one batch, "
                f"or a function that makes the {type(data).__name__}; only `fit` takes {kind}."
            )
        return source

    @property
    def name(self) -> str:
        """The name of the data in errors."""
        return self.reader.name

    @property
    def examples(self) -> int | None:
        """The number of examples, of arrays."""
        return count(self.data) if are_arrays(self.data) else None

    def plan(
        self,
        batch_size: int | None = None,
        *,
        usual: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        limit: int | None = None,
    ) -> Plan:
        """The plan of a run over the data.

        Args:
            batch_size: the user's batch size, or None.
            usual: the batch size without one; reduced to the number of examples.
            epochs, steps, seed, drop_last, limit: as in `fit`.

        Raises:
            TypeError, ValueError: for values that are not possible.
        """
        for name, value in (("epochs", epochs), ("steps", steps), ("limit", limit)):
            if value is not None:
                check_positive(name, value)
        check_seed(seed)
        if self.is_iterator and epochs is not None and epochs > 1:
            raise ValueError(
                f"{self.name} can be iterated only once, but epochs={epochs}. Give a function that makes one for each epoch, such as "
                "the generator function itself."
            )
        n = self.examples
        if batch_size is not None:
            self.reader.rows = batch_size
        size = batch_size if batch_size is not None else _BATCH_SIZE if usual is None else usual
        if n is not None and batch_size is None:
            size = min(size, n)
        check_positive("batch_size", size)
        if n is not None and size > n:
            raise ValueError(f"batch_size must be at most {n}, the number of examples, got {size}.")
        plan = Plan(epochs=epochs, batch_size=size, seed=seed, drop_last=drop_last)
        each = steps_per_epoch(self.data, plan)
        if limit is not None:
            each = limit if each is None else min(each, limit)
        total = steps if steps is not None else epochs * each if epochs is not None and each is not None else None
        return remake(plan, {"steps_per_epoch": each, "total_steps": total})

    def first(self, plan: Plan) -> Any:
        """The first batch. The next reader of epoch 0 gets it again."""
        if self.in_memory:
            return jax.tree.map(lambda v: v[: plan.batch_size], self.data)
        if self._started is None:
            reading = self.reader.read(plan, 0)
            batch = next(reading)
            if self.is_iterator:
                put_back(self.data, batch)
                return batch
            self._started = plan, batch, reading
        return self._started[1]

    def head(self, n: int, plan: Plan) -> Any:
        """The first `n` batches, as data."""
        check_positive("overfit", n)
        if self.in_memory:
            return jax.tree.map(lambda v: v[: n * (plan.batch_size or 1)], self.data)
        with contextlib.closing(self.read(plan, 0, limit=n, depth=0)) as reading:
            return list(reading)

    def read(
        self,
        plan: Plan,
        epoch: int,
        start: int = 0,
        *,
        limit: int | None = None,
        depth: int | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Batches:
        """The batches of an epoch from `start` on, at most `limit`, checked, and prefetched where that saves time.

        `depth` is the number of prefetched batches, by default the source's; `cancelled` says whether to stop waiting for the next.
        """
        depth = self.depth if depth is None else depth
        reading = cut(self.data, plan, epoch, start) if self.in_memory else self._read(plan, epoch, start)
        reading = reading if limit is None else made_of(reading, itertools.islice(reading, limit))
        return ahead(reading, depth, cancelled, self.place is None) if depth else reading

    def epochs(
        self,
        plan: Plan,
        at: tuple[int, int],
        left: Callable[[], int | None],
        component: Any,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[tuple[int, Batches]]:
        """An endless iterator of epochs, from where a run continues: their numbers and batches.

        Args:
            plan, at: a plan of this source, and the epoch and the index of the batch in it to begin with, as `find` returns them.
            left: gives the number of batches that are still needed, or None.
            component: validated with the first batch.
            cancelled: whether to stop waiting for the next batch.
        """
        epoch, start = at
        declared = steps_per_epoch(self.data, plan)
        while True:
            limit, each = left(), plan.steps_per_epoch
            if each is not None:
                limit = each - start if limit is None else min(limit, each - start)
            if limit == 0:  # a run that was stopped after the last batch of an epoch
                yield epoch, (batch for batch in ())
            else:
                if limit is not None and start + limit == declared:
                    limit = None  # so that the epoch's declared length is checked
                reading = self.read(plan, epoch, start, limit=limit, cancelled=cancelled)
                reading = reading if self.in_memory else self._validating(reading, component)
                yield epoch, reading if self.place is None else made_of(reading, map(self.place, reading))
            epoch, start = epoch + 1, 0

    def find(self, plan: Plan, done: int) -> tuple[int, int]:
        """The epoch and the batch in it at which a run continues after a number of batches."""
        if self.is_iterator:
            return 0, 0  # an iterator continues at its own position
        epoch, start = divmod(done, plan.steps_per_epoch) if plan.steps_per_epoch else (0, done)
        if not start or (self.reader.seeks() and plan.steps_per_epoch):
            return epoch, start
        self._warn_of_skipping(done, start)
        while not plan.steps_per_epoch:
            n = sum(
                1 for _ in itertools.islice(self.reader.read(plan, epoch), start + 1)
            )  # one more: is there a next batch?
            if n > start:
                break
            epoch, start = epoch + 1, start - n
        self.reader.positions.clear()
        return epoch, start

    def move(self, at: tuple[int, int], position: Any) -> None:
        """Move data that keeps its own position to where a run was stopped; other data is read and skipped later.

        `at` is the epoch and the batch in it to continue with, and `position` what the verb returned then.
        """
        if self.in_memory or not at[1]:
            return
        if position is not None:
            seek(self.data, position)
            self.reader.moved = True
        elif not self.reader.seeks():
            self._warn_of_skipping(at[1], at[1])

    def _warn_of_skipping(self, done: int, start: int) -> None:
        warn(
            f"{self.name} cannot seek: to continue after {done} steps, {start} batches are read and skipped. They are the same as "
            "in the run before only if the order of each epoch depends on its number alone. To seek, write "
            f"`batches(data: {type(self.data).__name__}, plan, epoch, start=0)`, which begins at a batch, and `steps_per_epoch`.",
        )

    def _read(self, plan: Plan, epoch: int, start: int) -> Batches:
        started, self._started = self._started, None
        if started is not None and epoch == start == 0:
            before, batch, reading = started
            if before.seed == plan.seed and plan.batch_size in (before.batch_size, count(batch)):
                return made_of(reading, itertools.chain([batch], reading))
        return self.reader.read(plan, epoch, start)

    def _validating(self, reading: Batches, component: Any) -> Batches:
        # Not on the thread that prefetches: validation traces, under the settings of this thread.
        with contextlib.closing(reading):
            for batch in reading:
                self.validate(component, batch)
                if self.reader.positions:
                    self.position = self.reader.positions.popleft()
                yield batch

    def validate(self, component: Any, batch: Any) -> None:
        """Validate the component with data, once: with all arrays in memory, or with the first batch that is read."""
        if not self._validated:
            self._validated = True
            validate(component, checked_batch(as_batch(component, batch)))


@dispatch
def batches(data: object, *, batch_size=None, seed=0, epochs=1, drop_last=False):
    source = Source.of(data)
    plan = source.plan(batch_size, epochs=epochs, seed=seed, drop_last=drop_last)
    reading = (source.read(plan, number, depth=source.given_depth) for number in range(epochs))
    return itertools.chain.from_iterable(reading)
