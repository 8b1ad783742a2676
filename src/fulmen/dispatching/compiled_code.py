"""Compiled code, which is dropped when a call selects another method than when it was compiled; and recordings of calls."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax

lock = threading.RLock()
all_verbs: weakref.WeakSet[Any] = weakref.WeakSet()
_recording: list[Recorder] = []
_generation = 0


def generation() -> int:
    """A number that increases when compiled code is dropped; part of the key of caches that depend on methods."""
    return _generation


def drop_compiled(reason: str) -> None:
    """Drop compiled code. Call it without holding the lock: JAX has locks too, and may be tracing in another thread."""
    global _generation
    _generation += 1
    forget_calls()  # quick calls of one verb may depend on methods of another
    jax.clear_caches()
    print(f"fulmen: {reason}; cleared JAX's compilation caches", file=sys.stderr)


def forget_calls() -> None:
    """Remove the quick calls of all verbs."""
    for verb in list(all_verbs):
        verb.forget_calls()


class Recorder:
    """Records the method and the depth of each call in the thread that made the recorder.

    `returned` is called with the verb, the method, the arguments and the result of each call when it returns.
    """

    def __init__(self, returned: Callable[[Any, Any, tuple[Any, ...], Any], None] | None = None) -> None:
        self.calls: list[tuple[int, Any, tuple[type, ...], Any]] = []
        self.depth, self.thread, self.returned = 0, threading.get_ident(), returned

    def call(self, verb: Any, types: tuple[type, ...], method: Any, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if threading.get_ident() != self.thread:
            return call()
        self.calls.append((self.depth, verb, types, method))
        self.depth += 1
        try:
            result = call()
        finally:
            self.depth -= 1
        if self.returned is not None:
            self.returned(verb, method, args, result)
        return result


def recorder() -> Recorder | None:
    """The active recorder, or None."""
    return _recording[-1] if _recording else None


def recorded(
    function: Callable[[], Any], returned: Callable[[Any, Any, tuple[Any, ...], Any], None] | None = None
) -> list[tuple[int, Any, tuple[type, ...], Any]]:
    """The calls of verbs while `function` ran: depth, verb, types and method of each; `returned` is as for `Recorder`.

    The method is None for a call that a wrapper delegated to its part.
    """
    listening = Recorder(returned)
    with lock:
        _recording.append(listening)
        forget_calls()
    try:
        function()
    finally:
        _recording.remove(listening)
    return listening.calls
