"""`Logger`: a callback that turns the events of a run into records, and writes them by `log`; `SeriesLogger` for other libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fulmen.core.leaves import OTHER, leaves
from fulmen.core.verbs import due, log, on, restore_run_state, run_state, summary
from fulmen.devices.processes import is_first
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.events import Due, EpochEnd, FitEnd, FitStart, LogReader, ValidationEnd
from fulmen.train.every_interval import Every
from fulmen.train.loggers.records import Hyperparameters, Record, Scalars, Text, flat_numbers


class Logger(LogReader):
    """A callback that writes records: the options and the system's summary at the start, and the metrics after each epoch, after
    each validation within an epoch, and at an interval.

    An error of a logger is a warning, once for each run, and does not end the run. After a resume, no record is written twice and
    none is missing. With several processes the first one writes.

    **Extending.** A subclass has methods of `log` for the kinds of records that it writes, others are ignored. It may override
    `open` and `close`, and the verb `run_state` for what `open` needs after a resume.

    Args:
        every: when to log within epochs, such as `fm.Every(steps=50)`: the means over the epoch so far. None is never.
    """

    def __init__(self, every: Every | None = None) -> None:
        self.every = every
        self._saved: Any = None
        self._failed = self._ending = False
        self._written: int | None = None

    def open(self, step: int, saved: Any) -> None:
        """Prepare for a run.

        Args:
            step: the number of steps that the state has had. Records of later steps belong to a run that was killed.
            saved: what `run_state` returned when the checkpoint was saved that the run is resumed from, or None.
        """

    def close(self) -> None:
        """Finish after a run."""

    def write(self, record: Record) -> None:
        """Write a record; an error is a warning."""
        if is_first():
            with self.guarded():
                log(self, record)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn an error into a warning, the first time."""
        try:
            yield
        except Exception as error:
            if not self._failed:
                self._failed = True
                warn(f"{type(self).__name__} failed, and the run continues: {type(error).__name__}: {error}")


def write_record(run: Any, record: Record) -> None:
    """Give a record to all loggers of a run, from a callback."""
    for callback in run.callbacks:
        if isinstance(callback, Logger):
            callback.write(record)


@dispatch
def log(logger: Logger, record):
    return None  # a kind of record that it does not write


def _require_log(logger: Logger) -> None:
    """Raise for a logger that has no method of `log` for any kind of record, and none of `on`."""
    kind, name = type(logger), type(logger).__name__
    records = lambda classes: any(issubclass(k, Record) or issubclass(Record, k) for k in classes)
    logs = any(m.is_own(kind, Logger) and records(m.members[1]) for m in log.methods)
    if not logs and not any(m.is_own(kind, Logger, 1) for m in on.methods):
        raise TypeError(
            f"{name} has no method of `log` for any kind of record, so it would write nothing. Write\n\n    @dispatch\n"
            f"    def log(logger: {name}, record: fm.loggers.Scalars): …\n"
        )


@dispatch
def due(callback: Logger):
    return Every(epochs=1) if callback.every is None else callback.every | Every(epochs=1)


@dispatch
def run_state(callback: Logger):
    return {}


@dispatch
def restore_run_state(callback: Logger, saved):
    callback._saved = saved


@dispatch
def on(event: FitStart, callback: Logger, run):
    _require_log(callback)
    saved, callback._saved = callback._saved, None
    callback._failed = callback._ending = False
    if not is_first():
        return
    with callback.guarded():
        callback.open(run.step, saved)
    if saved is None:
        with callback.guarded():
            callback.write(Hyperparameters(run.step, "hyperparameters", _settings(run)))
            callback.write(Text(run.step, "summary", str(summary(run.arrays()))))


def _settings(run: Any) -> dict[str, Any]:
    """The options of a run, its optimizer, and the system's hyperparameters that are numbers."""
    state = run.arrays()
    numbers = [leaf for leaf in leaves(state.system) if leaf.role == OTHER and getattr(leaf.value, "shape", ()) == ()]
    given = {**run.options, "system": type(state.system).__name__, "optimizer": state.optimizer}
    plain = (bool, int, float, str, type(None))
    return {
        **{name: value if isinstance(value, plain) else repr(value) for name, value in given.items()},
        **{f"system.{leaf.path}": float(leaf.value) for leaf in numbers},
    }


@dispatch
def on(event: EpochEnd, callback: Logger, run):
    callback._ending = True  # a validation that follows belongs to the record of the epoch


@dispatch
def on(event: ValidationEnd, callback: Logger, run):
    if not callback._ending:
        callback._written = run.step
        callback.write(_scalars("validation", run))


@dispatch
def on(event: Due, callback: Logger, run):
    if event.by == "epochs":
        callback._ending = False
    elif callback._written == run.step:
        return  # by the validation of this step
    callback.write(_scalars("epoch" if event.by == "epochs" else event.by, run))


def _scalars(name: str, run: Any) -> Scalars:
    return Scalars(run.step, name, {"epoch": run.epoch + 1, **run.logs})


@dispatch
def on(event: FitEnd, callback: Logger, run):
    if is_first():
        with callback.guarded():
            callback.close()


# Stores of other libraries


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
