"""The progress of an evaluation, shown by the progress bars of `fit`."""

from __future__ import annotations

import textwrap
import time
from types import TracebackType
from typing import Any

from fulmen.core.verbs import on
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import FitEnd, FitStart, LogsRead, listeners
from fulmen.train.interruption import Interruption
from fulmen.train.progress import NotebookProgress, PlainProgress, ProgressBar, line, progress_callbacks

_EVERY = 10.0  # seconds between two plain lines


def _brief(doing: str) -> str:
    """Short enough for a bar and the metrics to fit into 80 columns too."""
    return textwrap.shorten(doing, 26, placeholder="…")


class _Bar(ProgressBar):
    def draw(self, run: Any) -> None:
        self.bar.update(self.task, completed=run.done, description=_brief(run.doing), logs=line(run.logs))
        self.bar.refresh()


class _NotebookBar(NotebookProgress):
    def draw(self, run: Any) -> None:
        text = f"{run.done}/{run.steps}  {_brief(run.doing)}  {line(run.logs)}"
        bar = f'<progress value="{run.done}" max="{run.steps}"></progress> <code>{text}</code>'
        self.display.update({"text/plain": text, "text/html": bar}, raw=True)


class _Lines:
    printed = 0.0


@dispatch
def on(event: LogsRead, progress: _Lines, run):
    if time.perf_counter() - max(progress.printed, run.begun) >= _EVERY:
        progress.printed = time.perf_counter()
        print(f"{run.done}/{run.steps}  {run.doing}  {line(run.logs)}", flush=True)


_BARS = {ProgressBar: _Bar, NotebookProgress: _NotebookBar, PlainProgress: _Lines}


class Progress:
    """An evaluation as a run of steps: progress bars receive `fit`'s events, and read `done`, `doing` and `logs`."""

    def __init__(self, progress: Any, steps: int, interruption: Interruption) -> None:
        self.steps, self.interruption = steps, interruption
        self.done, self.doing, self.logs, self.begun = 0, "", {}, time.perf_counter()
        found = progress_callbacks(progress)
        self.bars = [_BARS[type(bar)]() if progress is True else bar for bar in found]

    def left(self) -> int:
        """The number of steps that remain."""
        return self.steps - self.done

    def begin(self, doing: str) -> None:
        """Show the step that begins; raises KeyboardInterrupt if Ctrl-C was pressed before it."""
        if self.interruption.is_set():
            raise KeyboardInterrupt
        self.doing = doing
        self._send(LogsRead())

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        self._send(LogsRead())

    def _send(self, event: Any) -> None:
        for bar in listeners(event, self.bars, self):  # type: ignore[arg-type]
            on(event, bar, self)

    def __enter__(self) -> Progress:
        self._send(FitStart())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._send(FitEnd())
