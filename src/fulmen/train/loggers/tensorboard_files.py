"""`TensorBoard`: event files that TensorBoard reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.lazy_libraries import installed
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import SeriesLogger
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Scalars, Text, image_bytes


class TensorBoard(SeriesLogger):
    """A logger that writes event files for TensorBoard, by tensorboardX: `pip install "fulmen[tensorboard]"`.

    Of a run that is resumed, the files are cut to what its checkpoint knows, and a TensorBoard that has read more drops it. A new run
    writes another file in the directory: give each run its own. After each checkpoint another file begins, since tensorboardX writes on
    a thread, and only a file that is closed is known to be complete.

    Args:
        directory: the run's directory.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.

    Raises:
        ImportError: if tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], every: Every | None = None) -> None:
        super().__init__(every)
        self.directory = Path(directory)
        self.library = installed("tensorboardX", "Logs for tensorboard", "tensorboard")
        self.purge: int | None = None
        self._writer: Any = None

    def open(self, step: int, saved: Any) -> None:
        if saved is not None:
            for file in self.files():
                size = saved["files"].get(file.name, 0)
                if size:
                    os.truncate(file, min(size, file.stat().st_size))
                else:
                    file.unlink()
        # Readers drop the records from `purge` on; those of `step` itself are known to the checkpoint.
        self.purge = step + 1 if step else None
        self.newest = {} if saved is None else saved["newest"]

    @property
    def writer(self) -> Any:
        """tensorboardX's writer, with a new file if there is none."""
        if self._writer is None:
            suffix = f".{len(self.files()):05d}.fulmen"  # the rest of a name is the second and the host
            options = dict(purge_step=self.purge, filename_suffix=suffix)
            self._writer, self.purge = self.library.SummaryWriter(str(self.directory), **options), None
        return self._writer

    def files(self) -> list[Path]:
        """The files that this logger wrote, in this run or before."""
        return sorted(self.directory.glob("events.out.tfevents.*.fulmen"))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@dispatch
def run_state(callback: TensorBoard):
    callback.close()
    return {"files": {file.name: file.stat().st_size for file in callback.files()}, "newest": dict(callback.newest)}


@dispatch
def log(logger: TensorBoard, record: Scalars):
    for name, value in logger.new_numbers(record).items():
        logger.writer.add_scalar(name, value, record.step)
    logger.writer.flush()


@dispatch
def log(logger: TensorBoard, record: Text):
    logger.writer.add_text(record.name, f"```\n{record.value}\n```", record.step)  # Markdown


@dispatch
def log(logger: TensorBoard, record: Hyperparameters):
    rows = "".join(f"| {name} | {value} |\n" for name, value in record.value.items())
    logger.writer.add_text(record.name, f"| name | value |\n|---|---|\n{rows}", record.step)


@dispatch
def log(logger: TensorBoard, record: Image):
    logger.writer.add_image(record.name, image_bytes(record.value), record.step, dataformats="HWC")


@dispatch
def log(logger: TensorBoard, record: Histogram):
    logger.writer.add_histogram(record.name, np.asarray(record.value), record.step)
