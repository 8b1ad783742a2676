"""The events of a run, as types, for callbacks: `on(event, callback, run)`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fulmen.core import Plan, State
from fulmen.core.verbs import due, on, owns, restore_run_state, run_state
from fulmen.devices.placement import copied
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import learning_rate, with_learning_rate
from fulmen.train.gradients import learning_rates
from fulmen.train.history import History


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


class Stopped(Event):
    """`run.stop()` was called in the midst of an epoch; sent before that epoch ends."""


@dataclasses.dataclass
class Run:
    """A run as callbacks see it.

    Attributes:
        plan: the state's plan.
        history: the epochs so far.
        steps: the number of steps of this run; None for data without a length.
        options: the options of the run by name, such as `seed` and `batch_size`.
        callbacks: all callbacks of the run.
        epoch: the number of the epoch, from 0.
        step: the number of steps that the state has had.
        done: the number of steps of this run that are done.
        batch: the newest batch, as it was read.
        seconds: the duration of the run so far.
        speed: recent steps per second.
        saved: the path of the newest checkpoint, or None.
        stopping: whether the run ends after this step.
        complete: whether a callback that remembers it has decided so; resuming the run trains nothing.
        result: the state that `fit` returns, or None for the last one.
        best_step: the step of a state that is still needed; its checkpoint is kept.
        resumed: the directory from which the run was resumed, or None.
        loop: what does the steps, for phases.
    """

    plan: Plan
    history: History
    steps: int | None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    epoch: int = 0
    step: int = 0
    done: int = 0
    batch: Any = dataclasses.field(default=None, repr=False)
    seconds: float = 0.0
    speed: float = 0.0
    saved: str | None = None
    stopping: bool = False
    complete: bool = False
    result: State | None = dataclasses.field(default=None, repr=False)
    best_step: int | None = None
    resumed: Any = None
    loop: Any = dataclasses.field(default=None, repr=False)
    _logs: Any = dataclasses.field(default_factory=dict, repr=False)

    @property
    def logs(self) -> dict[str, Any]:
        """The newest logs by name, as floats and NumPy arrays."""
        if callable(self._logs):  # they are read from the device if somebody asks
            self._logs = self._logs()
        return self._logs

    @logs.setter
    def logs(self, value: Any) -> None:
        self._logs = value

    @property
    def state(self) -> State:
        """The current state, copied: the run reuses its memory. Another state may be assigned, with which the run continues."""
        return copied(self.arrays())

    @state.setter
    def state(self, value: State) -> None:
        if not isinstance(value, State):
            raise TypeError(f"run.state must be a State, got {type(value).__name__}; write fm.replace(run.state, …).")
        self.loop.take(value)

    def arrays(self) -> State:
        """The current state without a copy; its arrays are valid until the callback returns."""
        return self.loop.state()

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next step, of a population one per member; a dict for a dict of optimizers, None under a schedule.

        A number may be assigned. It replaces the rate of all groups, and a schedule for the rest of the run.

        Raises:
            ValueError: if the optimizer is a finished transformation, which has no rate that can be changed.
        """
        state = self.arrays()
        rate = learning_rate(state.optimizer)
        if rate is not None:
            return rate
        logged = learning_rates(state, state)["lr"].logged("lr")
        return np.asarray(logged.get("lr/members", logged["lr"]))[()]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        state = self.arrays()
        self.loop.take(state.replace(optimizer=with_learning_rate(state.optimizer, value)))

    @property
    def position(self) -> dict[str, Any]:
        """Where the run is, as a dict that JSON can hold: `fit` continues from it exactly."""
        return self.loop.position()

    def discard_logs(self) -> None:
        """Leave the logs of the newest step out of the epoch's; for a callback for `StepEnd`."""
        self.loop.ledger.discard_newest()

    @property
    def batches(self) -> int:
        """The number of batches of the epoch that are done; not 0 at the beginning of a phase if a run continues in an epoch."""
        return self.loop.batches

    def left(self) -> int | None:
        """The number of remaining steps, or None if it is unknown."""
        return None if self.steps is None else self.steps - self.done

    def stop(self) -> None:
        """End the run after this step."""
        self.stopping = True


class Saver:
    """A callback that saves the run; at each event it is called after all others, so that it saves what they remember."""


class LogReader:
    """A callback that reads the logs; at each event it is called after the callbacks that may add to them."""


def in_order(callbacks: list[Any]) -> list[Any]:
    """The callbacks in the order in which they are called."""
    return sorted(callbacks, key=lambda callback: (isinstance(callback, Saver), isinstance(callback, LogReader)))


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


def send(event: Event, callbacks: Any, run: Run) -> None:
    """Call the callbacks that have a method for an event."""
    for callback in listeners(event, callbacks, run):
        on(event, callback, run)


def check_callbacks(callbacks: Any, run: Run) -> None:
    """Raise on a callback that has no method for any event, and on two that own the same property of the run."""
    owners: dict[str, Any] = {}
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
        for name in owns(callback):
            if name in owners:
                both = " and ".join(type(c).__name__ for c in (owners[name], callback))
                raise ValueError(
                    f"callbacks: {both} both own {name!r} of the run (see fm.callbacks.owns), so each would undo what the other does; "
                    "leave one of them out."
                )
            owners[name] = callback


def _subclasses(kind: type) -> list[type]:
    return [k for below in kind.__subclasses__() for k in (below, *_subclasses(below))]
