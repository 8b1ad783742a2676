"""A check that a run which is killed and resumed equals one that is not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fulmen as fm
from fulmen.core.verbs import due, on
from fulmen.testing.equality import bits, same

_PATIENCE = 600.0  # seconds for one part of the run


class _Kill(fm.callbacks.Saver):
    """Kills the process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step


@fm.dispatch
def due(callback: _Kill):
    return fm.Every(steps=callback.step)


@fm.dispatch
def on(event: fm.Due, callback: _Kill, run):
    os.kill(os.getpid(), signal.SIGKILL)


def check_resumes(component: Any, data: Any, *, kills: int = 2, **options: Any) -> None:
    """Check that a run which is killed by SIGKILL and resumed from its checkpoints ends exactly like one that is not killed.

    The runs are in other processes, on one thread each, with a checkpoint after every step. State, history and the callbacks' memory
    are compared bit by bit.

    Args:
        component: a component with a loss; it must be picklable, with types that are defined in a module.
        data: data as for `fit`, picklable too, such as arrays or a function of a module.
        kills: how often the run is killed, at equal distances.
        **options: those of `fit`, such as `optimizer`, `epochs` and `callbacks`.

    Raises:
        AssertionError: if the two runs differ, with the names of the differing arrays and metrics.
        TypeError: if an argument cannot be pickled.
    """
    try:
        pickled = pickle.dumps((component, data, options))
    except Exception as error:
        raise TypeError(
            f"check_resumes: component, data and options must be picklable, for another process: {error}."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        whole = _part(pickled, Path(folder, "whole"), 0)
        total = int(whole["step"])
        for number in range(kills):
            _part(pickled, Path(folder, "killed"), max(total * (number + 1) // (kills + 1), 1))
        resumed = _part(pickled, Path(folder, "killed"), 0)
    names = [name for name in whole["history"] if name != "seconds"]
    different = [
        f"history[{n!r}]"
        for n in names
        if not np.array_equal(whole["history"][n], resumed["history"].get(n), equal_nan=True)
    ]
    pairs = zip(whole["state"], resumed["state"], whole["names"], strict=True)
    different += [name for one, other, name in pairs if not same([one], [other])]
    different += [f"run_state of callback {i}" for i, (a, b) in enumerate(zip(whole["memory"], resumed["memory"])) if a != b]
    assert not different, f"a resumed run differs from one that was not killed in {', '.join(different)}"


def _part(pickled: bytes, folder: Path, kill: int) -> Any:
    """Run until the end, or until the process is killed after a step; returns the result of a complete run."""
    folder.mkdir(exist_ok=True)
    process = forking().Process(target=_run, args=(pickled, folder, kill))
    process.start()
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"a part of the run took longer than {_PATIENCE:.0f} s")
    expected = -signal.SIGKILL if kill else 0
    assert process.exitcode == expected, f"a part of the run ended with exit code {process.exitcode}; its error is above"
    return None if kill else pickle.loads((folder / "result").read_bytes())


def forking() -> Any:
    """The context of `multiprocessing` for processes that are forked from one that has imported JAX and has not used it.

    All have the environment in which the first was started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fulmen"])
    return context


def _run(pickled: bytes, folder: Path, kill: int) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    # Each program is compiled once: the later parts read those of the first.
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    component, data, options = pickle.loads(pickled)  # its arrays start JAX
    listed = [
        *options.pop("callbacks", ()),
        fm.Checkpoint(folder / "checkpoints", every=fm.Every(steps=1), keep=fm.Latest(2)),
    ]
    kills = [_Kill(kill)] * bool(kill)
    options = {"progress": False, **options}
    state, history = fm.fit(component, data, callbacks=[*listed, *kills], resume=folder / "checkpoints", **options)
    memory = [fm.callbacks.run_state(callback) for callback in listed]
    names = [jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    result = {"step": int(state.step), "state": bits(state), "names": names, "history": dict(history), "memory": memory}
    (folder / "result").write_bytes(pickle.dumps(result))
