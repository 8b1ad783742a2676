"""The directory of a run as its `Checkpoint` writes it: complete checkpoints, a lock, and no more than are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fulmen.devices.processes import is_first, wait_for_others
from fulmen.train.checkpoints.atomic_files import explained, remove_folder, sync_folder, sync_tree, write_file
from fulmen.train.checkpoints.checkpoint_list import PREVIOUS, RUN, examined, folder_name, folders
from fulmen.train.checkpoints.file_lock import FolderLock
from fulmen.train.checkpoints.manifest import MANIFEST, Manifest, listed_files
from fulmen.train.checkpoints.retention import Latest, Retention

_HIDDEN = re.compile(r"\.step-\d{8,15}(\.previous)?\.([0-9a-f]{8}|new)")  # being removed or written


class CheckpointFolder:
    """A directory in which one run saves.

    Args:
        directory: it is created, and locked until `close`.
        keep: which checkpoints are kept.
        step: that of the state with which the run begins; a checkpoint of it is kept.

    Raises:
        OSError: if the directory is not writable.
        FolderInUseError: if another run saves in it.
        ValueError: if it has checkpoints of a run that is further.
    """

    def __init__(self, directory: Path, keep: Retention, step: int) -> None:
        self.directory, self.keep, self._resumed = directory, keep, step
        self.newest: str | None = None  # the path of the newest checkpoint that was written
        self._lock: FolderLock | None = None
        if is_first():  # it has the lock, and makes and removes folders
            self._open(directory, step)
        wait_for_others("checkpoints")

    def _open(self, directory: Path, step: int) -> None:
        with explained(f"checkpoints cannot be written into {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(directory)
            self._remove_leftovers()  # also shows whether the directory is writable
        further = [s for s, path in folders(directory).items() if s > step and examined(path, s).valid]
        if further:
            self.close()
            raise ValueError(
                f"{directory} has a checkpoint of step {further[-1]}, and this run begins at step {step}. Write resume={str(directory)!r} "
                "in `fit` to continue the run that is there, or save into another directory."
            )

    def add(self, manifest: Manifest, write_state: Callable[[Path], None], run: bytes, needed: int | None = None) -> None:
        """Write a checkpoint, and remove those that are not kept.

        Args:
            manifest: without files.
            write_state: writes the state into the folder that it is given.
            run: the contents of `run.json`.
            needed: the step of another checkpoint that is kept, or None.
        """
        final = self.directory / folder_name(manifest.step)
        temporary = final.with_name(f".{final.name}.new")  # the same in all processes, which write the state together
        try:
            if is_first():
                self._remove_leftovers()
                temporary.mkdir()
            wait_for_others("the folder of a checkpoint")
            write_state(temporary)
            wait_for_others("the state of a checkpoint")
            if is_first():
                write_file(temporary / RUN, run)
                write_file(temporary / MANIFEST, replace(manifest, files=listed_files(temporary)).encoded())
                sync_tree(temporary)
                self._rename(temporary, final)
                self._remove_others({manifest.step, self._resumed, needed})
            wait_for_others("a checkpoint")
        except BaseException:
            if is_first():
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.newest = str(final)

    def _rename(self, temporary: Path, final: Path) -> None:
        """Give a complete checkpoint its name. One of the same step remains valid under another name until then."""
        previous = final.with_name(final.name + PREVIOUS)
        if final.exists():
            if previous.exists():
                remove_folder(previous)
            os.rename(final, previous)
        os.rename(temporary, final)
        sync_folder(self.directory)
        if previous.exists():
            remove_folder(previous)

    def metrics(self) -> dict[int, dict[str, float]]:
        """The metrics of each checkpoint whose files have the right sizes, by its step."""
        saved = {step: examined(path, step, digests=False) for step, path in folders(self.directory).items()}
        return {step: each.metrics for step, each in saved.items() if each.valid}

    def _remove_others(self, needed: set[int | None]) -> None:
        metrics = self.metrics()
        for step in metrics.keys() - self.keep.kept(metrics) - Latest(1).kept(metrics) - needed:
            remove_folder(folders(self.directory)[step])

    def _remove_leftovers(self) -> None:
        """Remove the folders that a killed process left; a living one would have the lock."""
        with os.scandir(self.directory) as entries:
            names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        for name in names:
            replaced = name.endswith(PREVIOUS) and name.removesuffix(PREVIOUS) in names
            if _HIDDEN.fullmatch(name) or (replaced and name.startswith("step-")):
                shutil.rmtree(self.directory / name)

    def close(self) -> None:
        """Release the directory for other runs."""
        if self._lock is not None:
            self._lock.release()
