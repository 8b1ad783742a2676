"""`WandB` and `Trackio`: runs of Weights & Biases, and of Trackio, which has the same interface."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.lazy_libraries import installed
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import SeriesLogger
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Scalars, Text, image_bytes

_QUEUED = 60.0  # seconds after which Trackio has certainly written what it was given


class ProjectLogger(SeriesLogger):
    """A logger of a library with the interface of wandb: `init` starts a run of a project, which has `log` and `finish`."""

    def __init__(self, package: str, project: str | None, every: Every | None, options: dict[str, Any]) -> None:
        super().__init__(every)
        self.library = installed(package, f"Logs for {package}", package)
        self.options = {"project": project, **options}
        self.run: Any = None

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


class WandB(ProjectLogger):
    """A logger that writes to Weights & Biases: `pip install "fulmen[wandb]"`. `mode="offline"` needs no account and no network.

    A resumed run continues the run of the same id. Offline, it writes another folder of that id, which repeats the steps after the
    checkpoint; `wandb sync` merges them.

    Args:
        project: the name of the project.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.
        **options: those of `wandb.init`, such as `name`, `mode` and `dir`.

    Raises:
        ImportError: if wandb is not installed.
    """

    def __init__(self, project: str | None = None, every: Every | None = None, **options: Any) -> None:
        super().__init__("wandb", project, every, options)

    def open(self, step: int, saved: Any) -> None:
        known = {} if saved is None else {"id": saved["id"], "resume": "allow"}
        self.run = self.library.init(**{**self.options, **known})
        self.newest = {}


@dispatch
def run_state(callback: WandB):
    return None if callback.run is None else {"id": callback.run.id}


@dispatch
def log(logger: WandB, record: Scalars):
    if record.step >= logger.run.step:  # W&B accepts no older steps, and a resumed run has them
        logger.run.log(logger.new_numbers(record), step=record.step)


@dispatch
def log(logger: WandB, record: Hyperparameters):
    logger.run.config.update(record.value, allow_val_change=True)


@dispatch
def log(logger: WandB, record: Text):
    table = logger.library.Table(columns=[record.name], data=[[record.value]])
    logger.run.log({record.name: table}, step=record.step)


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


@dispatch
def run_state(callback: Trackio):
    if callback.run is None:
        return None
    # The library, which writes on a thread, may not have written these numbers yet.
    callback.queue = [each for each in callback.queue if time.monotonic() - each[0] < _QUEUED]
    return {"name": callback.run.name, "recent": [[step, numbers] for _, step, numbers in callback.queue]}


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
def log(logger: WandB | Trackio, record: Image):
    logger.run.log({record.name: logger.library.Image(image_bytes(record.value))}, step=record.step)


@dispatch
def log(logger: WandB | Trackio, record: Histogram):
    logger.run.log({record.name: logger.library.Histogram(np.asarray(record.value).ravel())}, step=record.step)
