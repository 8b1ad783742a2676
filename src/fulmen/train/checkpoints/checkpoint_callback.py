"""`Checkpoint`: a callback that saves a run, so that it can be killed and resumed."""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core.suggestions import suggesting
from fulmen.core.verbs import due, on
from fulmen.core.version import __version__
from fulmen.devices.processes import is_first, several
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.checkpoints.atomic_files import explained, place_of, remote_url
from fulmen.train.checkpoints.background_write import BackgroundWrite
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.file_lock import FolderInUseError
from fulmen.train.checkpoints.manifest import Manifest, finite_numbers
from fulmen.train.checkpoints.retention import Latest, Retention
from fulmen.train.checkpoints.state_file import FolderStore
from fulmen.train.events import Due, EpochEnd, FitEnd, FitStart, Interrupted, LogsRead, Run, Saver, Stopped, ValidationEnd
from fulmen.train.every_interval import Every, require_every
from fulmen.train.history import similar_metric
from fulmen.train.resume import run_data

_STOPPED = "stopped"
_VERSIONS = {"fulmen": __version__, "jax": jax.__version__, "optax": optax.__version__, "python": platform.python_version()}


class Checkpoint(Saver):
    """A callback that saves the run in a directory; `fit(…, resume=directory)` continues it.

    A checkpoint is a folder, such as `step-00001200`, with the state, the position in the data, the history, and what the
    callbacks remember. It is complete or absent, whenever the process is killed, and every file in it has a digest. The run
    waits until the state is copied to the host; files are written on a thread. At the end of the run, and after Ctrl-C, the run
    is saved too. Only one run at a time can save in a directory; in an object store it is the one that began last.

    Args:
        directory: of the checkpoints; missing folders are created. With `OrbaxStore`, also the URL of an object store, such as
            s3://bucket/run or gs://bucket/run.
        every: when to save. With `Best` in `keep`, also after an epoch in which the metric is among the best, and with
            `EarlyStopping(restore_best=True)` after one whose state is the best.
        keep: which checkpoints to keep: `Latest`, `Best`, or several of them combined by `|`. The newest, the best, the one
            from which the run was resumed, and the one that `EarlyStopping` may restore are always kept.
        store: how the state is written: None is one file, and `OrbaxStore` is for large distributed states. A custom store is an object
            with the methods of `OrbaxStore` and a `name`.

    Raises:
        ImportError: at the beginning of a run, without the package that the store needs.
        OSError: in the run, if a checkpoint cannot be written; the earlier ones are intact.
        RuntimeError: at the beginning of a run, if another run saves in the directory; in an object store, at a save after
            another run has begun to.
        ValueError: for a URL without `store=fm.OrbaxStore()`.

    >>> fm.Checkpoint("runs/digits", every=fm.Every(minutes=10), keep=fm.Latest(2) | fm.Best("validation/accuracy"))
    Checkpoint('runs/digits', every=Every(minutes=10), keep=Latest(2) | Best('validation/accuracy'))
    """

    @suggesting
    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: Every = Every(epochs=1),
        keep: Retention = Latest(3),
        store: Any = None,
    ) -> None:
        require_every("Checkpoint.every", every)
        if not isinstance(keep, Retention):
            raise TypeError(f"Checkpoint.keep must be an fm.Latest or fm.Best, got {keep!r}; write keep=fm.Latest(3).")
        self.directory, self.every, self.keep = place_of("Checkpoint.directory", directory), every, keep
        if store is None and isinstance(self.directory, str):
            raise ValueError(
                f"Checkpoint.store must be given for {self.directory}, in an object store; write "
                f"fm.Checkpoint({self.directory!r}, store=fm.OrbaxStore())."
            )
        self.store = FolderStore() if store is None else store
        self._writing = BackgroundWrite()
        self._folder: CheckpointFolder | None = None
        self._measured: dict[int, dict[str, float]] = {}  # the newest metrics, by their step
        self._known: dict[int, dict[str, float]] = {}  # the metrics of each checkpoint, by its step
        self._saved: Any = None  # the time point of the newest checkpoint, or of the beginning of the run
        self._error_before: Any = None
        self._saved_at = 0.0  # when the newest checkpoint was made, for intervals of minutes

    def save(self, run: Run) -> None:
        """Save a run as it is now. Returns when the state is copied; the files are written on a thread.

        Raises:
            OSError: if the previous save has failed.
        """
        self._writing.wait()
        if self._folder is None:
            raise RuntimeError("Checkpoint.save must be called in a run, by a callback.")
        self._require_metrics(run)
        snapshot, data = self.store.snapshot(run.arrays()), run_data(run) if is_first() else {}
        # Copied, since callbacks and sources may change it while it is written; the history is a copy already, and may be long.
        data = {name: value if name == "history" else copy.deepcopy(value) for name, value in data.items()}
        best = {rule.metric: rule.direction for rule in self.keep.rules}
        manifest = Manifest(run.step, time.time(), self.store.name, self._measured.get(run.step, {}), best)
        folder, store, needed = self._folder, self.store, run.best_step
        apart = {} if folder.directory.shared else {"shared": False}
        self._saved, self._known[run.step], self._saved_at = _time_point(run), manifest.metrics, time.perf_counter()

        def write() -> None:
            with explained(f"the checkpoint of step {manifest.step} cannot be written into {self.directory}"):
                encoded = json.dumps({**data, "versions": _VERSIONS}, default=_as_json).encode()
                folder.add(manifest, lambda path: store.write(path, snapshot, **apart), encoded, needed)

        if several():
            write()  # the processes wait for each other, which a thread of each could do in another order than their steps
        else:
            self._writing.start(write)

    def _require_metrics(self, run: Run) -> None:
        """Raise if the history of an epoch does not have a metric of `Best`."""
        for rule in self.keep.rules if run.history else ():
            if rule.metric not in run.history:
                raise ValueError(
                    f"Best: the history has no {rule.metric!r}{similar_metric(rule.metric, run.history)}It has: "
                    f"{', '.join(run.history)}."
                )

    def _is_asked(self, event: Due, run: Run) -> bool:
        """Whether to save, at an event that was asked for by `due`."""
        if event.by != "epochs":
            return not run.complete  # then the end of the run is saved, with its last row of the history
        if self.every.at_epoch(run.epoch + 1) or self.every.after(time.perf_counter() - self._saved_at):
            return True
        if run.step == run.best_step:
            return True
        self._require_metrics(run)
        saved = {**self._known, run.step: self._measured.get(run.step, {})}
        return any(run.step in rule.kept(saved) for rule in self.keep.rules)

    def __repr__(self) -> str:
        store = "" if isinstance(self.store, FolderStore) else f", store={self.store!r}"
        return f"Checkpoint({str(self.directory)!r}, every={self.every!r}, keep={self.keep!r}{store})"


@dispatch
def due(callback: Checkpoint):
    # After each epoch, since the metric of `Best` or of another callback may be the best one.
    return callback.every if callback.every.at_epoch(1) else callback.every | Every(epochs=1)


@dispatch
def on(event: FitStart, callback: Checkpoint, run):
    callback._error_before = sys.exc_info()[1]
    callback._measured, callback._saved, callback._saved_at = {}, _time_point(run), time.perf_counter()
    callback.store.require()
    directory = callback.directory
    if isinstance(directory, Path):
        directory = directory.absolute()  # the process may change its working directory
    callback._folder = CheckpointFolder(directory, callback.keep, run.step)
    callback._known = callback._folder.metrics()


@dispatch
def on(event: EpochEnd | ValidationEnd, callback: Checkpoint, run):
    callback._measured = {run.step: finite_numbers(run.logs)}


@dispatch
def on(event: LogsRead, callback: Checkpoint, run):
    callback._writing.raise_error()


@dispatch
def on(event: Due, callback: Checkpoint, run):
    if callback._is_asked(event, run):
        callback.save(run)


@dispatch
def on(event: Interrupted | Stopped, callback: Checkpoint, run):
    if run.complete and isinstance(event, Stopped):
        return  # nothing will be repeated: the end of the run is saved
    if callback._saved != _time_point(run):
        callback.save(run)
    callback._saved = _STOPPED  # what follows until the end of the run is repeated when it is resumed


@dispatch
def on(event: FitEnd, callback: Checkpoint, run):
    folder, error = callback._folder, sys.exc_info()[1]
    if folder is None:  # it could not be opened
        return
    failing = error if error is not callback._error_before else None
    try:
        if failing is None and callback._saved not in (_STOPPED, _time_point(run)):
            callback.save(run)
        callback._writing.wait()
        run.saved = folder.newest or run.saved
    except (OSError, FolderInUseError) as unwritten:
        if failing is None:
            raise
        failing.add_note(str(unwritten))
    finally:
        folder.close()
        callback._folder = None


def warn_unless_saved(directory: str | os.PathLike[str], callbacks: list[Any], found: bool) -> None:
    """Warn of a run that saves nothing in the directory from which it is to be resumed.

    If a checkpoint was `found` there, the run may save into another directory.
    """
    savers = [callback for callback in callbacks if isinstance(callback, Saver)]
    places = [callback.directory for callback in savers if isinstance(callback, Checkpoint)]
    there = _resolved(directory) in map(_resolved, places)
    if there or (savers and (found or len(places) < len(savers))):
        return
    elsewhere = f" The checkpoints of this run are in {str(places[0])!r}." if places else ""
    warn(
        f"resume={str(directory)!r}: this run saves nothing there, so the same call cannot continue it.{elsewhere} Write "
        f"callbacks=[fm.Checkpoint({str(directory)!r}{', store=fm.OrbaxStore()' * (remote_url(directory) is not None)})] too."
    )


def _resolved(directory: str | os.PathLike[str]) -> str:
    return remote_url(directory) or os.path.realpath(directory)


def _time_point(run: Run) -> tuple[int, int, int]:
    """The step, the batch of the epoch, and the rows of the history: the same step is saved again when its epoch has ended."""
    return run.step, run.loop.batches, run.history.epochs


def _as_json(value: Any) -> Any:
    """Values of options and of callbacks' memory that JSON has no type for."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    return str(value) if isinstance(value, os.PathLike) else repr(value)
