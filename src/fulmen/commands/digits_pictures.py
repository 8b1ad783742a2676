"""The pictures of the main job: accuracy against the attack's size, and some digits with what the attacks add to them."""

from pathlib import Path
from typing import Any

import numpy as np

_STYLES = (("#c0392b", "o"), ("#2471a3", "s"))  # a colour and a marker for each training
_CONFIDENCE = 1.96  # standard deviations of a normal distribution that 95 % are within


def confidence(accuracy: Any, n: int) -> tuple[Any, Any]:
    """Wilson's 95 % confidence interval of an accuracy on n examples (Wilson 1927).

    Args:
        accuracy: an array of shares.
        n: the number of examples.

    >>> from fulmen.commands.digits_pictures import confidence
    >>> [round(float(v), 3) for v in confidence(0.5, 100)]
    [0.404, 0.596]
    """
    accuracy, z = np.asarray(accuracy), _CONFIDENCE**2 / n
    center = (accuracy + z / 2) / (1 + z)
    width = np.sqrt(z * accuracy * (1 - accuracy) + z**2 / 4) / (1 + z)
    return center - width, center + width


def draw_accuracies(plt: Any, results: dict[str, Any], eps: float, n: int, path: Path) -> None:
    """Draw the accuracy of each training against the radius of the attack, with its confidence interval.

    Args:
        plt: `matplotlib.pyplot`.
        results: for each training its accuracy `"clean"`, and `"robust"` by radius.
        eps: the radius in the training against FGSM.
        n: the number of test examples.
        path: the file, without its suffix: it is written as PNG and as SVG.
    """
    figure, axes = plt.subplots(figsize=(6, 3.9), layout="constrained")
    for (name, result), (color, marker) in zip(results.items(), _STYLES, strict=False):
        radii, accuracies = [0.0, *map(float, result["robust"])], [result["clean"], *result["robust"].values()]
        axes.fill_between(radii, *confidence(accuracies, n), color=color, alpha=0.15, lw=0)
        axes.plot(radii, accuracies, color=color, marker=marker, ms=5, label=f"trained {name}")
    axes.axvline(eps, color="grey", lw=0.8, ls=":")
    axes.annotate("ε of the training", (eps, 0.02), xytext=(4, 0), textcoords="offset points", color="grey", fontsize=8)
    axes.set(xlabel="largest change of a pixel, ε (0: no attack; 1: from black to white)", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(f"Accuracy on {n} test digits under PGD-40; bands: 95 % confidence", fontsize=10)
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, path)


def draw_digits(plt: Any, shown: dict[str, Any], x: Any, labels: Any, eps: float, path: Path) -> None:
    """Draw digits, and for each training the attack's perturbation and the attacked digit with the predicted class.

    Args:
        plt: `matplotlib.pyplot`.
        shown: for each training the attacked images, `(n, height, width, 1)`, and the classes predicted for the clean images and for
            the attacked ones.
        x: the clean images.
        labels: their classes.
        eps: the radius of the attack.
        path: the file, without its suffix: it is written as PNG and as SVG.
    """
    rows = 1 + 2 * len(shown)
    figure, grid = plt.subplots(rows, len(x), figsize=(0.82 * len(x) + 1.6, 0.98 * rows + 0.7), layout="constrained")
    digits = dict(cmap="gray_r", vmin=0, vmax=1)
    _draw_row(grid[0], x, "test digit\n(its class)", [str(label) for label in labels], [True] * len(labels), digits)
    for i, (name, (attacked, before, after)) in enumerate(shown.items()):
        right = (before == labels) & (after == labels)
        seen = [f"{a} → {b}" for a, b in zip(before, after, strict=True)]
        changes = dict(cmap="RdBu_r", vmin=-eps, vmax=eps)
        _draw_row(grid[1 + 2 * i], attacked - x, f"{name}:\nwhat PGD adds", [""] * len(x), right, changes)
        _draw_row(grid[2 + 2 * i], attacked, "predicted before\n→ after the attack", seen, right, digits)
    bar = figure.colorbar(grid[1, -1].images[0], ax=grid[:, -1], shrink=0.5, aspect=30, ticks=[-eps, 0, eps])
    bar.set_label("change of a pixel (red: darker, blue: lighter)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        f"The first test digit of each class, attacked by PGD-40 within ±{eps:g} of each pixel; red: a wrong prediction",
        fontsize=10,
    )
    _save(plt, figure, path)


def _draw_row(cells: Any, images: Any, name: str, titles: Any, right: Any, options: dict[str, Any]) -> None:
    for cell, image, title, is_right in zip(cells, images, titles, right, strict=True):
        cell.imshow(np.asarray(image)[..., 0], interpolation="nearest", **options)
        cell.set(xticks=[], yticks=[])
        for side in cell.spines.values():
            side.set(lw=0.5, color="lightgrey")
        style = dict(color="black") if is_right else dict(color="crimson", weight="bold")
        cell.set_title(title, fontsize=10, pad=2, **style)
    cells[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)


def _save(plt: Any, figure: Any, path: Path) -> None:
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    plt.close(figure)
