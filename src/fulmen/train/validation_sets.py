"""The validation of a run: one set of data, or several by name, after epochs or after steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fulmen.core.state import State
from fulmen.core.verbs import due, on, run_epoch
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.evaluation import checked_source, evaluation_size
from fulmen.train.events import Due, Run, ValidationEnd, send
from fulmen.train.every_interval import Every
from fulmen.train.phases import EvaluationData, Phase, Validation


class ValidationSets:
    """The phases of the validation with their data, by the prefix of their metrics.

    Args:
        validation: data, a `Validation`, or a dict of them by name. For training data that is a dict, a dict with the same keys is
            one set.
        every: when it is measured.
        state: the state of the run.
        data: the training data.
        epochs: the number of epochs, for data without a length.
    """

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
                with _named("validation" if one else f"validation[{name.partition('/')[2]!r}]"):
                    source = checked_source(state.system, phase.data, "validation" if one else name.replace("/", " "))
                    found = EvaluationData(source, source.plan(usual=evaluation_size(state), epochs=epochs))
            self.phases[name] = phase, found

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


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """A context whose errors say that they are about this data."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in the data of `{what}`")
        raise


class StepValidation:
    """The callback that validates after steps or minutes; `fit` itself validates after epochs."""

    def __init__(self, sets: ValidationSets) -> None:
        self.sets = sets


@dispatch
def due(callback: StepValidation):
    return callback.sets.every


@dispatch
def on(event: Due, callback: StepValidation, run):
    if event.by == "epochs":
        return
    run.logs = {**run.logs, **callback.sets.measure(run)}
    send(ValidationEnd(), run.callbacks, run)
    run.history.append({"step": float(run.step), **run.logs})
