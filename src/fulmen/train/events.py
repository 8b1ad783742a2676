"""The events of a run, as types, for callbacks: `on(event, callback, run)`."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fulmen.core.mode import Plan
from fulmen.core.state import State
from fulmen.core.verbs import due, on, owns, restore_run_state, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.train.history import History

Logs: TypeAlias = dict[str, Any]
"""Metrics by name: numbers, and arrays for metrics of several numbers."""


class Event:
    """An event of a run."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FitStart(Event):
    """Before the first step."""


class EpochStart(Event):
    """Before the first step of an epoch."""


class StepEnd(Event):
    """After a step; `run.logs` are the logs of that step. A method for it makes the run read every step's logs."""


class LogsRead(Event):
    """The logs of the epoch so far were read from the device, about ten times a second; they are in `run.logs`."""


class EpochEnd(Event):
    """After the last step of an epoch; `run.logs` are the logs of the epoch."""


class ValidationEnd(Event):
    """After an evaluation on the validation data, whose metrics are in `run.logs` too."""


class Due(Event):
    """The time that a callback asked for by `due`; sent to that callback alone.

    Args:
        by: "steps", "epochs" or "minutes".
    """

    def __init__(self, by: str = "steps") -> None:
        self.by = by


class FitEnd(Event):
    """After the run, also after an error."""


class Interrupted(Event):
    """Ctrl-C was pressed; the run ends with the current state."""


@dataclasses.dataclass
class Run:
    """A run as callbacks see it.

    Attributes:
        plan: the state's plan.
        history: the epochs so far.
        epoch: the number of the epoch, from 0.
        step: the number of steps that the state has had.
        steps: the number of steps of this run; None for data without a length.
        done: the number of steps of this run that are done.
        logs: the newest logs, as floats and NumPy arrays.
        seconds: the duration of the run so far.
        speed: recent steps per second.
    """

    plan: Plan
    history: History
    steps: int | None
    epoch: int = 0
    step: int = 0
    done: int = 0
    logs: Logs = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    speed: float = 0.0
    stopping: bool = False
    _state: Any = dataclasses.field(default=None, repr=False)

    @property
    def state(self) -> State:
        """The current state, copied: the run reuses its memory."""
        return jax.tree.map(jnp.copy, self._state())

    @state.setter
    def state(self, value: Any) -> None:
        raise AttributeError(
            "run.state cannot be replaced in a callback. To change the state between steps, write the loop: "
            "`for batch in fm.batches(data, …): state, logs = fm.train_step(state, batch)`."
        )

    def left(self) -> int | None:
        """The number of remaining steps, or None if it is unknown."""
        return None if self.steps is None else self.steps - self.done

    def stop(self) -> None:
        """End the run after this step."""
        self.stopping = True


def _ignore(event: object, callback, run):
    return None


on.dispatch(_ignore)


@dispatch
def due(callback: object):
    return None


@dispatch
def owns(callback: object):
    return ()


@dispatch
def run_state(callback: object):
    return None


@dispatch
def restore_run_state(callback: object, saved):
    return None


def listeners(event: Event, callbacks: Any, run: Run) -> list[Any]:
    """The callbacks that have a method for an event."""
    return [c for c in callbacks if on.method(event, c, run).function is not _ignore]


def require_listeners(callbacks: Any, run: Run) -> None:
    """Raise on a callback that has no method for any event."""
    for callback in callbacks:
        if isinstance(callback, type):
            name = callback.__name__
            raise TypeError(f"callbacks must be instances, got the class {name}; write {name}(…).")
        if not any(listeners(event(), [callback], run) for event in _subclasses(Event)):
            name = type(callback).__name__
            raise TypeError(
                f"callbacks: {name} has no method of `on`, so it would never be called. Write\n\n    @dispatch\n"
                f"    def on(event: fm.EpochEnd, callback: {name}, run): …\n"
            )


def _subclasses(kind: type) -> list[type]:
    return [k for below in kind.__subclasses__() for k in (below, *_subclasses(below))]
