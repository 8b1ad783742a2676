"""Writing on a thread, one thing at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BackgroundWrite:
    """A thread that writes one thing at a time; its error is raised where the result is next asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin to write; the previous write must have been waited for."""

        def run() -> None:
            try:
                time.sleep(0.001)  # the run continues first: a new thread keeps the interpreter for some milliseconds
                write()
            except BaseException as error:  # raised in the thread of the run
                self._error = error

        self._thread = threading.Thread(target=run, name="fulmen checkpoint")  # the process does not end before it
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current write, and raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of a write that has failed, once; without waiting."""
        error, self._error = self._error, None
        if error is not None:
            raise error
