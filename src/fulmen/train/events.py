"""What happens in a run, as types, for callbacks: `on(event, callback, run)`."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fulmen.core.mode import Plan
from fulmen.core.state import State
from fulmen.core.verbs import on
from fulmen.train.history import History

Logs: TypeAlias = dict[str, Any]
"""Figures by name: numbers, and arrays where a metric has several."""

__all__ = [
    "EpochEnd",
    "EpochStart",
    "Event",
    "FitEnd",
    "FitStart",
    "Interrupted",
    "Logs",
    "LogsRead",
    "Run",
    "StepEnd",
    "ValidationEnd",
]


class Event:
    """Something that happened in a run."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class FitStart(Event):
    """Before the first step."""


class EpochStart(Event):
    """Before the first step of an epoch."""


class StepEnd(Event):
    """After a step; `run.logs` are that step's. If somebody overloads it, every step's values are read."""


class LogsRead(Event):
    """The figures so far in the epoch were read from the device, about ten times a second; they are in `run.logs`."""


class EpochEnd(Event):
    """After the last step of an epoch; `run.logs` are the epoch's."""


class ValidationEnd(Event):
    """After an evaluation on the validation data; `run.logs` has its figures too."""


class FitEnd(Event):
    """After the run, however it ended."""


class Interrupted(Event):
    """Ctrl-C was pressed; the run ends with the state so far."""


@dataclasses.dataclass
class Run:
    """A run as callbacks see it.

    Attributes:
        plan: what is known of it ahead.
        history: the epochs so far.
        epoch: the epoch's number, from 0.
        step: how many steps the state has had.
        steps: how many steps this run will have; None where the data has no length.
        done: how many of them are done.
        logs: the newest figures, as floats.
        seconds: how long the run has taken.
        speed: steps per second, lately.
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
        """The state now: a copy, since the run goes on in the same memory."""
        return jax.tree.map(jnp.copy, self._state())

    def left(self) -> int | None:
        """How many steps are to come, or None where that is not known."""
        return None if self.steps is None else self.steps - self.done

    def stop(self) -> None:
        """End the run after this step."""
        self.stopping = True


def _nothing(event: object, callback, run):
    return None


on.dispatch(_nothing)


def require_listeners(callbacks: Any, run: Run) -> None:
    """Raise for a callback that no event would ever reach."""
    for callback in callbacks:
        name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        if isinstance(callback, type):
            raise TypeError(f"callbacks: an object was expected, and the class {name} came: make one, {name}(…).")
        if not any(on.method(event(), callback, run).function is not _nothing for event in _every(Event)):
            raise TypeError(
                f"callbacks: {name} has no method of `on`, so nothing would call it. Write\n\n    @dispatch\n"
                f"    def on(event: fm.EpochEnd, callback: {name}, run): …\n"
            )


def _every(kind: type) -> list[type]:
    return [k for below in kind.__subclasses__() for k in (below, *_every(below))]


def listeners(event: Event, callbacks: Any, run: Run) -> list[Any]:
    """The callbacks that have a method for an event."""
    return [c for c in callbacks if on.method(event, c, run).function is not _nothing]
