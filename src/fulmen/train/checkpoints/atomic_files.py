"""Files and folders that are written under another name, flushed to the disk and renamed: they are never incomplete."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fulmen.train.checkpoints.file_lock import try_lock


def local_path(name: str, value: str | os.PathLike[str], remedy: str = ".") -> Path:
    """The path that an argument is, or an error for anything else and for the URL of a remote file."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a string or a path, got {type(value).__name__}{remedy}")
    if url := remote_url(value):
        raise ValueError(
            f"{name} must be a path in the file system, got {url!r}; only fm.Checkpoint(…, store=fm.OrbaxStore()) writes into an "
            "object store."
        )
    return Path(value)


def remote_url(value: str | os.PathLike[str]) -> str | None:
    """The URL that an argument is, such as "s3://bucket/run", or None."""
    match = re.match(r"(\w\w+):/+", os.fspath(value)) if isinstance(value, str | os.PathLike) else None
    # `Path` makes one slash of two, and drops the last one.
    return None if match is None else f"{match[1]}://{os.fspath(value)[match.end() :].rstrip('/')}"


def place_of(name: str, value: str | os.PathLike[str]) -> Path | str:
    """The path, or the URL of an object store, that an argument is, or an error for anything else."""
    url = remote_url(value)
    if url is not None and url.startswith(("file:", "local:")):
        raise ValueError(f"{name} must be a path or the URL of an object store, got {url!r}; write the path.")
    return url or local_path(name, value)


@contextlib.contextmanager
def replacing(path: Path, verb: str) -> Iterator[int]:
    """The descriptor of a temporary file that takes the place of `path` when the block ends without an error.

    An existing file keeps its permissions, and a symbolic link remains one: its target is replaced. Temporary files for the
    same path that a killed process left are removed. Missing folders are created. An OSError, such as for a full disk, names
    the `verb`; the old file is then intact.
    """
    target = Path(os.path.realpath(path))
    with explained(f"{verb} cannot write {path}"):
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        temporary, descriptor = _temporary(target)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            yield descriptor
            os.fsync(descriptor)
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise an OSError with what failed, such as "save cannot write x", before its reason."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, f"{what}: {error.strerror}", error.filename) from error


def _temporary(target: Path) -> tuple[Path, int]:
    """A new file beside the target, for moving to another file system is not atomic, locked while its process lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Another process may have removed it as stale before it was locked.
        if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Remove the temporary files for a path that no living process is writing."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}")
    with os.scandir(target.parent) as entries:
        found = [entry.path for entry in entries if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in found:
        with contextlib.suppress(OSError):  # of another user, or removed in the meantime
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if try_lock(descriptor):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all bytes; one call of `os.write` may write a part of them."""
    while data.nbytes:
        data = data[os.write(descriptor, data[: 1 << 26]) :]


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to the disk."""
    if os.name == "nt":  # which cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder, and every file and folder in it, to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            with open(Path(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def remove_folder(folder: Path) -> None:
    """Remove a folder at once, for whoever lists it: it is renamed first."""
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
