"""`RemoteDirectory`: checkpoints in an object store, which can neither rename nor lock.

A checkpoint is written into a folder of the local file system and uploaded from it. The mark `.incomplete` is the first object of
its folder, and the manifest the last: a folder with the mark and without the manifest is not a checkpoint. A removal writes the
mark, and then removes the manifest first. A checkpoint that replaces one of the same step gets a name with the ending `.previous`,
and the other one is removed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from fulmen.devices.processes import from_all, is_first, several, wait_for_others
from fulmen.train.checkpoints.atomic_files import place_of
from fulmen.train.checkpoints.bucket import Bucket
from fulmen.train.checkpoints.checkpoint_files import LocalFiles, listed_files, require_small
from fulmen.train.checkpoints.file_lock import FolderInUseError
from fulmen.train.checkpoints.local_directory import (
    PREVIOUS,
    LocalDirectory,
    folder_name,
    is_checkpoint,
    is_replaced,
    named_steps,
)
from fulmen.train.checkpoints.manifest import MANIFEST, Manifest

_INCOMPLETE, _OWNER = ".incomplete", ".owner"
_PREFIX = f"fulmen-checkpoint-{socket.gethostname()}-"  # of temporary folders


class RemoteFiles:
    """The objects in the folder of a checkpoint, listed once; with the methods of `LocalFiles`."""

    damage = (FileNotFoundError,)

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self.name = bucket, name

    def __str__(self) -> str:
        return f"{self._bucket.url}/{self.name}"

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        return self._bucket.sizes(self.name)

    @property
    def complete(self) -> bool:
        """Whether it is a checkpoint, perhaps a damaged one, and not one that is being written or removed."""
        return MANIFEST in self._sizes or bool(self._sizes and _INCOMPLETE not in self._sizes)

    @property
    def place(self) -> str:
        return str(self)

    def sizes(self, inside: Container[str] | None = None) -> dict[str, int]:
        known = self._sizes.items()
        return {name: size for name, size in known if "/" not in name or inside is None or name.partition("/")[0] in inside}

    def digest(self, name: str) -> str:
        return self._bucket.digest(f"{self.name}/{name}", self._sizes[name])

    def read(self, name: str) -> bytes:
        require_small(f"{self}/{name}", self._sizes[name])
        return self._bucket.read(f"{self.name}/{name}")

    def fetched(self, manifest: Manifest) -> LocalFiles:
        return DownloadedFiles(self._bucket, self.name, [*manifest.files])

    def local(self, manifest: Manifest) -> contextlib.AbstractContextManager[Path]:
        files = self.fetched(manifest)
        manifest.verify(files)
        return files.local(manifest)


class DownloadedFiles(LocalFiles):
    """A copy of a remote folder in a temporary one, which is removed after its use by `local`, or with this object."""

    def __init__(self, bucket: Bucket, name: str, files: list[str]) -> None:
        self._context = temporary_folder()
        super().__init__(self._context.__enter__() / name, shown=f"{bucket.url}/{name}")
        bucket.download(name, self.path, files)

    @property
    def place(self) -> str:
        return str(self)

    @contextlib.contextmanager
    def local(self, manifest: Manifest) -> Iterator[Path]:
        try:
            yield self.path
        except Exception as error:
            error.add_note(f"{self.path} is a copy of {self}.")
            raise
        finally:
            self._context.__exit__(None, None, None)


class RemoteDirectory:
    """A directory in an object store, with the methods of `LocalDirectory`.

    The run that took it last owns it: an earlier one stops with an error at its next save.
    """

    def __init__(self, url: str) -> None:
        self._bucket = Bucket(url)
        self._owner = b""
        self.shared = not several()

    def __str__(self) -> str:
        return self._bucket.url

    def exists(self) -> bool:
        return self._bucket.exists()

    def folders(self) -> dict[int, RemoteFiles]:
        complete = {name: files for name, files in self._all().items() if files.complete}
        return {step: complete[name] for step, name in named_steps(complete).items()}

    def _all(self) -> dict[str, RemoteFiles]:
        """The folders of checkpoints by their names, complete or not."""
        return {name: RemoteFiles(self._bucket, name) for name in self._bucket.folders() if is_checkpoint(name)}

    def open(self) -> None:
        """Nothing: an object store has no locks."""

    def take(self) -> None:
        self._owner = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(8)}".encode()
        self._bucket.write(_OWNER, self._owner)
        self._remove_leftovers()

    def _require_owned(self) -> None:
        found = self._bucket.read(_OWNER)
        if found != self._owner:
            raise FolderInUseError(
                f"{self} is in use by {found[:200].decode(errors='replace')}, which began later; write the checkpoints of this run "
                "into another directory, or stop that run."
            )

    @contextlib.contextmanager
    def new_folder(self, step: int) -> Iterator[Path]:
        if is_first():
            self._require_owned()
            self._remove_leftovers()
        with temporary_folder() as above:
            folder = above / folder_name(step)
            folder.mkdir()
            yield folder

    def publish(self, folder: Path, manifest: Manifest) -> str:
        usual = folder_name(manifest.step)
        replaced = is_first() and usual in self._bucket.folders()
        name, files = self._upload(folder, usual + PREVIOUS * replaced)
        if is_first():
            found = self._bucket.sizes(name)
            if any(found.get(each) != size for each, (size, _) in files.items()):
                raise OSError(errno.EIO, "its objects are not those that were written", f"{self}/{name}")
            self._require_owned()
            self._bucket.write(f"{name}/{MANIFEST}", replace(manifest, files=files).encoded())
            self._bucket.remove(name, [_INCOMPLETE])
            if replaced:
                self.remove(RemoteFiles(self._bucket, usual))
        return f"{self}/{name}"

    def _upload(self, folder: Path, name: str) -> tuple[str, dict[str, tuple[int, str]]]:
        """Upload the files of all processes; each file that several have is uploaded by the earliest of them.

        Returns the name of the remote folder, which is that of the first process, and the sizes and digests of all files.
        """
        if is_first():
            self._bucket.write(f"{name}/{_INCOMPLETE}", b"")
        own, files = listed_files(folder), dict[str, tuple[int, str]]()
        listed = from_all([name, own])
        name = listed[0][0]
        for index, (_, others) in enumerate(listed):
            if index == jax.process_index():
                self._bucket.upload(folder, name, own.keys() - files.keys())
            files = {**others, **files}
        wait_for_others("the files of a checkpoint")
        return name, {each: (size, digest) for each, (size, digest) in files.items()}

    def close(self) -> None:
        """Nothing: the run that takes it next owns it."""

    def remove(self, files: Any) -> None:
        self._bucket.write(f"{files.name}/{_INCOMPLETE}", b"")
        self._bucket.remove(files.name, [MANIFEST])
        self._bucket.remove(files.name, files.sizes().keys() - {MANIFEST, _INCOMPLETE})
        self._bucket.remove_folder(files.name)  # with the mark

    def _remove_leftovers(self) -> None:
        """Remove the folders that a killed process left."""
        found = self._all()
        complete = {name for name, files in found.items() if files.complete}
        for name, files in found.items():
            if name not in complete or is_replaced(name, complete):
                self.remove(files)


def directory_at(value: str | os.PathLike[str], name: str = "directory") -> LocalDirectory | RemoteDirectory:
    """The directory at a path or URL, which need not exist."""
    place = place_of(name, value)
    return LocalDirectory(place) if isinstance(place, Path) else RemoteDirectory(place)


# Folders for files on their way to an object store, or from it


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the system's temporary files for this process alone; those of killed processes are removed before."""
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
