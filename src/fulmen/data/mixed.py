"""Data that is read together: `Mixed`, labelled and unlabelled examples, and `Sources`, a dict of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from fulmen.core import Batch, remake, short
from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import batch_count, count, order
from fulmen.dispatching.registry import dispatch


class Mixed(Batch):
    """Labelled and unlabelled examples, as one batch or as data.

    As one batch, the two parts may have different sizes. As data, every batch has `batch_size` examples of each; an epoch
    reads the larger part once and repeats examples of the smaller part. So `Mixed` cannot be evaluated exactly: evaluate on
    pairs `(x, y)`.

    >>> x, y = jnp.ones((8, 4)), jnp.arange(8) % 3
    >>> for batch in fm.batches(fm.data.Mixed((x, y), jnp.zeros((12, 4))), batch_size=5):
    ...     print(len(batch.labeled[0]), len(batch.unlabeled))
    5 5
    5 5
    2 2

    Args:
        labeled: a pair `(x, y)`, or a batch.
        unlabeled: an array, or a batch.
    """

    repeats_examples: ClassVar[bool] = True
    attackable: ClassVar[tuple[str, ...]] = ()  # each part is attacked separately

    labeled: Any
    unlabeled: Any

    def __len__(self) -> int:
        return count(self.labeled)

    def each(self, function: Callable[[Any, str], Any]) -> Mixed:
        """A copy with `function(part, name)` in place of both parts."""
        return remake(self, {name: function(getattr(self, name), name) for name in ("labeled", "unlabeled")})


@dispatch
def batches(data: Mixed, plan, epoch, start=0):
    _require_arrays(data)
    total = max(map(count, (data.labeled, data.unlabeled)))
    rows = {name: _rows(count(getattr(data, name)), total, plan, epoch) for name in ("labeled", "unlabeled")}
    for begin in range(start * plan.batch_size, batch_count(total, plan) * plan.batch_size, plan.batch_size):
        chosen = {name: some[begin : begin + plan.batch_size] for name, some in rows.items()}
        yield data.each(lambda part, name, chosen=chosen: jax.tree.map(lambda v: v[chosen[name]], part))


@dispatch
def steps_per_epoch(data: Mixed, plan):
    return batch_count(max(map(count, (data.labeled, data.unlabeled))), plan)


def _rows(n: int, total: int, plan: Any, epoch: int) -> np.ndarray:
    """The indices of `total` examples for one epoch: `n` examples, repeated in another order each time."""
    times = -(-total // n)
    return np.concatenate([order(n, plan, epoch * times + i) for i in range(times)])[:total]


def _require_arrays(data: Mixed) -> None:
    for name in ("labeled", "unlabeled"):
        lengths = {np.shape(v)[:1] for v in jax.tree.leaves(getattr(data, name))}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise ValueError(
                f"Mixed.{name} must be arrays of equal length with one row per example, got {short(getattr(data, name))}."
            )


class Sources(dict[str, Any]):
    """Data by name, of which some entries make their own batches. A step gets one batch of each.

    An epoch ends with the shortest entry. Its declared length is the smallest declared length; an entry without a length may
    be longer, and raises if it is shorter.

    Args:
        data: from names to any data that `batches` takes.

    Raises:
        TypeError: for an iterator, which would lose a batch where another entry ends the epoch.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.__name__ = ", ".join(data)  # for errors
        for name, own in data.items():
            if isinstance(own, Iterator):
                raise TypeError(
                    f"data, {name}: a {type(own).__name__} can be iterated only once, so it cannot be combined with other data. Give a "
                    "function that makes one for each epoch, such as the generator function itself."
                )


@dispatch
def batches(data: Sources, plan, epoch):
    side_by_side = zip(*(_named(name, own, plan, epoch) for name, own in data.items()))
    return (dict(zip(data, each, strict=True)) for each in side_by_side)


def _named(name: str, data: Any, plan: Any, epoch: int) -> Iterator[Any]:
    try:
        yield from batches(data, plan, epoch)
    except Exception as error:
        error.add_note(f"in the data of {name!r}")
        raise


@dispatch
def steps_per_epoch(data: Sources, plan):
    known = (steps_per_epoch(own, plan) for own in data.values())
    return min((n for n in known if n is not None), default=None)
