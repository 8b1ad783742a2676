"""`plot` of a loss tree: a bar for each entry."""

import math

from fulmen.core.verbs import plot
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.loss_nodes import LossNode
from fulmen.inspect.plot_style import COLOURS, TEXT, grid

_LONGEST = 40  # characters of an entry's name


@dispatch
def plot(tree: LossNode):
    lines = [*tree._lines()]
    figure, (axes,) = grid(1, size=(6.5, 0.9 + 0.26 * len(lines)))
    values = [node.value if math.isfinite(node.value) else 0.0 for _, node in lines]
    # A sum is fainter than its terms.
    shades = [0.45 if node.children else 0.9 for _, node in lines]
    bars = axes.barh(range(len(lines)), values, height=0.62, color=COLOURS[0])
    for bar, shade in zip(bars, shades, strict=True):
        bar.set_alpha(shade)
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.16 * ((high - low) or 1.0)  # for the numbers at the ends of the bars
    axes.set_xlim(low - room * (low < 0), high + room)
    for y, ((_, node), value) in enumerate(zip(lines, values, strict=True)):
        left = value < 0
        axes.annotate(
            f"{node.value:.4g}",
            (value, y),
            (-4 if left else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if left else "left",
            color=TEXT,
            fontsize=8,
        )
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
