"""Types of batches, so that verbs dispatch on the kind of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.foreign_arrays import as_array, require_numbers
from fulmen.core.tree import Tree, data_fields, remake
from fulmen.core.verbs import show


class Batch(Tree):
    """Examples along the leading axis of every array. Subclass it for custom inputs.

    Args:
        weight: `(n,)`, the weight of each example in means; None weights all alike. An example of weight 0 is padding.
        index: `(n,)` integers, each example's number in the data set; it determines randomness that must not depend on the
            position in the batch.

    **Extending.** A subclass whose inputs have other names declares the fields that an attack may change:
    `attackable: ClassVar = ("image", "text")`. Each is kept in the attack's region separately.
    """

    attackable: ClassVar[tuple[str, ...]] = ("x",)
    repeats_examples: ClassVar[bool] = False  # if so, for training only: an evaluation counts each example once

    weight: jax.Array | None = dataclasses.field(default=None, kw_only=True)
    index: jax.Array | None = dataclasses.field(default=None, kw_only=True)

    def __len__(self) -> int:
        return jax.tree.leaves(self)[0].shape[0]

    def __iter__(self) -> Iterator[Any]:
        names = ", ".join(f"batch.{name}" for name in data_fields(type(self)) if name not in ("weight", "index"))
        raise TypeError(f"a {type(self).__name__} batch cannot be unpacked or iterated over; write {names}.")

    def __getitem__(self, rows: Any) -> Any:
        """The batch of some of the examples."""
        return jax.tree.map(lambda v: v[rows], self)

    def _inputs(self) -> Any:
        names = type(self).attackable
        found = {name: getattr(self, name, None) for name in names}
        missing = [name for name, value in found.items() if value is None]
        if missing or not names:
            raise TypeError(
                f"batch must have an `{missing[0] if missing else 'x'}`, which the attack changes, got {self!r}. "
                "A batch type declares which of its fields may be attacked: `attackable: ClassVar = ('image', 'text')`."
            )
        return found[names[0]] if len(names) == 1 else found

    def _each(self, function: Callable[..., Any], *others: Any) -> Any:
        return function(self, *others)

    def _repr_html_(self) -> str:
        return show(self)


class Labeled(Batch):
    """Inputs and targets.

    Args:
        x: `(n, …)`.
        y: `(n,)` integer labels, `(n, classes)` probabilities, or `(n, …)` numbers to predict.
    """

    x: jax.Array
    y: jax.Array

    @classmethod
    def from_frame(cls, frame: Any, y: str | list[str], *, weight: str | None = None) -> Labeled:
        """The batch of a data frame of pandas or polars: some columns as targets, and all others as inputs.

        Args:
            frame: the data frame; all columns are numbers.
            y: the column of the targets, `(n,)`, or a list of columns, `(n, k)`. Integers are classes or labels.
            weight: the column with the weight of each example, or None.

        Returns:
            A `Labeled`, with x `(n, columns)`, y and weight in JAX's types.

        Raises:
            KeyError: for a column that the frame does not have.
            TypeError: for a column that is not numbers.
        """
        given = [y] if isinstance(y, str) else [*y]
        columns = {str(column): as_array(str(column), frame[column]) for column in frame.columns}
        for name in [*given, *([] if weight is None else [weight])]:
            if name not in columns:
                raise KeyError(f"the frame has no column {name!r}; it has: {', '.join(columns)}.")
        for name, values in columns.items():
            require_numbers(f"column {name!r}", values)
        as_float = lambda values: values.astype(jax.dtypes.canonicalize_dtype(float))
        targets = [v if v.dtype.kind in "biu" else as_float(v) for v in (columns[name] for name in given)]
        inputs = [as_float(values) for name, values in columns.items() if name not in given and name != weight]
        weights = None if weight is None else as_float(columns[weight])
        arrays: tuple[Any, Any] = np.stack(inputs, 1), targets[0] if isinstance(y, str) else np.stack(targets, 1)
        return cls(*arrays, weight=weights)


class Unlabeled(Batch):
    """Inputs without targets.

    Args:
        x: `(n, …)`.
    """

    x: jax.Array


class Attacked(Batch):
    """An attacked batch, which has the attributes of the batch in it.

    Args:
        batch: the attacked batch, of the same type as the clean one.
        clean: the batch before the attack.
    """

    batch: Batch
    clean: Batch

    def __init__(self, batch: Any, clean: Any) -> None:
        self.batch, self.clean, self.weight = batch, clean, batch.weight

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "batch" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["batch"], name)

    def __len__(self) -> int:
        return len(self.batch)

    def _inputs(self) -> Any:
        return self.batch._inputs()

    def _each(self, function: Callable[..., Any], *others: Any) -> Attacked:
        return Attacked(self.batch._each(function, *others), self.clean)


class PartBatches(Batch):
    """A batch for each part of a system: separate data, or the same data augmented for each.

    Raw data that is a dict by the names of the system's parts, `{"generator": z, "critic": (x, y)}`, becomes one. A part's
    batch is an attribute, as in `batch.generator.x`; for a path as the name use `batch.parts`.

    Args:
        batch: the batch that the parts' batches were made of; None if each part has its own data.
        parts: the parts' batches by path; of equal length.

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
            raise AttributeError(f"the batch has no part {name!r}; its parts are: {', '.join(parts)}.")
        return parts[name]

    def _inputs(self) -> dict[str, Any]:
        whole = {} if self.batch is None else {"": self.batch._inputs()}
        return {**whole, **{name: part._inputs() for name, part in self.parts.items()}}

    def _each(self, function: Callable[..., Any], *others: Any) -> PartBatches:
        of = lambda batch, name: batch and batch._each(function, *(other[name] for other in others))
        return remake(self, {"batch": of(self.batch, ""), "parts": {n: of(part, n) for n, part in self.parts.items()}})


# The contents of batches


def inner(batch: Any) -> Any:
    """The batch for the system inside a defence: the attacked one, if there is one."""
    return batch.batch if isinstance(batch, Attacked) else batch


def parts_of(batch: Any) -> dict[str, Batch]:
    """The batches of a system's parts by name; empty if all parts share the batch."""
    return batch.parts if isinstance(batch, PartBatches) else {}


def is_unlabeled(batch: Any) -> bool:
    """Whether the data had no targets, before attacks and augmentations."""
    while isinstance(batch, Attacked | PartBatches):
        batch = batch.clean if isinstance(batch, Attacked) else batch.batch
    return isinstance(batch, Unlabeled)


def inputs(batch: Any) -> Any:
    """The values that an attack changes: the `attackable` fields of the batch, or of the batches in it."""
    return batch._inputs()


def with_inputs(batch: Any, x: Any) -> Any:
    """The batch with other inputs, in the structure that `inputs` returns."""

    def change(batch: Any, x: Any) -> Any:
        names = type(batch).attackable
        return remake(batch, {names[0]: x} if len(names) == 1 else x)

    return batch._each(change, x)


def with_labels(batch: Any, y: Any) -> Any:
    """The batch with other labels."""
    return batch._each(lambda batch: remake(batch, {"y": y}))


def index(batch: Any) -> jax.Array:
    """The number that determines each example's randomness: its `index`, or else its position in the batch."""
    while inner(batch) is not batch:
        batch = inner(batch)
    n = jax.tree.leaves(inputs(batch))[0].shape[0]
    return jnp.arange(n, dtype=jnp.uint32) if batch.index is None else jnp.asarray(batch.index).astype(jnp.uint32)


def _everywhere(batch: Any, change: Callable[[Any], Mapping[str, Any]]) -> Any:
    """The batch with the fields that `change` returns for it, and so for the batches in it."""
    is_batch = lambda v: isinstance(v, Batch)
    inside = lambda v: _everywhere(v, change) if is_batch(v) else v
    fields = {name: jax.tree.map(inside, getattr(batch, name), is_leaf=is_batch) for name in data_fields(type(batch))}
    return remake(batch, {**fields, **change(batch)})


def numbered(batch: Any, rows: Any) -> Any:
    """The batch, and the batches in it, with `rows` as the index of the examples where they have none."""
    return _everywhere(batch, lambda batch: {"index": rows} if batch.index is None else {})


def batches_inside(batch: Any) -> list[Batch]:
    """The batches directly inside a batch."""
    is_inside = lambda v: isinstance(v, Batch) and v is not batch
    return [v for v in jax.tree.leaves(batch, is_leaf=is_inside) if isinstance(v, Batch)]


def unweighted(batch: Any) -> Any:
    """The batch with weight 1 for every example: an attack on an example does not depend on its weight."""
    return _everywhere(batch, lambda batch: {} if batch.weight is None else {"weight": jnp.ones_like(batch.weight)})
