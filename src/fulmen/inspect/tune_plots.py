"""`plot` and `show` of the searches in `fm.tune`."""

import html
from typing import Any

import numpy as np

from fulmen.core.verbs import plot, show
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.plots import COLOURS, TEXT, grid, write
from fulmen.inspect.text import html_page, html_table
from fulmen.train.tune.batch_speed import BatchSizeSearch
from fulmen.train.tune.range_test import LearningRateSearch, Search


@dispatch
def plot(search: LearningRateSearch):
    figure, (axes,) = grid(1)
    axes.plot(search.rates, search.losses, lw=0.8, alpha=0.5, color=COLOURS[0])
    axes.plot(search.rates, search.smoothed, lw=1.8, color=COLOURS[0])
    axes.set_xscale("log")
    axes.tick_params(which="both", colors=TEXT)
    finite = search.smoothed[np.isfinite(search.smoothed)]
    if len(finite):  # the end of a run that diverges would hide the rest
        low, high = np.nanmin(search.losses), max(finite[0], np.median(finite))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.5 * (high - low) or None)
    axes.set(title="loss by learning rate", xlabel="learning rate")
    if search.suggestion is not None:
        at = int(np.abs(search.rates - search.suggestion).argmin())
        _mark(axes, search.rates[at], search.smoothed[at], f"suggestion {search.suggestion:.2g}", above=True)
    return figure


@dispatch
def plot(search: BatchSizeSearch):
    figure, (axes,) = grid(1)
    speeds = search.examples_per_second
    axes.plot(search.sizes, speeds, "o-", ms=3, lw=1.6, color=COLOURS[0])
    axes.set_xscale("log", base=2)
    axes.set_xticks(search.sizes, [f"{size}" for size in search.sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * speeds.max())
    failed = "" if search.failed is None else f" (no memory for {search.failed})"
    axes.set(title="examples per second by batch size", xlabel=f"batch size{failed}")
    _mark(axes, search.suggestion, speeds[[*search.sizes].index(search.suggestion)], f"suggestion {search.suggestion}")
    return figure


def _mark(axes: Any, x: float, y: float, text: str, above: bool = False) -> None:
    """A point on a vertical line, and text beside the line, above or below."""
    axes.axvline(x, lw=0.8, ls="--", color=COLOURS[1])
    axes.plot(x, y, "o", ms=6, color=COLOURS[1], zorder=3)
    low, high = axes.get_xlim()
    right = np.log(x / low) > 0.6 * np.log(high / low)
    place = {"ha": "right" if right else "left", "va": "top" if above else "bottom", "color": COLOURS[1]}
    write(axes, text, (x, float(above)), (-4 if right else 4, -4 if above else 4), ("data", "axes fraction"), **place)


@dispatch
def show(search: Search):
    columns = [f"{name}>" * bool(name) for name in search.columns]
    return html_page(search.title, html_table(columns, [tuple(map(html.escape, row)) for row in search.rows()]))
