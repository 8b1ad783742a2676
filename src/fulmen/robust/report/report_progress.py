"""What an evaluation shows while it runs."""

from __future__ import annotations

import textwrap
import time
from types import TracebackType
from typing import Any

from fulmen.core.verbs import on
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import FitEnd, FitStart, LogsRead, listeners
from fulmen.train.progress import NotebookProgress, PlainProgress, ProgressBar, line, progress_callbacks

_EVERY = 10.0  # seconds between two plain lines


def _brief(doing: str) -> str:
    """So much that a bar and the figures have room beside it in 80 columns."""
    return textwrap.shorten(doing, 26, placeholder="…")


class _Bar(ProgressBar):
    def draw(self, run: Any) -> None:
        self.bar.update(self.task, completed=run.done, description=_brief(run.doing), figures=line(run.logs))
        self.bar.refresh()


class _NotebookBar(NotebookProgress):
    def draw(self, run: Any) -> None:
        text = f"{run.done}/{run.steps}  {_brief(run.doing)}  {line(run.logs)}"
        bar = f'<progress value="{run.done}" max="{run.steps}"></progress> <code>{text}</code>'
        self.display.update({"text/plain": text, "text/html": bar}, raw=True)


class _Lines:
    said = 0.0


@dispatch
def on(event: LogsRead, progress: _Lines, run):
    if time.perf_counter() - max(progress.said, run.begun) >= _EVERY:
        progress.said = time.perf_counter()
        print(f"{run.done}/{run.steps}  {run.doing}  {line(run.logs)}", flush=True)


_OURS = {ProgressBar: _Bar, NotebookProgress: _NotebookBar, PlainProgress: _Lines}


class Progress:
    """An evaluation as progress bars see it: they are told of its events as `fit`'s are.

    Attributes:
        steps: how many steps it has.
        done: how many of them are done.
        doing: what it is at.
        logs: the newest figures.
    """

    def __init__(self, progress: Any, steps: int) -> None:
        self.steps, self.done, self.doing, self.logs, self.begun = steps, 0, "", {}, time.perf_counter()
        found = progress_callbacks(progress)
        self.bars = [_OURS[type(bar)]() if progress is True else bar for bar in found]

    def left(self) -> int:
        """How many steps are to come."""
        return self.steps - self.done

    def say(self, doing: str) -> None:
        """Show what it is at."""
        self.doing = doing
        self._tell(LogsRead())

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        self._tell(LogsRead())

    def figures(self, **figures: float) -> None:
        """The newest figures."""
        self.logs = figures

    def _tell(self, event: Any) -> None:
        run: Any = self
        for bar in listeners(event, self.bars, run):
            on(event, bar, run)

    def __enter__(self) -> Progress:
        self._tell(FitStart())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tell(FitEnd())
