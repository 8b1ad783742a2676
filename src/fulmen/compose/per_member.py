"""`PerMember`: data of each member's own, and how a batch is cut into the members'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.tree import remake, short
from fulmen.core.verbs import as_batch

__all__ = ["PerMember", "cut", "per_member"]


class PerMember(Batch):
    """Data of each member's own: examples along the leading axis, as in all data, and members along the second.

    In a batch of it, every member has as many examples.

    Args:
        each: the members' data, in order: arrays, tuples or dicts of them, or batches, all of one kind. Where one has fewer
            examples than another, its first one is repeated with weight 0, which counts in no mean over examples (but in what
            couples examples, such as the statistics of a `BatchNorm`).
        weight: `(n,)` or `(n, members)`, beside the weights that the data may have itself.

    >>> data = fm.systems.PerMember([(jnp.zeros((5, 4)), jnp.zeros(5, int)), (jnp.ones((4, 4)), jnp.ones(4, int))])
    >>> data.data[0].shape, data.weight.shape
    ((5, 2, 4), (5, 2))
    """

    attackable: ClassVar[tuple[str, ...]] = ()

    data: jax.Array | tuple[Any, ...] | dict[str, Any] | Batch

    def __init__(self, each: Any, *, weight: Any = None, index: Any = None) -> None:
        each = [*each]
        if not each or len({jax.tree.structure(one) for one in each}) > 1:
            raise ValueError(f"PerMember: data of one kind for each member was expected, and {short(each)} came.")
        counts = [len(jax.tree.leaves(one)[0]) for one in each]
        rows = [np.where(np.arange(max(counts)) < n, np.arange(max(counts)), 0) for n in counts]
        data = jax.tree.map(lambda *arrays: np.stack([np.asarray(v)[r] for v, r in zip(arrays, rows)], 1), *each)
        if len({*counts}) > 1:
            there = (np.arange(max(counts))[:, None] < np.array(counts)).astype(np.float32)
            weight = there if weight is None else there * np.asarray(weight, np.float32).reshape(max(counts), -1)
        self.__dict__.update(data=data, weight=weight, index=index)

    def axes(self) -> list[Any]:
        """Of each leaf the axis that is the members', or None."""
        shared = jax.tree.map(lambda v: 1 if np.ndim(v) > 1 else -1, (self.weight, self.index))
        marked = remake(self, {"data": jax.tree.map(lambda v: 1, self.data), "weight": shared[0], "index": shared[1]})
        return [None if axis < 0 else axis for axis in jax.tree.leaves(marked)]

    def one(self, view: Any) -> Any:
        """What has been cut to one member's, as that member's batch."""
        batch = as_batch(view, self.data)
        weights = [v for v in (batch.weight, self.weight) if v is not None]
        changes: dict[str, Any] = {"index": self.index} if batch.index is None else {}
        if weights:
            changes["weight"] = weights[0] if len(weights) == 1 else weights[0] * weights[1].astype(weights[0].dtype)
        return remake(batch, changes)


def per_member(batch: Any) -> PerMember:
    """A batch whose arrays have the members along their second axis."""
    return remake(PerMember([np.zeros(1)]), {"data": batch, "weight": None})


def cut(inputs: Any) -> tuple[list[Any], list[Any], Callable[[Any, list[Any]], Any]]:
    """A tree's leaves, the axis of each that is the members' (or None), and what makes a member's tree of its leaves."""
    is_data = lambda v: isinstance(v, PerMember)
    leaves, structure = jax.tree.flatten(inputs)
    axes: list[Any] = []
    for node in jax.tree.leaves(inputs, is_leaf=is_data):
        axes += node.axes() if is_data(node) else [None]

    def build(view: Any, leaves: list[Any]) -> Any:
        return jax.tree.map(lambda v: v.one(view) if is_data(v) else v, structure.unflatten(leaves), is_leaf=is_data)

    return leaves, axes, build
