"""What all that is printed shares: columns, boxes, sizes, places in files, and HTML that suits light and dark pages."""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from typing import Any

from fulmen.dispatching.location import place

__all__ = ["Picture", "describe_bytes", "describe_flops", "drawable", "html_page", "html_table", "place", "render_table"]

BRANCH, LAST, PIPE, SPACE = "├─ ", "└─ ", "│  ", "   "
_PLAIN = str.maketrans({"├": "|", "└": "`", "│": "|", "─": "-", "━": "-", "╸": "-", "·": ".", "×": "x", "→": ">", "…": "~"})

# The page's own colours throughout: a notebook may be light or dark.
_FONT = "font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:0.9em;line-height:1.5"
FAINT = "opacity:0.7"
_CELL = (
    "text-align:left;vertical-align:top;white-space:nowrap;padding:0.1em 1.2em 0.1em 0;"
    "background:transparent;color:inherit;border:none"
)
_HEAD = f"{_CELL};border-bottom:1px solid currentColor"


class Picture:
    """What prints as text and shows itself in a notebook."""

    def _text(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return drawable(self._text())

    __repr__ = __str__


def drawable(text: str) -> str:
    """The text with its lines and signs replaced where the output cannot show them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "replace").decode()
    return text


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[Sequence[str]] = ()) -> str:
    """A table as wide as the terminal or its content; what does not fit is folded, not cut.

    Args:
        columns: the headings; one that ends in `>` is aligned to the right.
        rows: cells.
        totals: rows below a line.
    """
    import io
    import shutil

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), end_section=bool(totals) and i == len(rows) - 1)
    for row in totals:
        table.add_row(*map(Text, row))
    width = max(shutil.get_terminal_size((120, 24)).columns, 40)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False).print(
        table
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def tree_prefixes(above: str, n: int) -> list[tuple[str, str]]:
    """For each of `n` siblings, what stands before it and before what is below it."""
    return [(above + (LAST if i == n - 1 else BRANCH), above + (SPACE if i == n - 1 else PIPE)) for i in range(n)]


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows with their columns aligned by spaces."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def fold(line: str, width: int) -> str:
    """A line in pieces that are no longer than a width, with nothing left out."""
    return "\n".join(line[i : i + width] for i in range(0, len(line), width)) if line else ""


def describe_bytes(n: int) -> str:
    """A number of bytes in a few characters.

    >>> from fulmen.inspect.text import describe_bytes
    >>> describe_bytes(4), describe_bytes(204_800)
    ('4 B', '204.8 kB')
    """
    return _in_units(n, "B")


def describe_flops(n: float) -> str:
    """A number of floating-point operations in a few characters.

    >>> from fulmen.inspect.text import describe_flops
    >>> describe_flops(12_345_678)
    '12.3 MFLOP'
    """
    return _in_units(round(n), "FLOP")


def _in_units(n: int, unit: str) -> str:
    size, prefix = float(n), ""
    for larger in "kMGTPE":
        if size < 1000:
            break
        size, prefix = size / 1000, larger
    return f"{size:.1f} {prefix}{unit}" if prefix else f"{n} {unit}"


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[Sequence[str]] = ()) -> str:
    """A table of cells that are HTML already."""

    def line(row: Sequence[str], style: str, tag: str = "td") -> str:
        cells = []
        for name, cell in zip(columns, row, strict=True):
            side = ";text-align:right" if name.endswith(">") else ""
            cells.append(f'<{tag} style="{style}{side}">{cell}</{tag}>')
        return f'<tr style="background:transparent">{"".join(cells)}</tr>'

    head = line([html.escape(c.rstrip(">")) for c in columns], _HEAD, "th")
    body = [line(row, _CELL) for row in rows]
    foot = [line(row, f"{_CELL};border-top:1px solid currentColor" if i == 0 else _CELL) for i, row in enumerate(totals)]
    return f'<table style="border-collapse:collapse;border:none;color:inherit">{head}{"".join(body)}{"".join(foot)}</table>'


def html_page(title: str, body: str) -> str:
    """Some HTML under a title, in the page's own colours."""
    head = f'<div style="font-weight:bold;padding-bottom:0.3em">{title}</div>' if title else ""
    return f'<div style="{_FONT};color:inherit;overflow-x:auto">{head}{body}</div>'


def faint(text: Any) -> str:
    """Some text, escaped and less bright than the rest."""
    return f'<span style="{FAINT}">{html.escape(str(text))}</span>'
