"""`TimeLimit`: ends a run after some time."""

from __future__ import annotations

from fulmen.core.verbs import due, on
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import Due, FitStart
from fulmen.train.every_interval import Every


class TimeLimit:
    """A callback that ends the run after some time, counted from its start or from the moment when it was resumed.

    The time is checked between steps, about ten times a second; the last validation and the last checkpoint follow it.

    Args:
        minutes: the time in minutes.
        seconds: the time in seconds, added to the minutes.

    Attributes:
        reached: whether the limit ended the run.

    Raises:
        ValueError: for a time that is not positive.

    >>> fm.TimeLimit(minutes=30)
    TimeLimit(minutes=30.0)
    """

    def __init__(self, minutes: float = 0.0, seconds: float = 0.0) -> None:
        self.minutes: float = minutes + seconds / 60
        if not self.minutes > 0:
            raise ValueError(f"TimeLimit must be positive, got {self.minutes!r} minutes; write fm.TimeLimit(minutes=30).")
        self.reached = False

    def __repr__(self) -> str:
        return f"TimeLimit(minutes={self.minutes!r})"


@dispatch
def due(callback: TimeLimit):
    return Every(minutes=callback.minutes)


@dispatch
def on(event: FitStart, callback: TimeLimit, run):
    callback.reached = False


@dispatch
def on(event: Due, callback: TimeLimit, run):
    callback.reached = True
    run.stop()
