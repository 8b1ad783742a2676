"""The progress that `fit` shows: a bar in a terminal or a notebook, plain lines elsewhere; and `Printer`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fulmen.core.verbs import due, on
from fulmen.devices.processes import is_first
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import Due, EpochEnd, FitEnd, FitStart, LogReader, LogsRead, ValidationEnd
from fulmen.train.every_interval import Every
from fulmen.train.history import find_metric

_REDRAW = 0.25  # seconds between two drawings of a bar; each delays the steps by about a millisecond


def progress_callbacks(progress: Any) -> list[Any]:
    """The callbacks for `progress=`: True, False, or a custom callback."""
    if progress is False or progress is None:
        return []
    if isinstance(progress, str | int) and progress is not True:
        raise TypeError(f"progress must be True, False or a callback, got {progress!r}; write progress=True.")
    if progress is not True:
        return [progress]
    if _in_notebook():
        return [NotebookProgress()]
    return [ProgressBar() if sys.stdout.isatty() else PlainProgress()]


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def line(logs: Mapping[str, Any], opposed: bool = False) -> str:
    """Logs in one line: the metrics without their entries, the loss, the learning rate; of a population with `± std`.

    If losses are opposed, as a game's, their sum means nothing, and each player's loss is shown instead.
    """
    if opposed:
        logs = {name: value for name, value in logs.items() if not _is_sum_of_losses(name, logs)}
    shown = {k: v for k, v in logs.items() if isinstance(v, float) and not any(above in logs for above in _above(k))}
    last = sorted(shown, key=lambda name: (not name.endswith("loss"), name.startswith("lr")))
    spread = {name: logs.get(f"{name}/std") for name in last}
    return "  ".join(f"{name} {shown[name]:.4g}{f' ± {spread[name]:.2g}' if spread[name] else ''}" for name in last)


def _is_sum_of_losses(name: str, logs: Mapping[str, Any]) -> bool:
    """Whether it is the whole loss, of the training or of a validation, and its entries are logged too."""
    return name.rpartition("/")[2] == "loss" and any(other.startswith(f"{name}/") for other in logs)


def _above(name: str) -> list[str]:
    """The names that a name is an entry of: `loss` and `loss/critic` for `loss/critic/fake`."""
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _text(run: Any) -> str:
    """The newest logs and the speed. A single step, which was compiled, has no speed."""
    return f"{line(run.logs, run.history.opposed)}{f'  {run.speed:.0f} steps/s' * (run.speed > 0)}"


class PlainProgress:
    """A line per epoch."""


@dispatch
def on(event: EpochEnd, progress: PlainProgress, run):
    print(f"epoch {run.epoch + 1}{', not complete' * run.loop.cut}  {_text(run)}", flush=True)


@dispatch
def on(event: ValidationEnd, progress: PlainProgress, run):
    shown = {name: value for name, value in run.logs.items() if name.startswith("validation/")}
    print(f"epoch {run.epoch + 1}  {line(shown, run.history.opposed)}", flush=True)


class _Bar:
    """A bar that is drawn a few times a second."""

    drawn = 0.0

    def show(self, run: Any) -> None:
        if run.left() == 0 or time.perf_counter() - self.drawn >= _REDRAW:
            self.drawn = time.perf_counter()
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
    """A bar with the logs, in a terminal (by rich)."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.lines: list[str] = []  # of epochs, to be printed with the next drawing: printing takes some milliseconds

    def draw(self, run: Any) -> None:
        if self.lines:
            self.bar.console.print("\n".join(self.lines), highlight=False)
            self.lines.clear()
        self.bar.update(self.task, completed=run.done, description=f"epoch {run.epoch + 1}", logs=_text(run))
        self.bar.refresh()


@dispatch
def on(event: FitStart, progress: ProgressBar, run):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    # Logs that are too long for the line are cut, and not the numbers before them.
    logs = TextColumn("{task.fields[logs]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    # Drawn by the loop: rich's own thread would take time from the steps. On the global console another bar may be live.
    progress.bar = Progress(*columns, logs, console=Console(), auto_refresh=False, expand=True)
    progress.bar.start()
    progress.task = progress.bar.add_task("", total=run.steps, logs="compiling")
    progress.bar.refresh()


@dispatch
def due(progress: ProgressBar):
    return Every(epochs=1)


@dispatch
def on(event: Due, progress: ProgressBar, run):
    progress.lines.append(f"epoch {run.epoch + 1}  {_text(run)}")
    progress.show(run)


@dispatch
def on(event: FitEnd, progress: ProgressBar, run):
    progress.draw(run)
    progress.bar.stop()


class NotebookProgress(_Bar):
    """A bar with the logs in the output of a notebook cell, where rich would need another package."""

    def __init__(self) -> None:
        self.display: Any = None

    def draw(self, run: Any) -> None:
        done = run.done if run.steps is None else f"{run.done}/{run.steps}"
        text = f"epoch {run.epoch + 1}  {done}  {_text(run)}"
        filled = "" if run.steps is None else f' value="{run.done}" max="{run.steps}"'
        bar = f"<progress{filled}></progress> <code>{text}</code>"
        self.display.update({"text/plain": text, "text/html": bar}, raw=True)


@dispatch
def on(event: FitStart, progress: NotebookProgress, run):
    from IPython.display import display

    progress.display = display({"text/plain": "compiling"}, raw=True, display_id=True)


class Printer(LogReader):
    """A callback that prints a line with the metrics after each epoch, and at an interval.

    Args:
        every: when to print within epochs, such as `fm.Every(steps=100)`; None is never.
        metrics: the names of the metrics to print; None is all single numbers but the entries of the loss.
        file: where to print; None is the standard output.

    >>> printer = fm.Printer(metrics=["loss"])
    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> system = fm.Classifier(fm.models.Dense(4, 3, weight=jnp.zeros((4, 3)), bias=jnp.zeros(3)))
    >>> state, _ = fm.fit(system, data, optimizer=optax.sgd, lr=0.1, epochs=2, callbacks=[printer], progress=False)
    epoch 1  step 1  loss 1.099
    epoch 2  step 2  loss 0.7944
    """

    def __init__(self, every: Every | None = None, metrics: Sequence[str] | None = None, file: Any = None) -> None:
        self.every, self.metrics, self.file = every, metrics, file


@dispatch
def due(callback: Printer):
    return Every(epochs=1) if callback.every is None else callback.every | Every(epochs=1)


@dispatch
def on(event: Due, callback: Printer, run):
    logs = run.logs
    if callback.metrics is not None and event.by == "epochs":
        logs = {name: find_metric(logs, name, "Printer") for name in callback.metrics}
    elif callback.metrics is not None:  # some metrics are logged only after epochs
        logs = {name: logs[name] for name in callback.metrics if name in logs}
    if is_first():
        print(f"epoch {run.epoch + 1}  step {run.step}  {line(logs)}", file=callback.file, flush=True)
