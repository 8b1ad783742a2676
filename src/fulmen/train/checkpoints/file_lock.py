"""Locks on files, which the operating system releases when their process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def try_lock(descriptor: int) -> bool:
    """Lock a file, and return whether that succeeded; without waiting. Where the system has no locks it always succeeds."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems have no locks
    return True


class FolderLock:
    """Keeps two runs from writing into an existing folder, by the file `.lock` in it, until `release` or the end of the process.

    It raises a FolderInUseError if another run has the lock.
    """

    _descriptor: int | None = None

    def __init__(self, folder: Path) -> None:
        path = folder / ".lock"
        # A link could lead to a file outside the folder, whose contents would be replaced.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if not try_lock(self._descriptor):
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            self.release()
            raise FolderInUseError(
                f"{folder} is in use by {owner or 'another run'}; write the checkpoints of this run into another folder, or stop "
                "that run first."
            )
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    __del__ = release


class FolderInUseError(RuntimeError):
    """Another run writes its checkpoints into the folder."""


def _release_in_child() -> None:
    """A forked process, such as a data loader's, shares the lock and could keep it after the run was killed."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
