"""Ctrl-C and SIGTERM during a run: a flag that is read between steps."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from fulmen.devices.processes import several


class Interruption:
    """A handler of signals that sets a flag, since an exception in the middle of a step would lose the state.

    A second signal raises: KeyboardInterrupt for Ctrl-C, SystemExit otherwise.

    Attributes:
        answer: text to print after the first signal, for work with long steps.
        starting: whether an exception would lose nothing yet. A run sets it to False after its first step.
        number: of the signal, or None.
    """

    def __init__(self, answer: str = "", starting: bool = False) -> None:
        self.answer, self.starting = answer, starting
        self.number: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.number is not None:
            raise self.error(number)
        self.number = number
        if self.answer:
            print(self.answer, file=sys.stderr, flush=True)

    def is_set(self) -> bool:
        """Whether there was a signal."""
        return self.number is not None

    def after_step(self, step: Any) -> bool:
        """Whether the run ends after this step, by its number."""
        return self.number is not None

    def error(self, number: int | None = None, reason: str = "") -> BaseException:
        """The exception that ends the process as the signal would."""
        number = self.number if number is None else number
        return KeyboardInterrupt(*[reason] * bool(reason)) if number in (None, signal.SIGINT) else SystemExit(128 + number)

    def stop_if_starting(self) -> None:
        """Raise if there was a signal before the first step."""
        if self.is_set() and self.starting:
            raise self.error(reason="interrupted before the first step")


class Preemption(Interruption):
    """SIGTERM of any process of `jax.distributed`, which JAX handles: all processes end after the same step."""

    def after_step(self, step: Any) -> bool:
        if self.number is None and multihost_utils.reached_preemption_sync_point(int(step)):
            self.number = signal.SIGTERM
        return self.number is not None


@contextlib.contextmanager
def interruptible(
    answer: str = "", *, starting: bool = False, signals: tuple[int, ...] = (signal.SIGINT,)
) -> Iterator[Interruption]:
    """Handle signals by an `Interruption`: the current handler if it is one, or a new one.

    Threads other than the main one get no signals. A signal that the process ignores, as Ctrl-C in the background, stays ignored.
    With several processes no signal is handled here: one process must not end its steps alone.
    """
    preemptible = jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
    interruption = (Preemption if preemptible else Interruption)(answer, starting)
    if several() or threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers = {number: signal.getsignal(number) for number in signals}
    for before in handlers.values():
        if isinstance(before, Interruption):
            yield before
            return
    # A handler that was not installed by Python is None, and could not be put back.
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    if preemptible:
        handlers.pop(signal.SIGTERM, None)
    for number in handlers:
        signal.signal(number, interruption)
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_if_interrupted() -> None:
    """Raise if there was a signal in the setup of a run, before its first step."""
    for handler in map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)):
        if isinstance(handler, Interruption) and threading.current_thread() is threading.main_thread():
            handler.stop_if_starting()


def interactive() -> bool:
    """Whether Python runs in a notebook or at a prompt, where a process must not end."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
