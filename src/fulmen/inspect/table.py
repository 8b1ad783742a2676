"""`summary`: every leaf of a component in a table, with its shape, type, role and size."""

from __future__ import annotations

import dataclasses
import html
import math
import shutil
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fulmen.core.component import Component, named_parts
from fulmen.core.fields import STATIC
from fulmen.core.leaves import BUFFER, FROZEN, OTHER, PARAMETER, components, is_array, leaves
from fulmen.core.state import State
from fulmen.inspect.abstract import described
from fulmen.inspect.text import Picture, align, describe_bytes, describe_flops, faint, fold, html_page, html_table

if TYPE_CHECKING:
    from fulmen.inspect.cost import Cost

__all__ = ["Part", "Row", "Summary", "summary"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A leaf of a component.

    Attributes:
        path: such as `"model.hidden.weight"`.
        type: the name of the component that it belongs to.
        shape: its shape.
        dtype: its type of numbers, as a string.
        role: `"parameter"`, `"buffer"`, `"frozen"`, `"hyperparameter"`, or `"static"` in another library's module.
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


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a component with all that is below it.

    Attributes:
        path: such as `"model.blocks"`.
        type: the name of its type.
        parameters: how many numbers of it are trained.
        bytes: the size of all its leaves.
    """

    path: str
    type: str
    parameters: int
    bytes: int


class Summary(Picture):
    """What a component holds, and what its step costs; prints as tables.

    Attributes:
        name: of the component's type.
        rows: a `Row` per leaf, in the tree's order.
        drawn: whether all arrays are there; otherwise their shapes are those that `init` would draw.
        parts: a `Part` for each part on the highest level on which there are several.
        costs: a `Cost` for the training step and one for an evaluation (or a forward pass); empty without data.
        optimizer_bytes: the size of the optimizer state, of a `State` or where there was data; else None.
        remark: what else is to be said.
    """

    def __init__(
        self,
        name: str,
        rows: list[Row],
        drawn: bool,
        parts: list[Part],
        costs: list[Cost],
        optimizer_bytes: int | None,
        remark: str,
    ) -> None:
        self.name, self.rows, self.drawn, self.parts = name, rows, drawn, parts
        self.costs, self.optimizer_bytes, self.remark = costs, optimizer_bytes, remark

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(row.size for row in self.rows if row.role == PARAMETER)

    @property
    def bytes(self) -> int:
        """The size of all rows together."""
        return sum(row.bytes for row in self.rows)

    def _title(self) -> str:
        return self.name if self.drawn else f"{self.name} (a description: its arrays are not drawn yet)"

    def _leaves(self) -> Cells:
        valued = any(row.value is not None for row in self.rows)
        cells = [["path", "type", "shape", "dtype", "role", *["value"] * valued, "bytes"]]
        for row in self.rows:
            shape = f"({', '.join(map(str, row.shape))}{',' if len(row.shape) == 1 else ''})"
            cells.append(
                [row.path, row.type, shape, row.dtype, row.role, *[_number(row)] * valued, describe_bytes(row.bytes)]
            )
        return cells

    def _totals(self) -> Cells:
        cells = [["in all", "bytes"]]
        for role, many in _TOTALS.items():
            some = [row for row in self.rows if row.role == role]
            if some or role == PARAMETER:
                size, n = sum(r.bytes for r in some), sum(r.size for r in some)
                cells.append([f"{n:,} {role if n == 1 else many}", describe_bytes(size)])
        if self.optimizer_bytes is not None:
            cells.append(["optimizer state", describe_bytes(self.optimizer_bytes)])
        return [*cells, ["total", describe_bytes(self.bytes + (self.optimizer_bytes or 0))]]

    def _parts(self) -> Cells:
        cells = [[p.path, p.type, f"{p.parameters:,}", describe_bytes(p.bytes)] for p in self.parts]
        return [["part", "type", "parameters", "bytes"], *cells] if cells else []

    def _costs(self) -> Cells:
        cells = []
        for cost in self.costs:
            name = f"{cost.name}, {cost.examples} example{'s' * (cost.examples != 1)}"
            cells.append([name, describe_flops(cost.flops), describe_bytes(cost.arguments), describe_bytes(cost.temporary)])
        return [["compiled", "operations", "arguments", "temporary"], *cells] if cells else []

    def _text(self) -> str:
        width = max(shutil.get_terminal_size((120, 24)).columns, 40)
        rows = align(cells := self._leaves(), right=[len(cells[0]) - 1])
        if max(map(len, rows.splitlines())) > width:
            rows = self._by_owner()
        tables = [align(self._totals(), [1]), align(self._parts(), [2, 3]), align(self._costs(), [1, 2, 3]), self.remark]
        sections = [f"{self._title()}\n{rows}", *filter(None, tables)]
        return "\n".join(fold(line, width) for line in "\n\n".join(sections).splitlines())

    def _by_owner(self) -> str:
        """The leaves below the names of what they belong to, which takes less width."""
        owners = [row.path.rpartition(".")[0] for row in self.rows]
        cells = []
        for row, owner in zip(self.rows, owners, strict=True):
            name = row.path[len(owner) + 1 :] if owner else row.path
            shape = f"{row.dtype}[{', '.join(map(str, row.shape))}]"
            cells.append([f"  {name}", shape, row.role, _number(row) or describe_bytes(row.bytes)])
        lines = align(cells, right=[3]).splitlines() if cells else []
        found = []
        for i, (row, line) in enumerate(zip(self.rows, lines, strict=True)):
            if owners[i] and (i == 0 or owners[i] != owners[i - 1]):
                found.append(f"{owners[i]}: {row.type}")
            found.append(line if owners[i] else line[2:])
        return "\n".join(found)

    def _repr_html_(self) -> str:
        tables = [(self._totals(), [1]), (self._parts(), [2, 3]), (self._costs(), [1, 2, 3])]
        body = []
        for (head, *cells), right in ((cells, right) for cells, right in tables if cells):
            columns = [f"{name}>" if i in right else name for i, name in enumerate(head)]
            body.append(html_table(columns, [[*map(html.escape, row)] for row in cells]))
        cells = self._leaves()
        # As text: a cell each would make megabytes of a large model.
        text = f'<div style="white-space:pre">{html.escape(align(cells, right=[len(cells[0]) - 1]))}</div>'
        shown = " open" if len(self.rows) <= _FEW else ""
        n = len(self.rows)
        heading = f'<summary style="cursor:pointer">{n} lea{"f" if n == 1 else "ves"}</summary>'
        body += [faint(self.remark), f"<details{shown}>{heading}{text}</details>"]
        return html_page(html.escape(self._title()), '<div style="height:0.7em"></div>'.join(filter(None, body)))


Cells = list[list[str]]
_FEW = 30
_TOTALS = {PARAMETER: "parameters", BUFFER: "in buffers", FROZEN: "frozen", OTHER: "hyperparameters"}


def summary(
    component: Any,
    data: Any = None,
    *,
    batch_size: int | None = None,
    optimizer: Any = None,
    lr: Any = None,
    **options: Any,
) -> Summary:
    """Every leaf of a component in a table, the totals, and with data what its training step and an evaluation cost.

    Nothing is drawn, computed or allocated, however large the model: of a description without arrays the shapes that `init`
    would draw are taken, and the step is compiled for shapes alone. Operations and memory are those of XLA's own analysis of
    the compiled programs, for the device at hand, the rounds of a loop each counted.

    Args:
        component: a component or a `State`.
        data: as for `fit`; `jax.ShapeDtypeStruct((n, …), dtype)` will do in an array's place.
        batch_size: examples in a batch; None is the state's, or 32, and no more than the data has.
        optimizer, lr, **options: as for `setup`, for a component. Without an optimizer anywhere, the step is one of plain
            gradient descent.

    Returns:
        An object that prints as tables, with `rows`, `parts` and `costs` as data. Sizes are in bytes, of which 1000 are a kB;
        a cost's `flops` are floating-point operations of one step, a multiplication and an addition being two.

    >>> fm.summary(fm.models.Dense(3, 2)).parameters
    8
    >>> batch = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    >>> print(fm.summary(fm.models.Dense(3, 2, use_bias=False), batch))
    Dense (a description: its arrays are not drawn yet)
    path    type   shape   dtype    role       bytes
    weight  Dense  (3, 2)  float32  parameter   24 B
    <BLANKLINE>
    in all        bytes
    6 parameters   24 B
    total          24 B
    <BLANKLINE>
    compiled                  operations  arguments  temporary
    forward pass, 5 examples     60 FLOP       84 B       40 B
    """
    given = [name for name, value in (("optimizer", optimizer), ("lr", lr)) if value is not None] + list(options)
    if given and (data is None or isinstance(component, State)):
        why = "they say what a step is made of, which needs data=" if data is None else "a state has its optimizer already"
        raise TypeError(f"summary: {', '.join(given)} came, and {why}.")
    from fulmen.inspect.cost import costs  # which imports much of jax

    spent, state, remark = costs(component, data, batch_size, optimizer, lr, options) if data is not None else ([], None, "")
    state = component if isinstance(component, State) else state
    held = None if state is None else sum(_bytes(leaf) for leaf in jax.tree.leaves(state.optimizer_state))
    component, drawn = described(component.system if isinstance(component, State) else component)
    owners = {path: type(part).__name__ for path, part in components(component)}
    rows = []
    for leaf in leaves(component):
        shape = tuple(getattr(leaf.value, "shape", ()))
        owner = _owner(leaf.path, owners) or type(component).__name__
        rows.append(
            Row(leaf.path, owner, shape, _dtype(leaf.value), leaf.role, _bytes(leaf.value), _value(leaf.value, leaf.role))
        )
    return Summary(type(component).__name__, rows, drawn, _parts_of(component, rows), spent, held, remark)


def _parts_of(component: Any, rows: list[Row], above: str = "") -> list[Part]:
    """The parts on the highest level on which more than one has arrays of its own."""
    found = []
    for path, part in named_parts(component).items() if isinstance(component, Component) else ():
        path = f"{above}{path}"
        inside = [row for row in rows if row.path == path or row.path.startswith((f"{path}.", f"{path}["))]
        if any(row.role != OTHER for row in inside):
            trained = sum(row.size for row in inside if row.role == PARAMETER)
            found.append((part, Part(path, type(part).__name__, trained, sum(row.bytes for row in inside))))
    if len(found) == 1:
        ((part, known),) = found
        return _parts_of(part, rows, f"{known.path}.")
    return [known for _, known in found]


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
    if (
        role not in (OTHER, STATIC)
        or isinstance(value, bool | jax.ShapeDtypeStruct | Tracer)
        or getattr(value, "shape", ()) != ()
    ):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _number(row: Row) -> str:
    return "" if row.value is None else f"{row.value:.6g}"
