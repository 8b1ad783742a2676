"""Runs and saves that are killed with SIGKILL: what is there is complete, and a resumed run ends where it would have."""

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest
from forked import run_code
from killed_runs import outcome, run_to_the_end

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL and fork")

# One process that forks children which only write files: a process per kill would import JAX each time.
EACH_OPERATION = """
import os, shutil, signal, sys, warnings
from pathlib import Path
import jax
import fulmen as fm
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.state_file import FolderStore
from fulmen.train.checkpoints.manifest import Manifest

warnings.simplefilter("ignore")
root = Path(sys.argv[1])
model = fm.init(fm.models.Dense(4, 3), jax.random.key(0))
state = fm.State(model, key=0, step=2)
snapshot = FolderStore().snapshot(state)

def add(directory, step, keep=fm.Latest(1)):
    folder = CheckpointFolder(directory, keep, step)
    folder.add(Manifest(step, 0.0, "safetensors"), lambda path: FolderStore().write(path, snapshot), b"{}")
    folder.close()

def killed(operation, n):
    '''Kill this process at the n-th operation on files.'''
    count = iter(range(n))
    def step(*_):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
    for name in ("fsync", "write", "close", "pwrite"):
        real = getattr(os, name)
        setattr(os, name, lambda *a, real=real: (step(), real(*a))[1])
    watched = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
    sys.addaudithook(lambda name, arguments: step() if name in watched else None)
    operation()

def each_operation(what, n):
    directory = root / str(n)
    directory.mkdir()
    if what == "save":
        operation = lambda: fm.save(directory / "x", model)
        fm.save(directory / "x", model)
    else:
        add(directory, 2)
        operation = lambda: add(directory, 2 if what == "the same step" else 3)
    child = os.fork()
    if child == 0:
        try:
            killed(operation, n)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status)
    if what == "save":
        fm.load(directory / "x", like=model)
    else:
        found = fm.checkpoints(directory)
        assert found and all(each.valid for each in found), (n, found, os.listdir(directory))
        assert int(fm.restore(directory, state).step) == 2
    if what == "save":
        fm.save(directory / "x", model)
        assert os.listdir(directory) == ["x"], (n, os.listdir(directory))
    else:
        add(directory, 4)
        assert sorted(os.listdir(directory)) == [".lock", "step-00000004"], (n, os.listdir(directory))
        assert all(each.valid for each in fm.checkpoints(directory))
    shutil.rmtree(directory)
    return status == 0

for what in ("save", "a new step", "the same step"):
    print(next(n for n in range(1000) if each_operation(what, n)))
"""


@pytest.fixture
def folder():
    """A folder in memory, if the system has such: on a disk a save waits for longer than it computes."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as path:
        yield Path(path)


def test_killed_at_each_operation_of_a_save(folder):
    operations = [int(line) for line in run_code(EACH_OPERATION, folder, folder).split()]
    assert len(operations) == 3 and min(operations) > 8, operations


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The programs of the runs are compiled once."""
    before = dict(os.environ)
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def whole(cached, folder):
    """A function that runs a system without an end between, and returns the outcome."""

    def outcome_of(name):
        run_to_the_end(name, folder / "whole", folder / "whole-result", EPOCHS)
        return outcome(folder / "whole-result")

    return outcome_of


EPOCHS = 5
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(("name", "signals"), [("classifier", [KILL] * 5), ("game", [KILL, TERM, KILL, INT, KILL])])
def test_a_run_that_is_ended_and_resumed_ends_as_one_that_was_not(whole, folder, name, signals):
    run_to_the_end(name, folder / "runs", folder / "result", EPOCHS, signals, seed=1)
    found, expected = outcome(folder / "result"), whole(name)
    assert found == expected
    rows, _, step = json.loads(found[".json"])
    assert len(rows["loss"]) == EPOCHS and step == 6 * EPOCHS
