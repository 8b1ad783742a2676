"""From raw data to batches: the default of `as_batch`, by the type of the data."""

from typing import Any

import jax.numpy as jnp

from fulmen.core import Batch, Labeled, Model, PartBatches, System, Unlabeled, keeps_rows, named_parts
from fulmen.core.border import check_array, named_arrays
from fulmen.core.verbs import as_batch
from fulmen.dispatching.registry import dispatch, verb

__all__: list[str] = []  # the verb is private


@dispatch
@keeps_rows
def as_batch(component: object, raw):
    return to_batch(raw, component)


@verb(delegates=False)
def to_batch(raw, component):
    """The batch that is made of raw data for a component without an `as_batch` method for it.

    Args:
        raw: an array, a tuple, a dict or a `Batch`.
        component: the component that takes the batch.
    """


@dispatch
def to_batch(raw: object, component):
    _check_arrays(raw)
    return Unlabeled(raw)  # type: ignore[arg-type]


@dispatch
def to_batch(raw: int | float, component):
    return Unlabeled(raw)  # type: ignore[arg-type] - a placeholder for a batch that no method reads


@dispatch
def to_batch(raw: Batch, component):
    return raw


@dispatch
def to_batch(raw: tuple | list, component):
    if len(raw) not in (2, 3):
        raise ValueError(
            f"a batch must be an array, a pair (x, y) or a triple (x, y, weight), got {len(raw)} arrays. For other data, overload "
            f"`as_batch(component: {type(component).__name__}, raw: tuple)`."
        )
    _check_arrays(raw)
    if len(raw) == 2:
        return Labeled(*raw)
    x, y, weight = raw
    if jnp.issubdtype(weight.dtype, jnp.integer):
        raise TypeError(
            f"weight, the third array, must be floating-point, got {weight.dtype}. Integer weights: weight.astype(np.float32), or by "
            "name dict(x=…, y=…, weight=…). Two inputs and labels need a batch type: class Pair(fm.Batch) with a field for each."
        )
    return Labeled(x, y, weight=weight)


@dispatch
def to_batch(raw: dict, component):
    inside = named_parts(component, Model, System) if isinstance(component, System) else {}
    if raw and set(raw) <= set(inside):
        return PartBatches(None, {name: as_batch(inside[name], own) for name, own in raw.items()})
    kind = Labeled if "y" in raw else Unlabeled
    allowed = {"x", "y", "weight", "index"}
    if "x" not in raw or not set(raw) <= allowed:
        parts = f", or an entry for each part of {type(component).__name__}: {', '.join(inside)}" if inside else ""
        raise ValueError(
            f"a dict of data must have x, and may have y, weight and index{parts}; got {', '.join(map(str, raw))}. For "
            f"other data, overload `as_batch(component: {type(component).__name__}, raw: dict)`, or give a custom `fm.Batch`."
        )
    _check_arrays(raw)
    return kind(**raw)


def _check_arrays(raw: Any) -> None:
    for name, value in named_arrays(raw):
        check_array(name, value)
