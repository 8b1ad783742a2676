"""`Summary`: the leaves of a component and the cost of its step, printed as tables."""

from __future__ import annotations

import html
import math
import shutil
from typing import TYPE_CHECKING

from fulmen.core.immutable import Immutable
from fulmen.core.leaves import BUFFER, FROZEN, OTHER, PARAMETER
from fulmen.inspect.text import (
    Picture,
    align,
    describe_bytes,
    describe_flops,
    faint,
    fold,
    html_page,
    html_table,
    text_table,
)

if TYPE_CHECKING:
    from fulmen.inspect.cost import Cost


_OPEN = 30  # leaves up to which a notebook shows them
_TOTALS = {PARAMETER: "parameters", BUFFER: "in buffers", FROZEN: "frozen", OTHER: "hyperparameters"}


class Row(Immutable):
    """A leaf of a component.

    Attributes:
        path: such as `"model.hidden.weight"`.
        type: the type of the component that it belongs to.
        shape: its shape.
        dtype: its type of numbers.
        role: `"parameter"`, `"buffer"`, `"frozen"`, `"hyperparameter"`, or `"static"` in another library's module.
        bytes: its size in memory.
        value: the value of a hyperparameter that is one number; else None.
        layout: the mesh axis of each of its axes, such as `"None, data"`, or `"replicated"`; None on one device.
        device_bytes: its size in memory on each device.
    """

    path: str
    type: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    bytes: int
    value: float | None = None
    layout: str | None = None
    device_bytes: int = 0

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def _number(self) -> str:
        return "" if self.value is None else f"{self.value:.6g}"


class Part(Immutable):
    """A part of a component with everything below it.

    Attributes:
        path: such as `"model.blocks"`.
        type: the name of its type.
        parameters: the number of its trained elements.
        bytes: the size of all its leaves.
    """

    path: str
    type: str
    parameters: int
    bytes: int


class Summary(Picture, Immutable):
    """The leaves of a component and the cost of its step; prints as tables.

    Attributes:
        name: the name of the component's type.
        rows: a `Row` per leaf, in the tree's order.
        drawn: whether the component has its arrays; otherwise shapes are those that `init` would draw.
        parts: a `Part` for each part at the highest level that has several.
        costs: a `Cost` of the training step and of an evaluation (or of a forward pass); empty without data.
        optimizer_bytes: the size of the optimizer state of a `State`, or with data; else None.
        optimizer_device_bytes: its size on each device.
        remark: a note on the costs.
    """

    name: str
    rows: list[Row]
    drawn: bool
    parts: list[Part]
    costs: list[Cost]
    optimizer_bytes: int | None
    remark: str
    optimizer_device_bytes: int = 0

    @property
    def parameters(self) -> int:
        """The number of trained elements."""
        return sum(row.size for row in self.rows if row.role == PARAMETER)

    @property
    def bytes(self) -> int:
        """The size of all rows."""
        return sum(row.bytes for row in self.rows)

    @property
    def device_bytes(self) -> int:
        """The size of all rows on each device."""
        return sum(row.device_bytes for row in self.rows)

    @property
    def _is_laid_out(self) -> bool:
        return any(row.layout is not None for row in self.rows)

    def _title(self) -> str:
        return self.name if self.drawn else f"{self.name} (a description: its arrays are not drawn yet)"

    def _leaves(self) -> str:
        valued = any(row.value is not None for row in self.rows)
        columns = ["path", "type", "shape", "dtype", "role", *["value"] * valued, "bytes>"]
        columns += ["layout", "per device>"] * self._is_laid_out
        cells = []
        for row in self.rows:
            last = [*[row._number] * valued, describe_bytes(row.bytes), *self._laid(row)]
            cells.append([row.path, row.type, str(row.shape), row.dtype, row.role, *last])
        return text_table(columns, cells)

    def _laid(self, row: Row) -> list[str]:
        return [row.layout or "", describe_bytes(row.device_bytes)] if self._is_laid_out else []

    def _leaves_by_owner(self) -> str:
        """The leaves below the components that they belong to, which takes less width."""
        owners = [row.path.rpartition(".")[0] for row in self.rows]
        cells = []
        for row, owner in zip(self.rows, owners, strict=True):
            shape = f"{row.dtype}[{', '.join(map(str, row.shape))}]"
            name = row.path.removeprefix(f"{owner}.")
            cells.append([f"  {name}", shape, row.role, row._number or describe_bytes(row.bytes), *self._laid(row)])
        lines, above = [], ""
        for row, owner, line in zip(self.rows, owners, align(cells, right=[3, 5]).splitlines(), strict=True):
            if owner and owner != above:
                lines.append(f"{owner}: {row.type}")
            lines.append(line if owner else line[2:])
            above = owner
        return "\n".join(lines)

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """The headings and the cells of each table but the leaves'."""
        totals = []
        for role, many in _TOTALS.items():
            some = [row for row in self.rows if row.role == role]
            if some or role == PARAMETER:
                n = sum(row.size for row in some)
                totals.append([f"{n:,} {role if n == 1 else many}", describe_bytes(sum(row.bytes for row in some))])
        if self.optimizer_bytes is not None:
            totals.append(["optimizer state", describe_bytes(self.optimizer_bytes)])
        totals.append(["total", describe_bytes(self.bytes + (self.optimizer_bytes or 0))])
        if self._is_laid_out:
            totals.append(["total per device", describe_bytes(self.device_bytes + self.optimizer_device_bytes)])
        parts = [[p.path, p.type, f"{p.parameters:,}", describe_bytes(p.bytes)] for p in self.parts]
        costs = []
        for c in self.costs:
            name = f"{c.name}, {c.examples} example{'s' * (c.examples != 1)}"
            costs.append([name, describe_flops(c.flops), describe_bytes(c.arguments), describe_bytes(c.temporary)])
        tables = [
            (["in all", "bytes>"], totals),
            (["part", "type", "parameters>", "bytes>"], parts),
            (["compiled", "operations>", "arguments>", "temporary>"], costs),
        ]
        return [(columns, rows) for columns, rows in tables if rows]

    def _text(self) -> str:
        width = max(shutil.get_terminal_size((120, 24)).columns, 40)
        rows = self._leaves()
        if max(map(len, rows.splitlines())) > width:
            rows = self._leaves_by_owner()
        sections = [f"{self._title()}\n{rows}", *(text_table(*table) for table in self._tables())]
        text = "\n\n".join([*sections, self.remark] if self.remark else sections)
        return "\n".join(fold(line, width) for line in text.splitlines())

    def _repr_html_(self) -> str:
        body = [html_table(columns, [[*map(html.escape, row)] for row in rows]) for columns, rows in self._tables()]
        # As text: a cell for each value would be megabytes for a large model.
        text = f'<div style="white-space:pre">{html.escape(self._leaves())}</div>'
        n = len(self.rows)
        heading = f'<summary style="cursor:pointer">{n} lea{"f" if n == 1 else "ves"}</summary>'
        body += [faint(self.remark)] if self.remark else []
        body.append(f"<details{' open' if n <= _OPEN else ''}>{heading}{text}</details>")
        return html_page(html.escape(self._title()), '<div style="height:0.7em"></div>'.join(body))
