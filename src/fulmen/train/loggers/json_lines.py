"""`JSONLines`: a file with one JSON object for each record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.every_interval import Every
from fulmen.train.history import without_nan
from fulmen.train.loggers.logger import Logger
from fulmen.train.loggers.records import Histogram, Hyperparameters, Record, Scalars, Text


class JSONLines(Logger):
    """A logger that writes one JSON object for each record to a file: `{"record": "epoch", "step": 100, "epoch": 1, "loss": …}`.

    Numbers that are not finite are null, since JSON has none. A new run replaces the file; a run that continues a state keeps the
    lines up to its step; a resumed run keeps those that its checkpoint knows. Images are not written.

    Args:
        path: the file. Its folder is made if it does not exist.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.

    >>> import json, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "run.jsonl")
    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> options = dict(optimizer=optax.sgd, lr=0.1, epochs=2, callbacks=[fm.JSONLines(path)], progress=False)
    >>> state, _ = fm.fit(fm.Classifier(fm.models.Dense(4, 3)), data, **options)
    >>> [(line["record"], line["step"]) for line in map(json.loads, path.read_text().splitlines())]
    [('hyperparameters', 0), ('summary', 0), ('epoch', 1), ('epoch', 2)]
    """

    def __init__(self, path: str | os.PathLike[str], every: Every | None = None) -> None:
        super().__init__(every)
        self.path = Path(path)
        self.size = 0  # bytes that were written
        self.file: Any = None

    def open(self, step: int, saved: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115
        if saved is None:
            self.size = self._size_until(step) if step else 0
            return
        there = os.fstat(self.file.fileno()).st_size
        if there < saved["size"]:
            warn(f"JSONLines: {self.path} lost {saved['size'] - there} bytes since the checkpoint.")
        self.size = min(saved["size"], there)

    def _size_until(self, step: int) -> int:
        """The size of the lines up to a step."""
        size = 0
        for line in self.file:
            try:
                if json.loads(line)["step"] > step:
                    break
            except ValueError:  # a line that was cut off
                break
            size += len(line)
        return size

    def append(self, record: Record, values: dict[str, Any]) -> None:
        """Write a line."""
        if self.file is None:  # outside of a run
            self.open(record.step, None)
        named = {"record": record.name, "step": record.step, **values}
        line = json.dumps(without_nan(named), allow_nan=False).encode() + b"\n"
        file: Any = self.file
        file.seek(self.size)
        file.truncate()
        file.write(line)
        file.flush()
        self.size += len(line)

    def close(self) -> None:
        if self.file is not None:
            self.file.truncate(self.size)
            self.file.close()
        self.file = None


@dispatch
def run_state(callback: JSONLines):
    return {"size": callback.size}


@dispatch
def log(logger: JSONLines, record: Scalars):
    logger.append(record, record.value)


@dispatch
def log(logger: JSONLines, record: Text | Hyperparameters):
    logger.append(record, {"value": record.value})


@dispatch
def log(logger: JSONLines, record: Histogram):
    counts, edges = np.histogram(np.asarray(record.value))
    logger.append(record, {"counts": counts, "edges": edges})
