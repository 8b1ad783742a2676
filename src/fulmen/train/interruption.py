"""Ctrl-C during a run: a flag that is read between steps."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interruption:
    """A handler of SIGINT that sets a flag, since an exception in the middle of a step would lose the state.

    A second Ctrl-C raises KeyboardInterrupt.

    Args:
        answer: text to print after the first Ctrl-C, for work with long steps.
        starting: whether a KeyboardInterrupt would lose nothing yet. A run sets it to False after its first step.
    """

    def __init__(self, answer: str = "", starting: bool = False) -> None:
        self.answer, self.starting = answer, starting
        self._set = False

    def __call__(self, number: int, frame: Any) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        if self.answer:
            print(self.answer, file=sys.stderr, flush=True)

    def is_set(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._set

    def stop_if_starting(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed before the first step."""
        if self._set and self.starting:
            raise KeyboardInterrupt("interrupted before the first step")


@contextlib.contextmanager
def interruptible(answer: str = "", *, starting: bool = False) -> Iterator[Interruption]:
    """Handle Ctrl-C by an `Interruption`: the current handler if it is one, or a new one. Other threads get no signals."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield Interruption(answer)
        return
    if isinstance(before, Interruption):
        yield before
        return
    interruption = Interruption(answer, starting)
    signal.signal(signal.SIGINT, interruption)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed in the setup of a run, before its first step."""
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, Interruption) and threading.current_thread() is threading.main_thread():
        handler.stop_if_starting()
