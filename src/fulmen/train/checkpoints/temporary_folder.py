"""Folders for files on their way to an object store, or from it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fulmen.train.checkpoints.file_lock import FolderInUseError, FolderLock

_PREFIX = "fulmen-checkpoint-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the system's temporary files, which is removed at the end; those of killed processes are removed before.

    Yields:
        The path of a folder that is in use by this process alone.
    """
    if os.name != "nt":  # which has no locks
        _remove_stale()
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale() -> None:
    for found in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, FolderInUseError):  # of another user, or in use
            if not found.is_symlink():
                FolderLock(found).release()
                shutil.rmtree(found)


def _locked_folder() -> tuple[Path, FolderLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another process may have taken it for a killed one's before it was locked.
        with contextlib.suppress(FileNotFoundError, FolderInUseError):
            return folder, FolderLock(folder)
