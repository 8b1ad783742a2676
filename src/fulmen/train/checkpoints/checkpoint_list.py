"""`checkpoints` and `restore`: what is in the directory of a run, and the state from it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from fulmen.core.immutable import Immutable
from fulmen.core.leaves import missing
from fulmen.core.state import State
from fulmen.core.verbs import init
from fulmen.dispatching.warning import warn
from fulmen.optimizers import schedule_is_replaced, with_learning_rate, with_schedule
from fulmen.train.checkpoints.atomic_files import place_of
from fulmen.train.checkpoints.checkpoint_files import LocalFiles
from fulmen.train.checkpoints.manifest import Manifest, parsed, read_manifest
from fulmen.train.checkpoints.orbax_store import OrbaxStore
from fulmen.train.checkpoints.remote_directory import RemoteFiles, directory_at
from fulmen.train.checkpoints.retention import best_steps
from fulmen.train.checkpoints.saved_arrays import DamagedFileError
from fulmen.train.checkpoints.state_file import FolderStore, require_tree

RUN = "run.json"
_STORES = {store.name: store for store in (FolderStore, OrbaxStore)}
_MOST_SHOWN = 4  # metrics in a table


class SavedCheckpoint(Immutable):
    """A checkpoint in the directory of a run.

    Attributes:
        files: those in its folder; `path` is the path of the folder, or its URL as a string.
        step: the number of steps that the state has had.
        time: when it was saved; None if its manifest is damaged.
        metrics: the metrics that were measured at this step.
        problem: what is wrong with its files, or None.
    """

    files: LocalFiles | RemoteFiles
    step: int
    manifest: Manifest | None = None
    problem: str | None = None

    @property
    def path(self) -> Path | str:
        return self.files.place

    @property
    def valid(self) -> bool:
        """Whether its files are as they were written."""
        return self.problem is None

    @property
    def time(self) -> datetime.datetime | None:
        return None if self.manifest is None else datetime.datetime.fromtimestamp(self.manifest.time)

    @property
    def metrics(self) -> dict[str, float]:
        return {} if self.manifest is None else self.manifest.metrics

    @property
    def run(self) -> dict[str, Any]:
        """What the run needs to continue, beside the state: its position, options, history and callbacks' memory."""
        return parsed(f"{self.path}/{RUN}", self._verified().files.read(RUN))

    def load(self, like: Any, *, store: Any = None) -> State:
        """The state; see `restore`."""
        manifest = self._verified().manifest
        assert manifest is not None
        if store is None and manifest.store not in _STORES:
            raise ValueError(
                f"{self.path} was written by the store {manifest.store!r}; write store=…, an instance of its type."
            )
        store = _STORES[manifest.store]() if store is None else store
        require_tree(like)
        if not isinstance(like, State) and missing(like):
            like = jax.eval_shape(lambda: init(like, jax.random.key(0)))
        if isinstance(like, State):
            replaced = self.run.get("schedule_replaced")
            if replaced is not None and replaced != schedule_is_replaced(like.optimizer):
                with contextlib.suppress(ValueError):  # of an optimizer without a rate: the differences are listed below
                    change = (lambda given: with_learning_rate(given, 0.0)) if replaced else with_schedule
                    like = like.replace(optimizer=change(like.optimizer))
        with self.files.local(manifest) as folder:
            if isinstance(like, State):
                return store.read(folder, like)
            return State(store.read(folder, like, "system"), key=0, step=manifest.step)

    def _verified(self) -> SavedCheckpoint:
        if self.problem is not None:
            raise DamagedFileError(f"{self.problem}.")
        return self

    def __repr__(self) -> str:
        return f"<step {self.step}, {_row(self, _shown([self]))}>"


class Checkpoints(tuple[SavedCheckpoint, ...]):
    """The checkpoints of a run, the oldest first; a tuple that prints as a table."""

    def __repr__(self) -> str:
        return "\n".join([f"{len(self)} checkpoints", *(f"{each.step:>10} {_row(each, _shown(self))}" for each in self)])


def _shown(found: Iterable[SavedCheckpoint]) -> list[str]:
    """The names of the metrics in a table: those of the validation first."""
    names = dict.fromkeys(name for each in found for name in each.metrics)
    return sorted(names, key=lambda name: not name.startswith("validation/"))[:_MOST_SHOWN]


def _row(checkpoint: SavedCheckpoint, names: list[str]) -> str:
    when = "no time" if checkpoint.time is None else f"{checkpoint.time:%Y-%m-%d %H:%M:%S}"
    metrics = [f"{name} {checkpoint.metrics[name]:.4g}" for name in names if name in checkpoint.metrics]
    return ", ".join([when, *metrics, "valid" if checkpoint.valid else f"not valid: {checkpoint.problem}"])


def checkpoints(directory: str | os.PathLike[str], *, digests: bool = True) -> Checkpoints:
    """The checkpoints in a directory, the oldest first. Incomplete ones, of a save that was killed, are not among them.

    Args:
        directory: that of a `Checkpoint`: a path, or the URL of an object store.
        digests: whether to read all files and compare their SHA-256; False compares their sizes, which is faster.

    Returns:
        A tuple of objects with `step`, `time`, `metrics`, `valid`, `problem` and `path`, which prints as a table.

    Raises:
        FileNotFoundError: if there is no such directory.
        OSError: if an object store cannot be reached, or denies access.
    """
    found = directory_at(directory)
    if not found.exists():
        raise FileNotFoundError(f"{found} is not a directory; it must be that of an fm.Checkpoint.")
    return Checkpoints(examined(files, step, digests) for step, files in found.folders().items())


def examined(files: LocalFiles | RemoteFiles, step: int, digests: bool = True) -> SavedCheckpoint:
    """A checkpoint, with what is wrong with it."""
    manifest = None
    try:
        manifest = read_manifest(files, step)
        manifest.verify(files, digests=digests)
        if RUN not in manifest.files:
            raise DamagedFileError(f"{files}/{RUN} is missing")
        return SavedCheckpoint(files, step, manifest)
    except (*files.damage, DamagedFileError) as error:
        return SavedCheckpoint(files, step, manifest, str(error))


def _fetched(found: SavedCheckpoint) -> SavedCheckpoint:
    """A checkpoint to be loaded, whose files have the right sizes, with what else is wrong; a remote one is downloaded."""
    if found.manifest is None or not found.valid:
        return found
    files = found.files
    try:
        files = files.fetched(found.manifest)  # another run may have removed it in the meantime
        found.manifest.verify(files)
    except (*files.damage, DamagedFileError) as error:
        return dataclasses.replace(found, problem=str(error))
    return dataclasses.replace(found, files=files)


def find_resumable(directory: str | os.PathLike[str]) -> SavedCheckpoint | None:
    """The newest valid checkpoint in a directory, or None. It warns about damaged ones that are newer."""
    damaged, checkpoint, there = [], None, directory_at(directory, "resume")
    for step, files in reversed(there.folders().items()) if there.exists() else ():
        checkpoint = _fetched(examined(files, step, digests=False))
        if checkpoint.valid:
            break
        damaged.append(checkpoint)
        checkpoint = None
    if damaged:
        instead = "there is no other" if checkpoint is None else f"step {checkpoint.step} is used"
        warn(f"{'; '.join(str(each.problem) for each in damaged)}; {instead}.")
    return checkpoint


def restore(directory: str | os.PathLike[str], like: Any, step: int | str | None = None, *, store: Any = None) -> State:
    """The state from a checkpoint. Nothing in its files is executed or unpickled.

    Args:
        directory: that of a `Checkpoint`: a path, or the URL of an object store, from which the checkpoint is downloaded.
        like: a state of the same structure, such as `setup` returns; or the component alone, with or without its arrays: then
            the state has no optimizer, for `evaluate` and `predict`.
        step: the number of steps, "best" by the metric of the run's `Best`, or None for the newest that is valid.
        store: for a store other than the library's, an instance of its type.

    Returns:
        A `State`.

    Raises:
        FileNotFoundError: if there is no such directory or checkpoint.
        OSError: if an object store cannot be reached, or denies access.
        ValueError: if the checkpoint is damaged, or holds the state of another system.
    """
    directory = place_of("directory", directory)
    if step is None:
        found = find_resumable(directory)
        if found is None:
            checkpoints(directory, digests=False)  # says so if there is no such directory
            raise FileNotFoundError(f"{directory} has no valid checkpoint; `fm.checkpoints` lists what it has.")
        return found.load(like, store=store)
    saved = {each.step: each for each in checkpoints(directory, digests=False)}
    if step == "best":
        step = _best(directory, saved)
    if step not in saved:
        has = ", ".join(map(str, saved)) or "none"
        raise FileNotFoundError(f"{directory} has no checkpoint of step {step!r}; it has {has}.")
    return _fetched(saved[step]).load(like, store=store)


def _best(directory: Any, saved: Mapping[int, SavedCheckpoint]) -> int:
    """The step of the best valid checkpoint, by the metric that the newest one names."""
    valid = {step: each for step, each in saved.items() if each.valid}
    rules = [each.manifest.best for each in valid.values() if each.manifest is not None and each.manifest.best]
    if not rules:
        raise ValueError(
            f"{directory} has no best checkpoint: the run was saved without one. Write step=… with one of its steps, and "
            "keep=fm.Latest(3) | fm.Best('validation/accuracy') in the next run."
        )
    metric, mode = next(iter(rules[-1].items()))
    found = best_steps({step: each.metrics for step, each in valid.items()}, metric, mode)
    if not found:
        raise ValueError(
            f"{directory} has no checkpoint at which {metric!r} was measured; write step=… with one of its steps."
        )
    return found[0]
