"""`summary`: every leaf of a component with its shape, type, role and size, and what a step costs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding

from fulmen.core import STATIC, State
from fulmen.core.leaves import OTHER, PARAMETER, Leaf, branches, components, described, is_array, leaves
from fulmen.core.paths import covers, nearest_above
from fulmen.core.verbs import summary
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.summary_table import Part, Row, Summary


@dispatch
def summary(component: object, data=None, *, batch_size=None, optimizer=None, lr=None, **options):
    state = component if isinstance(component, State) else None
    given = [name for name, value in (("optimizer", optimizer), ("lr", lr)) if value is not None] + list(options)
    if given and (data is None or state is not None):
        why = "a step needs data=" if data is None else "a state has its optimizer already"
        raise TypeError(f"summary: {', '.join(given)} cannot be used here: {why}.")
    spent, remark = [], ""
    if data is not None:
        from fulmen.inspect.cost import costs  # imports much of jax

        spent, dry, remark = costs(component, data, batch_size, optimizer, lr, options)
        state = state or dry
    optimizer_arrays = None if state is None else jax.tree.leaves(state.optimizer_state)
    held = None if optimizer_arrays is None else sum(map(_bytes, optimizer_arrays))
    held_by_each = sum(map(_device_bytes, optimizer_arrays or ()))
    component, drawn = described(component.system if isinstance(component, State) else component)
    owners = {path: type(part).__name__ for path, part in components(component)}
    rows = [_row(leaf, nearest_above(leaf.path, owners) or type(component).__name__) for leaf in leaves(component)]
    parts = [_part(path, part, rows) for path, part in branches(component, lambda leaf: leaf.role != OTHER).items()]
    return Summary(type(component).__name__, rows, drawn, parts, spent, held, remark, held_by_each)


def _row(leaf: Leaf, owner: str) -> Row:
    shape, value = tuple(getattr(leaf.value, "shape", ())), leaf.value
    known = _number(value, leaf.role), _layout(value), _device_bytes(value)
    return Row(leaf.path, owner, shape, _dtype(value), leaf.role, _bytes(value), *known)


def _sharding(value: Any) -> NamedSharding | None:
    """The sharding of an array over several devices, or None."""
    found = getattr(value, "sharding", None)
    return found if isinstance(found, NamedSharding) and found.mesh.size > 1 else None


def _layout(value: Any) -> str | None:
    found = _sharding(value)
    if found is None:
        return None
    return ", ".join("+".join(axis) if isinstance(axis, tuple) else str(axis) for axis in found.spec) or "replicated"


def _device_bytes(value: Any) -> int:
    found = _sharding(value)
    return _bytes(value) if found is None else math.prod(found.shard_shape(value.shape)) * value.dtype.itemsize


def _part(path: str, part: Any, rows: list[Row]) -> Part:
    inside = [row for row in rows if covers(path, row.path)]
    trained = sum(row.size for row in inside if row.role == PARAMETER)
    return Part(path, type(part).__name__, trained, sum(row.bytes for row in inside))


def _dtype(value: Any) -> str:
    try:
        return str(value.dtype if is_array(value) else jnp.result_type(value))
    except TypeError:  # a leaf of another library's module that is not an array
        return type(value).__name__


def _bytes(value: Any) -> int:
    if is_array(value):
        return math.prod(value.shape) * value.dtype.itemsize
    return jnp.result_type(value).itemsize if isinstance(value, int | float | complex) else 0


def _number(value: Any, role: str) -> float | None:
    """The value of a hyperparameter that is one known number."""
    if isinstance(value, bool | jax.ShapeDtypeStruct | Tracer):
        return None
    if role not in (OTHER, STATIC) or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
