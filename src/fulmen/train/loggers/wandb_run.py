"""`WandB`: a run of Weights & Biases."""

from __future__ import annotations

from typing import Any

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Scalars, Text
from fulmen.train.loggers.series_logger import ProjectLogger


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


@dispatch
def log(logger: WandB, record: Image):
    logger.log_image(record)


@dispatch
def log(logger: WandB, record: Histogram):
    logger.log_histogram(record)
