"""What a `Checkpoint` does with the directory of a run: complete checkpoints, one run at a time, no more than are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fulmen.devices.processes import is_first, wait_for_others
from fulmen.train.checkpoints.atomic_files import explained, write_file
from fulmen.train.checkpoints.checkpoint_list import RUN, SavedCheckpoint, examined
from fulmen.train.checkpoints.manifest import Manifest
from fulmen.train.checkpoints.remote_directory import directory_at
from fulmen.train.checkpoints.retention import Latest, Retention


class CheckpointFolder:
    """A directory, a path or URL, in which one run saves: it is created, and belongs to the run until `close`.

    A checkpoint of the `step` at which the run begins is kept.

    Raises:
        OSError: if the directory is not writable.
        FolderInUseError: if another run saves in it.
        ValueError: if it has checkpoints of a run that is further.
    """

    def __init__(self, place: Path | str, keep: Retention, step: int) -> None:
        self.directory, self.keep, self._resumed = directory_at(place), keep, step
        self.newest: str | None = None  # the path of the newest checkpoint that was written
        if is_first():  # it has the lock, and removes folders
            self._open(step)
        wait_for_others("checkpoints")

    def _open(self, step: int) -> None:
        with explained(f"checkpoints cannot be written into {self.directory}"):
            self.directory.open()
            further = [s for s, files in self.directory.folders().items() if s > step and examined(files, s).valid]
            if further:
                self.close()
                raise ValueError(
                    f"{self.directory} has a checkpoint of step {further[-1]}, and this run begins at step {step}. Write "
                    f"resume={str(self.directory)!r} in `fit` to continue the run that is there, or save into another directory."
                )
            self.directory.take()

    def add(self, manifest: Manifest, write_state: Callable[[Path], None], run: bytes, needed: int | None = None) -> None:
        """Write a checkpoint, and remove those that are not kept, but for that of the step `needed`.

        `manifest` has no files yet, and `run` is the contents of `run.json`.
        """
        with self.directory.new_folder(manifest.step) as folder:
            write_state(folder)
            wait_for_others("the state of a checkpoint")
            if is_first():
                write_file(folder / RUN, run)
            newest = self.directory.publish(folder, manifest)
        self.newest = newest
        if is_first():
            self._remove_others({manifest.step, self._resumed, needed})
        wait_for_others("a checkpoint")

    def metrics(self) -> dict[int, dict[str, float]]:
        """The metrics of each checkpoint whose files have the right sizes, by its step."""
        return {step: each.metrics for step, each in self._valid().items()}

    def _valid(self) -> dict[int, SavedCheckpoint]:
        found = {step: examined(files, step, digests=False) for step, files in self.directory.folders().items()}
        return {step: each for step, each in found.items() if each.valid}

    def _remove_others(self, needed: set[int | None]) -> None:
        valid = self._valid()
        metrics = {step: each.metrics for step, each in valid.items()}
        for step in metrics.keys() - self.keep.kept(metrics) - Latest(1).kept(metrics) - needed:
            self.directory.remove(valid[step].files)

    def close(self) -> None:
        """Release the directory for other runs."""
        self.directory.close()
