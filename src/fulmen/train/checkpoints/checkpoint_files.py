"""The files in the folder of a checkpoint, which may hold anything: their sizes, digests and contents."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from fulmen.train.checkpoints.saved_arrays import DamagedFileError

_LARGEST_JSON = 1 << 28  # bytes of a file that is read as JSON


class LocalFiles:
    """The regular files in a folder of the local file system; links are not followed.

    `RemoteFiles` has the same methods for an object store. `str` is the name of the folder in errors, by default the path.
    """

    damage = (OSError,)  # the errors that mean damage; others, that the files cannot be reached

    def __init__(self, path: Path, shown: str | None = None) -> None:
        self.path, self._shown = path, str(path) if shown is None else shown

    def __str__(self) -> str:
        return self._shown

    @property
    def place(self) -> Path | str:
        """The path of the folder, or its URL."""
        return self.path

    def sizes(self, inside: Container[str] | None = None) -> dict[str, int]:
        """The sizes of the files, by their paths with "/"; `inside` are the names of the folders to look into, None for all."""
        found, left = dict[str, int](), [""]
        while left:  # not by recursion, which deep folders would exhaust
            above = left.pop()
            with os.scandir(self.path / above) as entries:
                for entry in entries:
                    name = f"{above}/{entry.name}" if above else entry.name
                    if entry.is_file(follow_symlinks=False):
                        found[name] = entry.stat(follow_symlinks=False).st_size
                    elif entry.is_dir(follow_symlinks=False) and (above or inside is None or name in inside):
                        left.append(name)
        return found

    def digest(self, name: str) -> str:
        """The SHA-256 of a file."""
        with open_regular(self.path / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, name: str) -> bytes:
        """The contents of a small file."""
        return read_bytes(self.path / name)

    def fetched(self, manifest: Any) -> LocalFiles:
        """The files of a manifest in the local file system, to be verified and then loaded once."""
        return self

    def local(self, manifest: Any) -> contextlib.AbstractContextManager[Path]:
        """A folder of the local file system that has the files of a manifest, as they were written."""
        return contextlib.nullcontext(self.path)


def listed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """The size and the digest of each file of a checkpoint that was written, for its manifest."""
    files = LocalFiles(folder)
    return {name: (size, files.digest(name)) for name, size in sorted(files.sizes().items())}


def read_bytes(path: Path) -> bytes:
    """The contents of a small file."""
    with open_regular(path) as file:
        require_small(str(path), os.fstat(file.fileno()).st_size)
        return file.read(_LARGEST_JSON)


def require_small(name: str, size: int) -> None:
    """Raise for a file that is too large to be read as JSON."""
    if size > _LARGEST_JSON:
        raise DamagedFileError(f"{name} is damaged: it is larger than {_LARGEST_JSON} bytes")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[Any]:
    """Open a file for reading that is neither a link, which could lead out of the folder, nor a pipe, which could block."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | more)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedFileError(f"{path} is not a regular file")
        yield file
