"""Text and HTML for everything that is printed: columns, trees, sizes, locations, and HTML for light and dark pages."""

import html
import sys
from collections.abc import Iterable, Sequence
from typing import Any

BRANCH, LAST, PIPE, SPACE = "├─ ", "└─ ", "│  ", "   "
_ASCII = str.maketrans({"├": "|", "└": "`", "│": "|", "─": "-", "━": "-", "╸": "-", "·": ".", "×": "x", "→": ">", "…": "~"})
_SHOWN = 5  # names in a list

# Colours are the page's, which may be light or dark.
_FONT = "font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:0.9em;line-height:1.5"
FAINT = "opacity:0.7"
_CELL = (
    "text-align:left;vertical-align:top;white-space:nowrap;padding:0.1em 1.2em 0.1em 0;"
    "background:transparent;color:inherit;border:none"
)
_HEAD = f"{_CELL};border-bottom:1px solid currentColor"


class Picture:
    """An object that prints as text, and as HTML in a notebook."""

    def _text(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return drawable(self._text())

    __repr__ = __str__


def drawable(text: str) -> str:
    """The text, in ASCII where the output cannot show its characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode()
    return text


def tree_prefixes(above: str, n: int) -> list[tuple[str, str]]:
    """For each of `n` siblings, the prefix of its line and of the lines below it."""
    return [(above + (LAST if i == n - 1 else BRANCH), above + (SPACE if i == n - 1 else PIPE)) for i in range(n)]


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows with their columns aligned by spaces; the columns in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table that `html_table` makes of the same headings and cells, as text."""
    right = [i for i, name in enumerate(columns) if name.endswith(">")]
    return align([[name.rstrip(">") for name in columns], *rows], right)


def fold(line: str, width: int) -> str:
    """A line, broken after every `width` characters."""
    return "\n".join(line[i : i + width] for i in range(0, len(line), width))


def shortened(names: Iterable[str]) -> str:
    """The first names, one per line, and the number of the others."""
    names = [*names]
    return "\n".join([*names[:_SHOWN], *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])])


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


def first_line(value: Any) -> str:
    """The first line of a docstring."""
    return (getattr(value, "__doc__", None) or "").strip().partition("\n")[0]


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells under headings; a column whose heading ends with `>` is aligned to the right."""

    def line(row: Sequence[str], style: str, tag: str = "td") -> str:
        cells = []
        for name, cell in zip(columns, row, strict=True):
            side = ";text-align:right" if name.endswith(">") else ""
            cells.append(f'<{tag} style="{style}{side}">{cell}</{tag}>')
        return f'<tr style="background:transparent">{"".join(cells)}</tr>'

    head = line([html.escape(c.rstrip(">")) for c in columns], _HEAD, "th")
    body = [line(row, _CELL) for row in rows]
    return f'<table style="border-collapse:collapse;border:none;color:inherit">{head}{"".join(body)}</table>'


def html_page(title: str, body: str) -> str:
    """HTML under a title, in the page's colours."""
    head = f'<div style="font-weight:bold;padding-bottom:0.3em">{title}</div>' if title else ""
    return f'<div style="{_FONT};color:inherit;overflow-x:auto">{head}{body}</div>'


def html_code(text: str) -> str:
    """Text in HTML that keeps its spaces."""
    return f'<span style="white-space:pre">{html.escape(text)}</span>'


def faint(text: Any) -> str:
    """Text in HTML, less bright than the rest."""
    return f'<span style="{FAINT}">{html.escape(str(text))}</span>'
