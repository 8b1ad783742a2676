"""`Mixed`: batches of labelled and unlabelled examples."""

from __future__ import annotations

from collections.abc import Callable
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
