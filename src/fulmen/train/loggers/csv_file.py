"""`CSV`: a table with one row for each record of metrics."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import Logger
from fulmen.train.loggers.records import Scalars, flat_numbers


class CSV(Logger):
    """A logger that writes the metrics to a table, which `pandas.read_csv` reads; a metric that is not logged in a row is empty.

    When a new metric appears, the file is written again with another column. A new run replaces the file; a run that continues a
    state keeps the rows up to its step; a resumed run keeps those that its checkpoint knows. Other records are not written.

    Args:
        path: the file. Its folder is made if it does not exist.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.

    >>> fm.CSV("run.csv", every=fm.Every(steps=50)).every
    Every(steps=50)
    """

    def __init__(self, path: str | os.PathLike[str], every: Every | None = None) -> None:
        super().__init__(every)
        self.path = Path(path)
        self.columns: list[str] = []
        self.rows = 0

    def open(self, step: int, saved: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.columns, rows = self._read()
        if saved is not None:
            self.columns, rows = saved["columns"], rows[: saved["rows"]]
        else:
            rows = [row for row in rows if step and int(row["step"]) <= step]
            self.columns = self.columns if rows else []
        self._write(rows)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.exists():
            return [], []
        with open(self.path, newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)

    def _write(self, rows: list[dict[str, str]]) -> None:
        """Replace the file."""
        new = self.path.with_name(f"{self.path.name}.new")
        with open(new, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(new, self.path)
        self.rows = len(rows)

    def append(self, values: dict[str, Any]) -> None:
        """Write a row."""
        unknown = [name for name in values if name not in self.columns]
        if unknown:
            rows = self._read()[1][: self.rows]
            self.columns = [*self.columns, *unknown]
            self._write(rows)
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(values)
        self.rows += 1


@dispatch
def run_state(callback: CSV):
    return {"columns": callback.columns, "rows": callback.rows}


@dispatch
def log(logger: CSV, record: Scalars):
    numbers = flat_numbers({k: v for k, v in record.value.items() if k != "epoch"})
    logger.append({"record": record.name, "step": record.step, "epoch": record.value["epoch"], **numbers})
