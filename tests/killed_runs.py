"""Runs that are ended by signals at random moments and resumed, for `test_checkpoint_kills.py` and `benchmarks/kills.py`.

The systems train on distinct, shuffled rows in microbatches, with a cosine schedule: `classifier` is an EMA of a classifier with
BatchNorm and dropout, which is validated and whose last batch is smaller, and `game` is a GAN whose generator is updated in every
other step.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch
from fulmen.testing.resume_check import forking

_PATIENCE = 1800.0  # seconds


class Remembers:
    """A callback with a memory."""

    def __init__(self) -> None:
        self.losses: list[float] = []


@dispatch
def on(event: fm.EpochEnd, callback: Remembers, run):
    callback.losses.append(float(run.logs["loss"]))


@dispatch
def run_state(callback: Remembers):
    return {"losses": callback.losses}


@dispatch
def restore_run_state(callback: Remembers, saved):
    callback.losses = list(saved["losses"])


def train(name: str, directory: Path | str, result: Path, epochs: int) -> None:
    """The run; it resumes from the checkpoints in the directory, and writes what there is to compare.

    Args:
        name: of the system.
        directory: of the checkpoints: a path, or a URL for those that Orbax writes.
        result: the file for the final state; further endings are for history and memories, and for the lines of the log.
        epochs: the number of epochs.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 3, 90).astype(np.int32)
    models = fm.models
    if name == "classifier":
        layers = models.Dense(4, 16), models.BatchNorm(16), models.Dropout(0.3), jax.nn.relu, models.Dense(16, 3)
        system, data = fm.EMA(fm.Classifier(models.Chain(*layers)), 0.9), (x, y)
        options: dict[str, Any] = {"validation": (x[:30], y[:30])}
        measured = [fm.GradientNorms(fm.Every(steps=5))]
    else:
        generator = models.Chain(models.Dense(2, 4), models.Dropout(0.1))
        system, data = fm.GAN(generator, models.Dense(4, 1), latent=2, critic_steps=2), np.concatenate([x, -x[:6]])
        options, measured = {}, []
    keep, every = fm.Latest(2) | fm.Best("loss"), fm.Every(steps=4) | fm.Every(epochs=1)
    callbacks = [
        fm.Checkpoint(directory, every=every, keep=keep, store=fm.OrbaxStore() if isinstance(directory, str) else None),
        fm.JSONLines(f"{result}.jsonl", every=fm.Every(steps=5)),
        fm.EarlyStopping("loss", patience=epochs, restore_best=True),
        *measured,
        Remembers(),
    ]
    options |= {
        "optimizer": optax.adam,
        "lr": fm.cosine(1e-2),
        "epochs": epochs,
        "batch_size": 16,
        "microbatches": 2,
        "seed": 3,
    }
    state, history = fm.fit(system, data, callbacks=callbacks, resume=directory, progress=False, **options)
    fm.save(result, state)
    rows = {name: [float(v).hex() for v in np.ravel(values)] for name, values in history.items() if name != "seconds"}
    memories = [fm.callbacks.run_state(callback) for callback in callbacks[2:]]
    Path(f"{result}.json").write_text(json.dumps([rows, memories, int(state.step)]))


def _in_process(*args: Any) -> None:
    """`train`; `multiprocessing` would end with exit code 1 after Ctrl-C before the first step, which raises."""
    try:
        train(*args)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def outcome(result: Path) -> dict[str, bytes]:
    """The files of a complete run."""
    return {ending: Path(f"{result}{ending}").read_bytes() for ending in ("", ".json", ".jsonl")}


def run_to_the_end(
    name: str, directory: Path | str, result: Path, epochs: int, signals: Sequence[int] = (), seed: int = 0
) -> list[str]:
    """Run until the run is complete, ended by signals at random moments and resumed each time.

    Args:
        name, directory, result, epochs: as in `train`.
        signals: their numbers, in the order in which they are sent.
        seed: of the moments.

    Returns:
        Where each signal ended the run: "in a save", if there are incomplete files, or "elsewhere".
    """
    rng, ended = random.Random(seed), list[str]()
    while True:
        process = forking().Process(target=_in_process, args=(name, directory, result, epochs))
        process.start()
        number = signals[len(ended)] if len(ended) < len(signals) else None
        if number is not None:
            _send(process, number, directory, rng)
        process.join(_PATIENCE)
        if process.exitcode is None:
            process.kill()
        # A signal before `fit` begins, or after its end, ends the process as SIGKILL does.
        if number is None or process.exitcode not in (-number, 128 + number):
            assert process.exitcode == 0, f"the run ended with exit code {process.exitcode}; its error is above"
            return ended
        incomplete = any(
            entry.startswith(".step") or entry.endswith(("previous", "incomplete")) for entry in _entries(directory)
        )
        ended.append("in a save" if incomplete else "elsewhere")


def _send(process: Any, number: int, directory: Path | str, rng: random.Random) -> None:
    """Send a signal soon after the start, or after a random number of changes in the directory, of which a save makes three."""
    begun, before, changes = time.monotonic(), _entries(directory), rng.choice([0, 1, 2, 3, 4, 6, 9])
    if not changes:
        time.sleep(2 * rng.random())
    while changes and process.is_alive() and time.monotonic() - begun < _PATIENCE:
        entries = _entries(directory)
        changes, before = changes - (entries != before), entries
        time.sleep(0.02 if isinstance(directory, str) else 0.0005)
    time.sleep(0.05 * rng.random())
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(process.pid, number)


def _entries(directory: Path | str) -> list[str]:
    if isinstance(directory, str):
        from fsspec.core import url_to_fs

        system, root = url_to_fs(directory, use_listings_cache=False)
        return sorted(system.find(root))
    return sorted(os.listdir(directory)) if directory.is_dir() else []
