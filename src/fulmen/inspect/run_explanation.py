"""`explain` of `fit`: what runs at which event."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import Any, NamedTuple

from fulmen.core.mode import Train
from fulmen.core.state import State
from fulmen.core.verbs import due, fit, on, owns, run_epoch, update
from fulmen.dispatching.location import place
from fulmen.inspect.text import Picture, align, faint, html_code, html_page, html_table
from fulmen.train.events import (
    Due,
    EpochEnd,
    EpochStart,
    Event,
    FitEnd,
    FitStart,
    Interrupted,
    LogsRead,
    StepEnd,
    Stopped,
    ValidationEnd,
    in_order,
    listeners,
)
from fulmen.train.every_interval import Every
from fulmen.train.phases import Training, Validation
from fulmen.train.progress import progress_callbacks

_COLUMNS = ("event", "call", "defined in", "when", "owns")


class Action(NamedTuple):
    """What runs at an event.

    Attributes:
        event: the event, or the part of the run.
        call: the call of the verb.
        where: the method's file and line.
        when: the interval, or empty.
        owns: the properties of the run that the callback alone may change.
    """

    event: str
    call: str
    where: str
    when: str = ""
    owns: str = ""


class RunExplanation(Picture):
    """What runs in a call of `fit`, in order; prints as a table.

    Attributes:
        actions: the `Action`s.
    """

    def __init__(self, actions: list[Action]) -> None:
        self.actions = actions

    def _rows(self) -> list[tuple[str, ...]]:
        """The actions, with the name of an event only at its first one."""
        before = ["", *(action.event for action in self.actions)]
        return [(a.event if a.event != b else "", *a[1:]) for a, b in zip(self.actions, before)]

    def _text(self) -> str:
        return align([_COLUMNS, *self._rows()])

    def _repr_html_(self) -> str:
        rows = [(html_code(e), html_code(c), faint(w), html.escape(t), html.escape(o)) for e, c, w, t, o in self._rows()]
        return html_page("", html_table(_COLUMNS, rows))


def explain_run(component: Any, data: Any, **options: Any) -> RunExplanation:
    """What runs in a call of `fit` with these arguments."""
    callbacks = in_order([*options.get("callbacks", ()), *progress_callbacks(options.get("progress", True))])
    system = component.system if isinstance(component, State) else component
    kind, phase = type(system).__name__, options.get("phase") or Training()
    every, validation = options.get("validate_every") or Every(epochs=1), options.get("validation")

    def validated(by_epochs: bool) -> Iterator[Action]:
        when = _interval(every, by_epochs)
        if validation is not None and when:
            where = _place(run_epoch.method(Validation(), None, None, None))
            yield Action("validation", "run_epoch(Validation)", where, when)
            yield from _called(ValidationEnd(), callbacks)

    return RunExplanation(
        [
            Action("start", f"fit({type(component).__name__})", _place(fit.method(component, data))),
            *_called(FitStart(), callbacks),
            *_called(EpochStart(), callbacks),
            Action("each epoch", f"run_epoch({type(phase).__name__})", _place(run_epoch.method(phase, None, None, None))),
            Action("each step", f"update({kind})", _place(update.method(system, None, None, Train))),
            *_called(StepEnd(), callbacks),
            *_due(callbacks, by_epochs=False),
            *validated(by_epochs=False),
            *_called(LogsRead(), callbacks, "every 0.1 s"),
            *_called(Interrupted(), callbacks, "after a signal"),
            *_called(Stopped(), callbacks, "after run.stop()"),
            *_called(EpochEnd(), callbacks),
            *validated(by_epochs=True),
            *_due(callbacks, by_epochs=True),
            *_called(FitEnd(), callbacks),
        ]
    )


def _place(method: Any) -> str:
    return place(method.location, method.module)


def _called(event: Event, callbacks: list[Any], when: str = "") -> Iterator[Action]:
    """The callbacks with a method for an event."""
    name = type(event).__name__
    for callback in listeners(event, callbacks, None):  # type: ignore[arg-type]
        where = _place(on.method(event, callback, None))
        yield Action(name, f"on({name}, {type(callback).__name__})", where, when, ", ".join(owns(callback)))


def _due(callbacks: list[Any], by_epochs: bool) -> Iterator[Action]:
    """The callbacks that are due within epochs, or after them."""
    for callback in callbacks:
        when = _interval(due(callback), by_epochs)
        if when:
            yield from _called(Due(), [callback], when)


def _interval(every: Every | None, by_epochs: bool) -> str:
    """The parts of an interval that are counted in epochs, or the others."""
    parts = () if every is None else every.parts
    found = [dataclasses.replace(part, others=()) for part in parts if (part.epochs is not None) == by_epochs]
    return " | ".join(map(repr, found))
