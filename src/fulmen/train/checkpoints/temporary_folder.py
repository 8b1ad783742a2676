"""Folders for files on their way to an object store, or from it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = f"fulmen-checkpoint-{socket.gethostname()}-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the system's temporary files, which is removed at the end; those of killed processes are removed before.

    Yields:
        The path of a folder that is in use by this process alone.
    """
    if os.name != "nt":  # which cannot tell whether a process lives
        _remove_stale()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _remove_stale() -> None:
    for found in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = found.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdecimal() and not _lives(int(number)) and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)  # one of another user stays


def _lives(process: int) -> bool:
    with contextlib.suppress(PermissionError):  # of another user
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
