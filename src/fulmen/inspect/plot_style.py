"""Matplotlib figures for light and dark pages."""

from typing import Any

# Colours with a contrast of at least 3.5 to white and to near-black, distinguishable with the three kinds of colour blindness.
# There are only five of them, so lines are also labelled and dashed.
COLOURS = ("#3f83d2", "#d7690e", "#8739ff", "#a54f89", "#846458")
TEXT = "#808080"


def grid(panels: int, columns: int = 1, size: tuple[float, float] = (5.5, 3.0)) -> tuple[Any, list[Any]]:
    """A transparent figure and its axes, in a grey that is visible on light and dark pages.

    Args:
        panels: the number of axes.
        columns: the number of axes in a row.
        size: width and height of each, in inches.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "fulmen[examples]", or pip install matplotlib.') from error
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
