"""`SeriesLogger`: a logger of another library's store."""

from __future__ import annotations

import importlib
from typing import Any

from fulmen.dispatching.lazy_libraries import missing
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import Logger
from fulmen.train.loggers.records import Scalars, flat_numbers


class SeriesLogger(Logger):
    """A logger of a store that keeps a series of numbers for each metric, at most one for each step.

    What a killed run wrote after its last checkpoint stays in the store, and the resumed run, which repeats those steps, leaves it out.

    **Extending.** The method of `log` for `Scalars` writes `new_numbers(record)`, and `open` sets `newest`.

    Attributes:
        newest: the step of the newest number of each metric in the store.
    """

    def __init__(self, every: Every | None = None) -> None:
        super().__init__(every)
        self.newest: dict[str, int] = {}

    def new_numbers(self, record: Scalars) -> dict[str, float]:
        """The values of the metrics that have none yet for this step. They count as written."""
        numbers = flat_numbers(record.value)
        new = {name: value for name, value in numbers.items() if self.newest.get(name, -1) < record.step}
        self.newest.update(dict.fromkeys(new, record.step))
        return new


def imported(package: str, extra: str) -> Any:
    """A library that a logger needs.

    Raises:
        ImportError: if it is not installed, with the extra that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(package, f"Logs for {extra}", extra) from error
