"""The directory of a run: where its checkpoints are, how one is added and removed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fulmen.devices.processes import is_first, wait_for_others
from fulmen.train.checkpoints.atomic_files import remove_folder, sync_folder, sync_tree, write_file
from fulmen.train.checkpoints.checkpoint_files import LocalFiles, listed_files
from fulmen.train.checkpoints.file_lock import FolderLock
from fulmen.train.checkpoints.manifest import MANIFEST, Manifest

PREVIOUS = ".previous"  # the ending of a checkpoint that is being replaced by one of the same step
_FOLDER = re.compile(rf"step-(\d{{8,15}})(?:{re.escape(PREVIOUS)})?")
_HIDDEN = re.compile(r"\.step-\d{8,15}(\.previous)?\.([0-9a-f]{8}|new)")  # being removed or written


class LocalDirectory:
    """A directory in the local file system. A folder has its name from when it is complete, by renaming.

    `RemoteDirectory` has the same methods for an object store. `str` is the path, or the URL.
    """

    shared = True  # whether all processes write a checkpoint into the same folder

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def folders(self) -> dict[int, LocalFiles]:
        """The files of complete checkpoints by their steps, in order."""
        return {step: LocalFiles(self.path / name) for step, name in named_steps(self._names()).items()}

    def _names(self) -> set[str]:
        """The names of the folders; none that a link leads to."""
        with os.scandir(self.path) as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}

    def open(self) -> None:
        """Create the directory, and lock it, or raise a FolderInUseError; the first process calls it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)

    def take(self) -> None:
        """Begin to write: remove what a killed process left; the first process calls it."""
        self._remove_leftovers()  # also shows whether the directory is writable

    def close(self) -> None:
        """Release the directory for other runs."""
        if self._lock is not None:
            self._lock.release()

    @contextlib.contextmanager
    def new_folder(self, step: int) -> Iterator[Path]:
        """A folder of the local file system for a checkpoint to be written; all processes call it."""
        temporary = self.path / f".{folder_name(step)}.new"  # the same in all processes, which write the state together
        try:
            if is_first():
                self._remove_leftovers()
                temporary.mkdir()
            wait_for_others("the folder of a checkpoint")
            yield temporary
        except BaseException:
            if is_first():
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def publish(self, folder: Path, manifest: Manifest) -> str:
        """Make what was written into a `new_folder` a checkpoint at once, and return its path; all processes call it."""
        final = self.path / folder_name(manifest.step)
        if is_first():
            write_file(folder / MANIFEST, replace(manifest, files=listed_files(folder)).encoded())
            sync_tree(folder)
            self._rename(folder, final)
        return str(final)

    def _rename(self, temporary: Path, final: Path) -> None:
        """Give a complete checkpoint its name. One of the same step remains valid under another name until then."""
        previous = final.with_name(final.name + PREVIOUS)
        if final.exists():
            if previous.exists():
                remove_folder(previous)
            os.rename(final, previous)
        os.rename(temporary, final)
        sync_folder(self.path)
        if previous.exists():
            remove_folder(previous)

    def remove(self, files: Any) -> None:
        """Remove one of `folders`, at once for whoever lists it."""
        remove_folder(files.path)

    def _remove_leftovers(self) -> None:
        """Remove the folders that a killed process left; a living one would have the lock."""
        names = self._names()
        for name in names:
            if _HIDDEN.fullmatch(name) or is_replaced(name, names):
                shutil.rmtree(self.path / name)


def folder_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def is_checkpoint(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint."""
    match = _FOLDER.fullmatch(name)
    return match is not None and name.removesuffix(PREVIOUS) == folder_name(int(match[1]))


def named_steps(names: Iterable[str]) -> dict[int, str]:
    """The names of checkpoints' folders among some, by their steps, in order; without the ending if there are both."""
    found = filter(is_checkpoint, sorted(names, reverse=True))
    steps = {int(name.removesuffix(PREVIOUS).removeprefix("step-")): name for name in found}
    return dict(sorted(steps.items()))


def is_replaced(name: str, names: Iterable[str]) -> bool:
    """Whether a folder is that of a checkpoint which one of another name has replaced."""
    return name.endswith(PREVIOUS) and is_checkpoint(name) and name.removesuffix(PREVIOUS) in names
