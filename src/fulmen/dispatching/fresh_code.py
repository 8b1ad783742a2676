"""What rests on a verb's answers: compiled code and quick tables, dropped when an answer changes; and who listens to calls."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Recorder", "all_verbs", "forget_calls", "generation", "lock", "recorded", "recorder", "start_afresh"]

lock = threading.RLock()
all_verbs: weakref.WeakSet[Any] = weakref.WeakSet()
_recording: list[Recorder] = []
_generation = 0


def generation() -> int:
    """A number that rises when compiled code is dropped; for what is remembered on the host of what tracing found."""
    return _generation


def start_afresh(what: str) -> None:
    """Drop compiled code since an answer changed. Not under the lock: JAX has locks too, and may be tracing elsewhere."""
    global _generation
    _generation += 1
    forget_calls()  # what is prepared for one verb may rest on another's answers
    jax.clear_caches()
    print(f"fulmen: {what}; cleared JAX's compilation caches", file=sys.stderr)


def forget_calls() -> None:
    """Empty the quick tables of all verbs."""
    for verb in list(all_verbs):
        verb.forget_calls()


class Recorder:
    """Notes which method each call chose, and at which depth, in the thread that asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, tuple[type, ...], Any]] = []
        self.depth, self.thread = 0, threading.get_ident()

    def call(self, verb: Any, types: tuple[type, ...], method: Any, call: Callable[[], Any]) -> Any:
        if threading.get_ident() != self.thread:
            return call()
        self.calls.append((self.depth, verb, types, method))
        self.depth += 1
        try:
            return call()
        finally:
            self.depth -= 1


def recorder() -> Recorder | None:
    """The one that listens to calls, if any."""
    return _recording[-1] if _recording else None


def recorded(function: Callable[[], Any]) -> list[tuple[int, Any, tuple[type, ...], Any]]:
    """The verbs that were called while `function` ran: depth, verb, types and method of each, None where a wrapper's call
    was handed to its part."""
    listening = Recorder()
    with lock:
        _recording.append(listening)
        forget_calls()
    try:
        function()
    finally:
        _recording.remove(listening)
    return listening.calls
