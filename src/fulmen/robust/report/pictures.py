"""Pictures of a report: the curve over the radius, the classes, and examples with their perturbations."""

from typing import Any

import numpy as np

from fulmen.inspect.plots import COLOURS, TEXT, grid, write

COLUMNS = 8  # examples in the picture


def report_figure(report: Any) -> Any:
    """All panels of a report in one matplotlib figure."""
    drawn = panels(report)
    figure, cells = grid(len(drawn), min(len(drawn), 2), (5.2, 3.2))
    if len(drawn) == 3:  # the examples below, as wide as both
        cells[2].set_subplotspec(cells[2].get_gridspec()[1, :])
    for axes, draw in zip(cells, drawn.values(), strict=True):
        draw(axes, report)
    return figure


def panels(report: Any) -> dict[str, Any]:
    """The panels that a report has, by name: functions of axes and the report."""
    found = {"curve": draw_curve} if report.curve else {}
    found["classes"] = draw_classes
    if as_images(report.x) is not None and len(broken_examples(report)):
        found["examples"] = draw_examples
    return found


def draw_curve(axes: Any, report: Any) -> None:
    """Accuracy by radius, under the attacks and under noise of the same size."""
    eps = np.array([0.0, *report.curve["eps"]])
    lines = {"attacked": "robust", "noise": "noise"}
    for (label, name), colour, style in zip(lines.items(), (COLOURS[1], COLOURS[0]), ("o-", "s--"), strict=True):
        values = np.array([report.accuracy, *report.curve[name]])
        axes.plot(eps, values, style, color=colour, ms=4, lw=1.6, label=label)
        write(axes, label, (eps[-1], values[-1]), (5, 0), color=colour, va="center")
    classes = report.settings["classes"]
    axes.axhline(1 / classes, color=TEXT, lw=0.8, ls=":")
    write(axes, "chance", (0, 1 / classes), (2, 2))
    axes.axvline(report.settings["eps"], color=TEXT, lw=0.8, ls=":")
    write(axes, "ε", (report.settings["eps"], 0.0), (3, 2))
    axes.set(xlabel="radius of the ball", ylim=(-0.03, 1.05))
    axes.set_title("accuracy by radius")
    axes.xaxis.label.set_color(TEXT)


def draw_classes(axes: Any, report: Any) -> None:
    """Each class's accuracy, and its robust accuracy inside it."""
    classes = report.per_class()
    positions = np.arange(len(classes))
    clean, robust = ([values[i] for values in classes.values()] for i in (1, 2))
    axes.bar(positions, clean, color=COLOURS[0], alpha=0.45, width=0.8)
    axes.bar(positions, robust, color=COLOURS[1], width=0.5)
    step = -(-len(classes) // 20)
    axes.set_xticks(positions[::step], [str(c) for c in classes][::step])
    axes.set(xlabel="class", ylim=(0, 1.05))
    axes.set_title("accuracy by class (wide: clean, narrow: attacked)")


def broken_examples(report: Any) -> np.ndarray:
    """The broken examples in the picture, spread over the classes."""
    rows = np.flatnonzero(report.correct & ~report.robust)
    order = np.argsort([np.sum(report.labels[rows[:i]] == report.labels[row]) for i, row in enumerate(rows)], kind="stable")
    return np.sort(rows[order][:COLUMNS])


def as_images(x: Any) -> np.ndarray | None:
    """Inputs as colour images, `(n, height, width, 3)`, or None if they are not images."""
    if not isinstance(x, np.ndarray) or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        return None
    x = x.astype(np.float64)
    x = x[..., None] if x.ndim == 3 else x
    return np.broadcast_to(x, (*x.shape[:3], 3)) if min(x.shape[1:3]) >= 4 else None


def draw_examples(axes: Any, report: Any) -> None:
    """Broken examples: the clean inputs, the changes and the attacked inputs, as one picture with transparent gaps."""
    rows = broken_examples(report)
    clean, attacked = as_images(report.clean[rows]), as_images(report.x[rows])
    assert clean is not None and attacked is not None
    low, high = min(clean.min(), attacked.min()), max(clean.max(), attacked.max())
    change, span = attacked - clean, (high - low) or 1.0
    times = span / (2 * np.abs(change).max() or 1.0)
    times = float(f"{times:.1g}") if times < 10 else float(int(times))
    shown = np.stack([(clean - low) / span, np.clip(0.5 + change * times / span, 0, 1), (attacked - low) / span])
    n, height, width = clean.shape[:3]
    gap = max(1, height // 8)
    opaque = np.concatenate([shown, np.ones_like(shown[..., :1])], -1)
    tiles = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    picture = tiles.swapaxes(1, 2).reshape(3 * (height + gap), n * (width + gap), 4)[:-gap, :-gap]
    axes.imshow(picture, interpolation="nearest")
    axes.spines[:].set_visible(False)
    middles = [column * (width + gap) + width / 2 - 0.5 for column in range(n)]
    axes.set_xticks(middles, [f"{a}→{b}" for a, b in zip(report.labels[rows], report.attacked[rows], strict=True)])
    axes.set_yticks([i * (height + gap) + height / 2 - 0.5 for i in range(3)], ["clean", f"change ×{times:g}", "attacked"])
    axes.tick_params(length=0, labelsize=8)
    axes.set_title("broken examples: true class → predicted class")
