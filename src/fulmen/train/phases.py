"""The phases of a run, as types: `run_epoch` dispatches on them. The sets of data that a run is validated on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fulmen.core import Plan, State
from fulmen.core.immutable import Immutable
from fulmen.core.verbs import due, on, restore_run_state, run_epoch, run_state
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.accumulate import plain
from fulmen.train.evaluation import checked_source, evaluate_source, evaluation_size
from fulmen.train.events import Due, Run, ValidationEnd, send
from fulmen.train.every_interval import Every


class Phase(Immutable):
    """A kind of epoch; a subclass is a frozen dataclass."""


class Training(Phase):
    """Epochs in which each batch is a training step."""


class Validation(Phase):
    """An evaluation of all examples, once.

    Args:
        data: the validation data; None for a subclass with a method that needs none.
    """

    data: Any = None


class EvaluationData(Immutable):
    """The batches of an evaluation, one pass over the data in order: an iterable."""

    source: Source
    plan: Plan

    def __iter__(self) -> Iterator[Any]:
        return self.source.read(self.plan, 0)


@dispatch
def run_epoch(phase: Training, state, source, run):
    loop = run.loop
    if state is not loop.handed:
        loop.take(state)
    loop.run_epoch(iter(source))
    return loop.hand_out(), loop.epoch_logs()


@dispatch
def run_epoch(phase: Validation, state, source, run):
    return state, evaluate_source(state, source.source, source.plan)


_of_training = run_epoch.method(Training(), None, None, None)


def trains_in_place(phase: Phase, run: Any) -> bool:
    """Whether the phase is the library's training, which may reuse the memory of the state that it is given."""
    return run_epoch.method(phase, None, None, run) is _of_training


class ValidationSets:
    """The phases of the validation with their data; as a callback it validates after steps or minutes, and `fit` after epochs.

    `validation` is data, a phase, or a dict of them by name. For training data that is a dict, a dict with the same keys is one set.

    Attributes:
        at: the epoch and the step of the newest validation; at the same ones there is no other.
        newest: its metrics, with those that callbacks added.
    """

    at: Any = None
    newest: dict[str, Any] = {}

    def __init__(self, validation: Any, every: Every, state: State, data: Any, epochs: int | None) -> None:
        self.every = every
        _warn_of_pairs(validation, data)
        one = not isinstance(validation, Mapping) or (isinstance(data, Mapping) and data.keys() == validation.keys())
        named = {"validation": validation} if one else {f"validation/{name}": v for name, v in validation.items()}
        self.phases: dict[str, tuple[Phase, Any]] = {}
        for name, given in named.items():
            phase = given if isinstance(given, Phase) else Validation(given)
            found = None
            if isinstance(phase, Validation) and phase.data is not None:
                try:
                    source = checked_source(state.system, phase.data, name.replace("/", " "))
                    found = EvaluationData(source, source.plan(usual=evaluation_size(state), epochs=epochs))
                except (TypeError, ValueError) as error:
                    option = "validation" if one else f"validation[{name.partition('/')[2]!r}]"
                    error.add_note(f"in the data of `{option}`")
                    raise
            self.phases[name] = phase, found

    def validate(self, run: Run) -> None:
        """Add the metrics of the current state to the logs, and tell the callbacks."""
        known = run.logs
        run.logs = {**known, **self.measure(run)}
        send(ValidationEnd(), run.callbacks, run)
        self.newest = {name: value for name, value in run.logs.items() if name not in known}
        self.at = [run.epoch, run.step]

    def is_done(self, run: Run) -> bool:
        """Whether the validation at this step of the epoch is done."""
        return self.at == [run.epoch, run.step]

    def measure(self, run: Run) -> dict[str, Any]:
        """The metrics of the current state, by their names in the logs."""
        logs: dict[str, Any] = {}
        for prefix, (phase, data) in self.phases.items():
            _, found = run_epoch(phase, run.arrays(), data, run)
            logs |= {f"{prefix}/{name}": value for name, value in found.items()}
        return logs


def _warn_of_pairs(validation: Any, data: Any) -> None:
    """Warn of a list of pairs beside training data that is a pair of arrays: it is not read as several sets."""
    if isinstance(validation, list) and isinstance(data, tuple) and validation and isinstance(validation[0], tuple):
        warn(
            "validation is a list of pairs, which is read as the batches of one set; several sets have names: {'clean': …}."
        )


@dispatch
def due(callback: ValidationSets):
    return callback.every


@dispatch
def on(event: Due, callback: ValidationSets, run):
    if event.by == "epochs" or callback.is_done(run):
        return
    callback.validate(run)
    run.history.append({"step": float(run.step), **run.logs})


@dispatch
def run_state(callback: ValidationSets):
    newest = {name: np.asarray(value).tolist() for name, value in callback.newest.items()}
    return None if callback.at is None else {"at": callback.at, "newest": newest}


@dispatch
def restore_run_state(callback: ValidationSets, saved):
    callback.at, callback.newest = saved["at"], {name: plain(np.asarray(value)) for name, value in saved["newest"].items()}
