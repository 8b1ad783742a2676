"""What `fit` shows while it runs: a bar in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from fulmen.core.verbs import on
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import EpochEnd, FitEnd, FitStart, LogsRead, ValidationEnd

_SHOWN = 0.25  # seconds between two drawings of a bar, each of which takes about a millisecond from the steps

__all__ = ["PlainProgress", "ProgressBar", "progress_callbacks"]


def progress_callbacks(progress: Any) -> list[Any]:
    """The callbacks that `progress=` stands for: True, False, or a callback of one's own."""
    if progress is False or progress is None:
        return []
    if progress is not True:
        return [progress]
    if _in_notebook():
        return [NotebookProgress()]
    return [ProgressBar() if sys.stdout.isatty() else PlainProgress()]


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def line(figures: Mapping[str, Any]) -> str:
    """The figures in one line: the loss without its entries, the metrics, the learning rate; of a population with `± std`."""
    shown = {k: v for k, v in figures.items() if "loss/" not in k and isinstance(v, float) and not k.endswith("/std")}
    last = sorted(shown, key=lambda name: (not name.endswith("loss"), name.startswith("lr")))
    spread = {name: figures.get(f"{name}/std") for name in last}
    return "  ".join(f"{name} {shown[name]:.4g}{f' ± {spread[name]:.2g}' if spread[name] else ''}" for name in last)


def _shown(run: Any) -> str:
    """The newest figures and the speed, where it could be measured: not over a single step, which was compiled."""
    return f"{line(run.logs)}{f'  {run.speed:.0f} steps/s' * (run.speed > 0)}"


class PlainProgress:
    """A line per epoch."""


@dispatch
def on(event: EpochEnd, progress: PlainProgress, run):
    print(f"epoch {run.epoch + 1}  {_shown(run)}", flush=True)


@dispatch
def on(event: ValidationEnd, progress: PlainProgress, run):
    print(f"epoch {run.epoch + 1}  {line({k: v for k, v in run.logs.items() if k.startswith('validation/')})}", flush=True)


class _Bar:
    """A bar that is drawn no more often than the eye can follow."""

    shown = 0.0

    def show(self, run: Any) -> None:
        if run.left() == 0 or time.perf_counter() - self.shown >= _SHOWN:
            self.shown = time.perf_counter()
            self.draw(run)

    def draw(self, run: Any) -> None:
        raise NotImplementedError


@dispatch
def on(event: LogsRead | EpochEnd | ValidationEnd, progress: _Bar, run):
    progress.show(run)


@dispatch
def on(event: FitEnd, progress: _Bar, run):
    progress.draw(run)


class ProgressBar(_Bar):
    """A bar with the figures, in a terminal (by rich)."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None

    def draw(self, run: Any) -> None:
        self.bar.update(self.task, completed=run.done, description=f"epoch {run.epoch + 1}", figures=_shown(run))
        self.bar.refresh()


@dispatch
def on(event: FitStart, progress: ProgressBar, run):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    # The loop calls when there is something new: a thread of rich's own would take time from the steps.
    progress.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), auto_refresh=False)
    progress.bar.start()
    progress.task = progress.bar.add_task("", total=run.steps, figures="compiling")
    progress.bar.refresh()


@dispatch
def on(event: FitEnd, progress: ProgressBar, run):
    progress.draw(run)
    progress.bar.stop()


class NotebookProgress(_Bar):
    """A bar with the figures in the output of a notebook's cell; rich's own needs another package there."""

    def __init__(self) -> None:
        self.display: Any = None

    def draw(self, run: Any) -> None:
        done = run.done if run.steps is None else f"{run.done}/{run.steps}"
        text = f"epoch {run.epoch + 1}  {done}  {_shown(run)}"
        filled = "" if run.steps is None else f' value="{run.done}" max="{run.steps}"'
        bar = f"<progress{filled}></progress> <code>{text}</code>"
        self.display.update({"text/plain": text, "text/html": bar}, raw=True)


@dispatch
def on(event: FitStart, progress: NotebookProgress, run):
    from IPython.display import display

    progress.display = display({"text/plain": "compiling"}, raw=True, display_id=True)
