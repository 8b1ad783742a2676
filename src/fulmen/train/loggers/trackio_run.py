"""`Trackio`: a run of Trackio."""

from __future__ import annotations

import importlib
import time
from typing import Any

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Scalars, Text
from fulmen.train.loggers.series_logger import ProjectLogger

_QUEUED = 60.0  # seconds after which the library has certainly written what it was given


class Trackio(ProjectLogger):
    """A logger that writes to Trackio, a local database with a dashboard: `pip install "fulmen[trackio]"`, `trackio show`.

    Args:
        project: the name of the project.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.
        **options: those of `trackio.init`, such as `name` and `space_id`.

    Raises:
        ImportError: if trackio is not installed.
    """

    def __init__(self, project: str, every: Every | None = None, **options: Any) -> None:
        super().__init__("trackio", project, every, options)
        self.queue: list[tuple[float, int, dict[str, float]]] = []

    def open(self, step: int, saved: Any) -> None:
        known = {} if saved is None else {"name": saved["name"], "resume": "allow"}
        self.run = self.library.init(**{**self.options, **known})
        self.newest, self.queue = {}, []
        if saved is not None:
            storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            for row in storage.get_logs(self.options["project"], saved["name"], run_id=self.run.id):
                self.newest |= dict.fromkeys(row, row["step"])
            for at, numbers in saved["recent"]:
                self.write(Scalars(at, "recent", numbers))

    def recent(self) -> list[Any]:
        """The numbers that the library, which writes on a thread, may not have written yet."""
        self.queue = [each for each in self.queue if time.monotonic() - each[0] < _QUEUED]
        return [[step, numbers] for _, step, numbers in self.queue]


@dispatch
def run_state(callback: Trackio):
    return None if callback.run is None else {"name": callback.run.name, "recent": callback.recent()}


@dispatch
def log(logger: Trackio, record: Scalars):
    numbers = logger.new_numbers(record)
    if numbers:
        logger.run.log(numbers, step=record.step)
        logger.queue.append((time.monotonic(), record.step, numbers))


@dispatch
def log(logger: Trackio, record: Hyperparameters):
    logger.run.config.update(record.value)  # sent with the first numbers


@dispatch
def log(logger: Trackio, record: Text):
    logger.run.log({record.name: logger.library.Markdown(f"```\n{record.value}\n```")}, step=record.step)


@dispatch
def log(logger: Trackio, record: Image):
    logger.log_image(record)


@dispatch
def log(logger: Trackio, record: Histogram):
    logger.log_histogram(record)
