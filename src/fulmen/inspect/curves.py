"""`plot` of a history, and its table with small curves in a notebook."""

import html
import math
from typing import Any

import numpy as np

from fulmen.core.verbs import plot, show
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.plots import COLOURS, TEXT, grid, write
from fulmen.inspect.text import faint, html_page, html_table
from fulmen.train.history import History, highest_is_best

_PARTS = "parts of the loss"
_WRITTEN = 12  # maximum number of rows and columns of a matrix whose values are printed in its cells
_LINE = 0.13  # height of a line of small text, in inches


@dispatch
def plot(history: History):
    if not history.epochs:
        raise ValueError("plot: the history is empty, since no epoch of the run has ended.")
    panels = _panels(history)
    members = {_panel_and_label(name, history[name]): history[f"{name}/members"] for name in _means(history)}
    tallest = max(len(lines) for lines in panels.values())
    figure, cells = grid(len(panels), min(len(panels), 2), (4.8, max(2.5, 0.7 + 1.4 * _LINE * tallest)))
    for axes, (name, lines) in zip(cells, panels.items(), strict=True):
        axes.set_title(name)
        if all(values.ndim == 1 for values in lines.values()):
            _curves(axes, name, lines, members, history.opposed)
        else:
            _image(figure, axes, name, *lines.values())
    return figure


def _means(history: History) -> list[str]:
    """The names of a population's means over its members; each member has a curve in the same panel."""
    return [name for name in history if f"{name}/members" in history]


def _panel_and_label(name: str, values: np.ndarray) -> tuple[str, str]:
    """The panel of a metric, and the label of its line."""
    *before, last = name.split("/")
    validation = before[:1] == ["validation"]
    own = before[validation:]
    if values.ndim > 1:
        panel, label = name, ""
    elif own[:1] in (["loss"], ["lr"]):
        # A loss and its parts have two panels: in a game their values may be far apart.
        panel, label = (_PARTS if own[0] == "loss" else "lr"), "/".join([*own[1:], last])
    else:
        panel, label = last, "/".join(own)
    return panel, " ".join(["validation"] * validation + [label] * bool(label))


def _panels(history: History) -> dict[str, dict[str, np.ndarray]]:
    """The metrics of each panel, by their labels."""
    panels: dict[str, dict[str, np.ndarray]] = {}
    of_members = {f"{name}/{what}" for name in _means(history) for what in ("members", "std")}
    for name, values in history.items():
        if name not in of_members:
            panel, label = _panel_and_label(name, values)
            panels.setdefault(panel, {})[label] = values
    position = {"loss": 0, _PARTS: 1, "lr": 3, "seconds": 4}
    return {name: panels[name] for name in sorted(panels, key=lambda name: position.get(name, 2))}


def _curves(
    axes: Any, panel: str, lines: dict[str, np.ndarray], members: dict[tuple[str, str], np.ndarray], opposed: bool
) -> None:
    # The line without a name is first, so that it has the same colour in every panel.
    names = sorted(dict.fromkeys(label.removeprefix("validation").strip() for label in lines), key=bool)
    single = len(names) == 1  # then training and validation have different colours
    ends, shown = [], [*lines.values()]
    validated = {label for label, values in lines.items() if label.startswith("validation") and np.isfinite(values).any()}
    for i, (label, values) in enumerate(lines.items()):
        validation = label.startswith("validation")
        colour = COLOURS[(i if single else names.index(label.removeprefix("validation").strip())) % len(COLOURS)]
        known = np.flatnonzero(np.isfinite(values))
        marker = "o" if len(known) < 2 else None
        style = dict(linestyle="--" if validation else "-", marker=marker, color=colour)
        (curve,) = axes.plot(known + 1, values[known], ms=4, lw=1.6, **style)
        text = f"{label or ('training' if len(lines) > 1 else '')} {values[-1]:.4g}".strip()
        each = members.get((panel, label))
        if each is not None:
            shown.append(each.ravel())
            axes.plot(np.arange(1, len(each) + 1), each, ms=3, lw=0.7, alpha=0.4, **style)
            text += f" ± {each[-1].std():.2g}"
        best = _best(panel, values, opposed) if not validated or label in validated else None
        if best is not None and values[best] != values[-1]:
            axes.plot(best + 1, values[best], "o", ms=5, color=colour)
            text += f" (best {values[best]:.4g})"
        elif best is not None and validated:  # the last epoch, whose value is in the label
            curve.set(marker="o", markersize=5, markevery=[-1], clip_on=False)
        ends.append((values[known[-1]] if len(known) else math.nan, text, colour))
    _scale(axes, np.concatenate(shown), max(map(len, lines.values())), "loss" in panel)
    if panel == "seconds":
        _leave_out_compilation(axes, *lines.values())
    _label(axes, ends)


def _best(name: str, values: np.ndarray, opposed: bool) -> int | None:
    """The epoch with the best value, if the metric's name tells whether high or low values are better.

    A part of a loss has none: others pay for what is low, as for a penalty, and in a game this holds for the sum too.
    """
    highest, is_part = highest_is_best(name), name == _PARTS or "loss/" in name
    if highest is None or is_part or (opposed and "loss" in name) or not np.isfinite(values).any() or len(values) < 2:
        return None
    return int(np.nanargmax(values) if highest else np.nanargmin(values))


def _scale(axes: Any, values: np.ndarray, epochs: int, may_be_logarithmic: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    values = values[np.isfinite(values)]
    if may_be_logarithmic and len(values) and values.max() > 100 * values.min() > 0:
        axes.set_yscale("log")
        axes.tick_params(which="both", colors=TEXT)
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=False)
    axes.set_xlim(*((1, epochs) if epochs > 1 else (0.5, 1.5)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _leave_out_compilation(axes: Any, seconds: np.ndarray, *others: np.ndarray) -> None:
    """Scale the axis by the other epochs if the first one, which compiles the step, took much longer."""
    later = seconds[1:]
    highest = later[np.isfinite(later)].max(initial=0.0)
    if seconds[0] > 2 * highest > 0:
        axes.set_ylim(0, 1.15 * highest)
        write(axes, f"epoch 1, with compilation: {seconds[0]:.4g}", (0, 0), (4, 4), "axes fraction")


def _label(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name and last value at its end, moved apart so that they do not overlap."""
    height = axes.transData.transform
    bottom, top = (axes.transAxes.transform((0, y))[1] for y in (0, 1))
    # A metric without a finite value has no line; its name is at the bottom.
    wanted = [(height((1, v))[1] - bottom) / (top - bottom) if math.isfinite(v) else 0.0 for v, _, _ in ends]
    inches = axes.get_figure().get_size_inches()[1] * axes.get_position().height
    for (_, text, colour), y in zip(ends, apart(wanted, _LINE / inches), strict=True):
        write(axes, text, (1, y), (5, 0), "axes fraction", color=colour, va="center", annotation_clip=False)


def apart(heights: list[float], gap: float) -> list[float]:
    """Heights from 0 to 1 in the same order, at least `gap` apart (or evenly spread), moved as little as possible.

    By isotonic regression: the pool-adjacent-violators algorithm.

    >>> from fulmen.inspect.curves import apart
    >>> apart([0.5, 0.1, 0.5], 0.2)
    [0.4, 0.1, 0.6]
    """
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # After subtracting the gaps below each, the heights only need to be in order; those that are not are set to their mean.
    pools: list[tuple[float, int]] = []
    for below, i in enumerate(order):
        mean, n = heights[i] - below * gap, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (other * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    highest = 1 - (len(heights) - 1) * gap
    pooled = [min(max(mean, 0.0), highest) for mean, n in pools for _ in range(n)]
    found = dict(zip(order, (round(y + below * gap, 9) for below, y in enumerate(pooled)), strict=True))
    return [found[i] for i in range(len(heights))]


def _image(figure: Any, axes: Any, name: str, values: np.ndarray) -> None:
    """Draw a metric with several values per epoch: all epochs of a vector, the last one of a matrix."""
    from matplotlib.ticker import MaxNLocator

    if values.ndim == 2:
        shown, labels, first = values.T, ("epoch", "entry"), 1
    else:
        names = ("predicted class", "true class") if "confusion" in name else ("column", "row")
        shown, labels, first = values[-1].reshape(values.shape[1], -1), (f"{names[0]}, epoch {len(values)}", names[1]), 0
    rows, columns = shown.shape
    extent = (first - 0.5, first + columns - 0.5, rows - 0.5, -0.5)
    image = axes.imshow(shown, aspect="auto" if values.ndim == 2 else "equal", extent=extent, cmap="cividis")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if values.ndim > 2 and max(rows, columns) <= _WRITTEN:
        for (row, column), value in np.ndenumerate(shown):
            # The colour map is dark for low values, on light and dark pages alike.
            colour = "black" if image.norm(value) > 0.5 else "white"
            axes.annotate(f"{value:.4g}", (column, row), color=colour, fontsize=7, ha="center", va="center")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.04, 1)))
    bar.ax.tick_params(colors=TEXT)
    bar.outline.set_visible(False)


@dispatch
def show(history: History):
    """A row per metric, with a small curve, its first, best and last value."""
    rows = []
    for name, values in history.items():
        label = html.escape(name)
        if values.ndim > 1:
            rows.append((label, faint(f"{' × '.join(map(str, values.shape[1:]))} values per epoch"), "", "", ""))
            continue
        best = _best(name, values, history.opposed)
        shown = "" if best is None else f"{values[best]:.4g} {faint(f'epoch {best + 1}')}"
        rows.append((label, _spark(values), f"{values[0]:.4g}", shown, f"{values[-1]:.4g}"))
    title = f"History of {history.epochs} epoch{'s' * (history.epochs != 1)}"
    return html_page(title, html_table(("metric", "", "first>", "best>", "last>"), rows) if rows else "")


def _spark(values: np.ndarray, width: int = 120, height: int = 18) -> str:
    """A small curve in the colour of the text, as SVG."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return ""
    low, high = float(values[known].min()), float(values[known].max())
    across = (width - 4) / max(len(values) - 1, 1)
    some = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), width)).round().astype(int))]
    points = [(2 + i * across, height - 2 - (height - 4) * (float(values[i]) - low) / ((high - low) or 1)) for i in some]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        f'<svg width="{width}" height="{height}" style="vertical-align:middle;max-width:none" role="img"><polyline points="{path}" '
        f'fill="none" stroke="currentColor" stroke-width="1.2"></polyline>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="currentColor"></circle></svg>'
    )
