"""`summary`: every leaf of a component in a table, with its shape, type, role and size."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fulmen.leaves import BUFFER, FROZEN, OTHER, PARAMETER, components, is_array, leaves
from fulmen.looking.text import Picture, describe_bytes, faint, html_page, html_table, render_table
from fulmen.train.state import State
from fulmen.verbs import init

__all__ = ["Row", "Summary", "summary"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A leaf of a component.

    Attributes:
        path: such as `"model.hidden.weight"`.
        type: the name of the component that it belongs to.
        shape: its shape.
        dtype: its type of numbers, as a string.
        role: `"parameter"`, `"buffer"`, `"frozen"` or `"hyperparameter"`.
        bytes: its size in memory.
        value: the number, of a hyperparameter that is one; else None.
    """

    path: str
    type: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    bytes: int
    value: float | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class Summary(Picture):
    """What a component holds; prints as a table.

    Attributes:
        name: of the component's type.
        rows: a `Row` per leaf, in the tree's order.
        drawn: whether all arrays are there; otherwise their shapes are those that `init` would draw.
        optimizer_bytes: the size of the optimizer state, of a `State`; else None.
    """

    def __init__(self, name: str, rows: list[Row], drawn: bool, optimizer_bytes: int | None = None) -> None:
        self.name, self.rows, self.drawn, self.optimizer_bytes = name, rows, drawn, optimizer_bytes

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(row.size for row in self.rows if row.role == PARAMETER)

    @property
    def bytes(self) -> int:
        """The size of all rows together."""
        return sum(row.bytes for row in self.rows)

    def _columns(self) -> list[str]:
        return ["path", "type", "shape", "dtype", "role", *(["value>"] if self._has_values else []), "bytes>"]

    @property
    def _has_values(self) -> bool:
        return any(row.value is not None for row in self.rows)

    def _cells(self) -> tuple[list[list[str]], list[list[str]]]:
        """The table's rows, and the totals below them."""
        rows, totals = [], []
        for row in self.rows:
            value = ["" if row.value is None else f"{row.value:.6g}"] if self._has_values else []
            shape = f"({', '.join(map(str, row.shape))}{',' if len(row.shape) == 1 else ''})"
            rows.append([row.path, row.type, shape, row.dtype, row.role, *value, describe_bytes(row.bytes)])
        gap = [""] if self._has_values else []
        for role, many in _TOTALS.items():
            some = [row for row in self.rows if row.role == role]
            if some or role == PARAMETER:
                size, count = sum(r.bytes for r in some), sum(r.size for r in some)
                totals.append([f"{count:,} {role if count == 1 else many}", "", "", "", "", *gap, describe_bytes(size)])
        if self.optimizer_bytes is not None:
            totals.append(["optimizer state", "", "", "", "", *gap, describe_bytes(self.optimizer_bytes)])
        totals.append(["total", "", "", "", "", *gap, describe_bytes(self.bytes + (self.optimizer_bytes or 0))])
        return rows, totals

    def _title(self) -> str:
        return self.name if self.drawn else f"{self.name} (a description: its arrays are not drawn yet)"

    def _text(self) -> str:
        return f"{self._title()}\n{render_table(self._columns(), *self._cells())}"

    def _repr_html_(self) -> str:
        rows, totals = ([[html.escape(cell) for cell in row] for row in part] for part in self._cells())
        for row, cells in zip(self.rows, rows, strict=True):
            cells[4] = faint(row.role) if row.role != PARAMETER else cells[4]
        return html_page(html.escape(self._title()), html_table(self._columns(), rows, totals))


_TOTALS = {PARAMETER: "parameters", BUFFER: "in buffers", FROZEN: "frozen", OTHER: "hyperparameters"}


def summary(component: Any) -> Summary:
    """Every leaf of a component in a table: path, type, shape, dtype, role, bytes, and the totals.

    Args:
        component: a component or a `State`. Of a description without arrays, shapes are found without drawing any.

    Returns:
        An object that prints as a table, with `rows`, `parameters` and `bytes` as data.

    >>> fm.summary(fm.models.Dense(3, 2)).parameters
    8
    """
    if isinstance(component, State):
        size = sum(_bytes(leaf) for leaf in jax.tree.leaves(component.optimizer_state))
        table = summary(component.system)
        return Summary(table.name, table.rows, table.drawn, size)
    component, drawn = described(component)
    owners = {path: type(part).__name__ for path, part in components(component)}
    rows = []
    for leaf in leaves(component):
        shape = tuple(getattr(leaf.value, "shape", ()))
        owner = _owner(leaf.path, owners) or type(component).__name__
        rows.append(
            Row(leaf.path, owner, shape, _dtype(leaf.value), leaf.role, _bytes(leaf.value), _value(leaf.value, leaf.role))
        )
    return Summary(type(component).__name__, rows, drawn)


def described(component: Any) -> tuple[Any, bool]:
    """The component with shapes in the place of arrays that are not drawn yet, and whether all were there."""
    if not init.has(component, None):
        return component, True
    known: dict[str, Any] = {}

    def draw(key: Any) -> dict[int, Any]:
        known["flat"], known["structure"] = jax.tree_util.tree_flatten_with_path(init(component, key))
        return {i: leaf for i, (_, leaf) in enumerate(known["flat"]) if is_array(leaf)}

    drawn = jax.eval_shape(draw, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    here = dict(jax.tree_util.tree_flatten_with_path(component)[0])
    # What `init` gave that is no array is as it is; its arrays are tracers, of which the shapes are kept.
    filled = [here.get(path, drawn.get(i, leaf)) for i, (path, leaf) in enumerate(known["flat"])]
    complete = all(path in here for i, (path, _) in enumerate(known["flat"]) if i in drawn)
    return known["structure"].unflatten(filled), complete


def _owner(path: str, owners: dict[str, str]) -> str:
    names = path.split("[")[0].split(".")
    return next((owners[p] for n in range(len(names), -1, -1) if (p := ".".join(names[:n])) in owners), "")


def _dtype(value: Any) -> str:
    if is_array(value):
        return str(value.dtype)
    try:
        return str(jnp.result_type(value))
    except TypeError:  # a leaf of a foreign module that is no array
        return type(value).__name__


def _bytes(value: Any) -> int:
    if not is_array(value):
        return jnp.result_type(value).itemsize if isinstance(value, int | float | complex) else 0
    return math.prod(value.shape) * value.dtype.itemsize


def _value(value: Any, role: str) -> float | None:
    """A hyperparameter's number, where it is known."""
    if role != OTHER or isinstance(value, jax.ShapeDtypeStruct | Tracer) or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
