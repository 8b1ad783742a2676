"""Batches: what a step is done on, as types, so that data is tied to systems by dispatch."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from fulmen.core.tree import Tree
from fulmen.core.verbs import show

__all__ = ["Attacked", "Batch", "Labeled", "PartBatches", "Unlabeled"]


class Batch(Tree):
    """Examples along the leading axis of every array. Subclass it for inputs of one's own.

    Args:
        weight: `(n,)`, how much each example counts in means; None counts all alike. An example of weight 0 is padding.
        index: `(n,)` integers, which example of the data set each one is; randomness that must belong to an example and
            not to its place in the batch is drawn by it.

    **Extending.** A subclass whose inputs have other names says which of its fields an attack may change:
    `attackable: ClassVar = ("image", "text")`. Each is then kept in the attack's region by itself.
    """

    attackable: ClassVar[tuple[str, ...]] = ("x",)

    weight: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    index: jax.Array | None = dataclasses.field(default=None, kw_only=True)

    def __len__(self) -> int:
        return jax.tree.leaves(self)[0].shape[0]

    def __getitem__(self, rows: Any) -> Any:
        """The batch of some of the examples."""
        return jax.tree.map(lambda v: v[rows], self)

    def _repr_html_(self) -> str:
        return show(self)


class Labeled(Batch):
    """Inputs and targets.

    Args:
        x: `(n, …)`.
        y: `(n,)` integer labels, `(n, classes)` probabilities, or `(n, …)` numbers to be predicted.
    """

    x: jax.Array
    y: jax.Array


class Unlabeled(Batch):
    """Inputs alone.

    Args:
        x: `(n, …)`.
    """

    x: jax.Array


class Attacked(Batch):
    """A batch that an attack has been over. Its other attributes are the attacked batch's.

    Args:
        batch: the attacked batch, of the type that it had.
        clean: the batch as it was.
    """

    batch: Batch
    clean: Batch

    def __init__(self, batch: Any, clean: Any) -> None:
        self.__dict__.update(batch=batch, clean=clean, weight=batch.weight, index=None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "batch" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["batch"], name)

    def __len__(self) -> int:
        return len(self.batch)


class PartBatches(Batch):
    """A batch for each part of a system: its own data, or what its augmentation made of the batch.

    Raw data that is a dict by the names of the system's parts, `{"generator": z, "critic": (x, y)}`, becomes one; each part's is
    data of any kind, such as a loader. A part's batch is read by its name, `batch.generator.x`, and where that is a path from
    `batch.parts`.

    Args:
        batch: what the parts' batches were made of; None where the data gave each its own.
        parts: from a part's path to that part's batch; of equal length.

    >>> class Pair(fm.System):
    ...     one: fm.Model
    ...     two: fm.Model
    >>> pair = Pair(fm.models.Flatten(), fm.models.Flatten())
    >>> fm.as_batch(pair, {"one": jnp.ones((5, 2)), "two": (jnp.ones((5, 3)), jnp.arange(5))}).two.y
    Array([0, 1, 2, 3, 4], dtype=int32)
    """

    batch: Batch | None
    parts: dict[str, Batch]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())) if self.batch is None else self.batch)

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("parts", {})
        if name not in parts:
            raise AttributeError(f"the batch has parts of its own for {', '.join(parts)}, and none called {name!r}.")
        return parts[name]
