"""`PerMember`: separate data for each member of a population, and how a batch is split into the members' batches."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from fulmen.core import Batch, remake, short
from fulmen.core.verbs import as_batch


class PerMember(Batch):
    """Separate data for each member: examples along the first axis, as in all data, and members along the second.

    Every member has the same number of examples in a batch.

    Args:
        each: the members' data, in order: arrays, tuples or dicts of arrays, or batches, all of the same structure. If members
            have different numbers of examples, the first example of the shorter ones is repeated with weight 0. It counts in
            no mean over examples, but in operations across examples, such as the statistics of a `BatchNorm`.
        weight: `(n,)` or `(n, members)`, multiplied by the weights in the data.

    Raises:
        ValueError: if there is no data, or if its structure differs between members.

    >>> data = fm.systems.PerMember([(jnp.zeros((5, 4)), jnp.zeros(5, int)), (jnp.ones((4, 4)), jnp.ones(4, int))])
    >>> data.data[0].shape, data.weight.shape
    ((5, 2, 4), (5, 2))
    """

    attackable: ClassVar[tuple[str, ...]] = ()

    data: jax.Array | tuple[Any, ...] | dict[str, Any] | Batch

    def __init__(self, each: Any, *, weight: Any = None, index: Any = None) -> None:
        each = [*each]
        if not each or len({jax.tree.structure(one) for one in each}) > 1:
            raise ValueError(
                f"PerMember must get a list with data of the same structure for each member, got {short(each)}."
            )
        counts = [len(jax.tree.leaves(one)[0]) for one in each]
        rows = [np.where(np.arange(max(counts)) < n, np.arange(max(counts)), 0) for n in counts]
        data = jax.tree.map(lambda *arrays: np.stack([np.asarray(v)[r] for v, r in zip(arrays, rows)], 1), *each)
        if len({*counts}) > 1:
            there = (np.arange(max(counts))[:, None] < np.array(counts)).astype(np.float32)
            weight = there if weight is None else there * np.asarray(weight, np.float32).reshape(max(counts), -1)
        self.data, self.weight, self.index = data, weight, index

    def axes(self) -> list[Any]:
        """The members' axis of each leaf, or None."""
        shared = jax.tree.map(lambda v: 1 if np.ndim(v) > 1 else -1, (self.weight, self.index))
        marked = remake(self, {"data": jax.tree.map(lambda v: 1, self.data), "weight": shared[0], "index": shared[1]})
        return [None if axis < 0 else axis for axis in jax.tree.leaves(marked)]

    def one(self, view: Any) -> Any:
        """The batch of one member, from a tree whose arrays are that member's; `view` is the member."""
        batch = as_batch(view, self.data)
        weights = [v for v in (batch.weight, self.weight) if v is not None]
        changes: dict[str, Any] = {"index": self.index} if batch.index is None else {}
        if weights:
            changes["weight"] = weights[0] if len(weights) == 1 else weights[0] * weights[1].astype(weights[0].dtype)
        return remake(batch, changes)


def per_member(batch: Any) -> PerMember:
    """A batch whose arrays have the members along the second axis, as a `PerMember`."""
    return remake(PerMember([np.zeros(1)]), {"data": batch, "weight": None})


def cut(inputs: Any) -> tuple[list[Any], list[Any], Callable[[Any, list[Any]], Any]]:
    """A tree's leaves, the members' axis of each (or None), and `build(member, leaves)`, which returns a member's tree."""
    is_data = lambda v: isinstance(v, PerMember)
    leaves, structure = jax.tree.flatten(inputs)
    axes: list[Any] = []
    for node in jax.tree.leaves(inputs, is_leaf=is_data):
        axes += node.axes() if is_data(node) else [None]

    def build(view: Any, leaves: list[Any]) -> Any:
        return jax.tree.map(lambda v: v.one(view) if is_data(v) else v, structure.unflatten(leaves), is_leaf=is_data)

    return leaves, axes, build


def pooled(batch: Any, n: int) -> Any:
    """Shared data unchanged; the examples of all `n` members of a `PerMember`, along the first axis."""
    if not isinstance(batch, PerMember):
        return batch
    if {np.shape(v)[1:2] for v in jax.tree.leaves(batch.data)} != {(n,)}:
        raise ValueError(f"PerMember must have data for each of the {n} members, got {short(batch)}.")
    return jax.tree.map(lambda v: np.asarray(v).reshape(-1, *np.shape(v)[2:]), batch.data)
