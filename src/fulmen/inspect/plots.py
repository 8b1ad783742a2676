"""Plots of schedules and of loss trees, and the style of all figures, for light and dark pages."""

import math
from types import FunctionType
from typing import Any

import jax
import numpy as np

from fulmen.core import Plan, Schedule
from fulmen.core.verbs import plot
from fulmen.dispatching.lazy_libraries import installed
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.loss_nodes import LossNode

# Colours with a contrast of at least 3.5 to white and to near-black, distinguishable with the three kinds of colour blindness.
# There are only five of them, so lines are also labelled and dashed.
COLOURS = ("#3f83d2", "#d7690e", "#8739ff", "#a54f89", "#846458")
TEXT = "#808080"


def grid(panels: int, columns: int = 1, size: tuple[float, float] = (5.5, 3.0)) -> tuple[Any, list[Any]]:
    """A transparent figure and its axes, each of `size` inches, in a grey that is visible on light and dark pages.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    plt, matplotlib = (installed(name, "plots", "examples") for name in ("matplotlib.pyplot", "matplotlib"))
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size[0], rows * size[1]), layout="constrained", squeeze=False
    )
    layout: Any = figure.get_layout_engine()
    if "inline" in matplotlib.get_backend():
        plt.close(figure)  # a notebook would show an open figure twice
    figure.patch.set_alpha(0)
    if rows > 1:
        layout.set(hspace=0.05)  # otherwise a title overlaps the label above it
    for one in axes.flat[panels:]:
        one.remove()
    for one in axes.flat[:panels]:
        _style(one)
    return figure, [*axes.flat[:panels]]


def _style(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(which="both", colors=TEXT)
    axes.spines[:].set_color(TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, axes.yaxis.get_offset_text()):
        text.set_color(TEXT)
    axes.title.set_fontsize("medium")


def write(axes: Any, text: str, at: Any, offset: Any, where: Any = "data", **style: Any) -> None:
    """Write small text, `offset` points from a point whose coordinates are those of `where`, such as `"axes fraction"`."""
    axes.annotate(text, at, offset, where, "offset points", **{"color": TEXT, "fontsize": 8, **style})


@dispatch
def plot(schedule: Schedule, *, plan=None):
    name = type(schedule).__name__
    if plan is None:
        return _curve(schedule(Plan(total_steps=1000)), 1000, name, "step of a run of 1000")
    return _curve(schedule(plan), plan.total_steps or 1000, name, "step", plan.steps_per_epoch)


@dispatch
def plot(schedule: FunctionType, *, steps=1000):
    return _curve(schedule, steps, schedule.__qualname__.partition(".")[0], "step")


def _curve(rate: Any, total: int, name: str, label: str, per_epoch: int | None = None) -> Any:
    steps = np.unique(np.linspace(0, total, min(total, 1000) + 1).round().astype(np.int32))
    with jax.numpy_dtype_promotion("standard"):  # optax computes with integer steps
        rates = [float(rate(step)) for step in steps]
    figure, (axes,) = grid(1)
    axes.plot(steps, rates, color=COLOURS[0], linewidth=1.8)
    if per_epoch and total // per_epoch <= 40:  # more lines could not be distinguished
        label = f"{label} (a line per epoch)"
        for epoch in range(per_epoch, total, per_epoch):
            axes.axvline(epoch, color=TEXT, alpha=0.25, linewidth=0.6, zorder=0)
    axes.set(xlabel=label, ylabel="learning rate", title=name, xlim=(0, total))
    axes.set_ylim(min(0, 1.05 * min(rates)), 1.05 * max(*rates, 1e-30))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    return figure


_LONGEST = 40  # characters of an entry's name


@dispatch
def plot(tree: LossNode):
    lines = [*tree._lines()]
    figure, (axes,) = grid(1, size=(6.5, 0.9 + 0.26 * len(lines)))
    values = [node.value if math.isfinite(node.value) else 0.0 for _, node in lines]
    # A sum is fainter than its terms.
    bars = axes.barh(range(len(lines)), values, height=0.62, color=COLOURS[0])
    for bar, (_, node) in zip(bars, lines, strict=True):
        bar.set_alpha(0.45 if node.children else 0.9)
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.16 * ((high - low) or 1.0)  # for the numbers at the ends of the bars
    axes.set_xlim(low - room * (low < 0), high + room)
    for y, ((_, node), value) in enumerate(zip(lines, values, strict=True)):
        left = value < 0
        write(axes, f"{node.value:.4g}", (value, y), (-4 if left else 4, 0), va="center", ha="right" if left else "left")
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name, _ in lines]
    width = max(map(len, names))
    axes.set_yticks(range(len(lines)), [name.ljust(width) for name in names], family="DejaVu Sans Mono", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(colors=TEXT)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes.axvline(0, color=TEXT, lw=0.8)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    axes.set(xlabel="value", title=f"loss of {tree.type}")
    return figure
