"""Runs and saves that are killed with SIGKILL: what is there is complete, and a resumed run ends where it would have."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL and fork")

# One process that forks children which only write files: a process per kill would import JAX each time.
EACH_OPERATION = """
import os, shutil, signal, sys, warnings
from pathlib import Path
import jax
import fulmen as fm
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.folder_store import FolderStore
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


def test_killed_at_each_operation_of_a_save(tmp_path):
    command = [sys.executable, "-c", EACH_OPERATION, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    operations = [int(line) for line in done.stdout.split()]
    assert len(operations) == 3 and min(operations) > 8, operations


RUN = """
import sys, jax, numpy as np, optax
import fulmen as fm
from fulmen import dispatch
directory, result, epochs = sys.argv[1], sys.argv[2], 6

rng = np.random.default_rng(0)
x, y = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 3, 90).astype(np.int32)  # distinct rows
model = fm.Classifier(fm.models.MLP(4, 8, 3, dropout=0.2))

class Remembers:
    def __init__(self):
        self.epochs = []

@dispatch
def on(event: fm.EpochEnd, callback: Remembers, run):
    callback.epochs.append(float(run.logs["loss"]))

@dispatch
def run_state(callback: Remembers):
    return {"epochs": callback.epochs}

@dispatch
def restore_run_state(callback: Remembers, saved):
    callback.epochs = list(saved["epochs"])

remembers = Remembers()
checkpoint = fm.Checkpoint(directory, every=fm.Every(steps=4) | fm.Every(epochs=1), keep=fm.Latest(2) | fm.Best("validation/loss"))
state, history = fm.fit(
    model, (x, y), optimizer=optax.adam, lr=fm.cosine(1e-2), epochs=epochs, batch_size=16, seed=3, validation=(x[:30], y[:30]),
    callbacks=[checkpoint, remembers], resume=directory, progress=False,
)
fm.save(result, state)
import json
rows = {name: [float(v).hex() for v in values] for name, values in history.items() if name != "seconds"}
open(result + ".json", "w").write(json.dumps([rows, remembers.epochs, int(state.step)]))
"""


def run_to_the_end(directory, result, kills, seed, number=signal.SIGKILL):
    """Run, ended by so many signals at random moments after it has begun to save, and resumed each time."""
    rng = random.Random(seed)
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(directory), str(result)]
    killed = 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        if killed < kills:
            before, deadline = entries(directory), time.monotonic() + 60
            while process.poll() is None and entries(directory) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.1)
            if process.poll() is None:
                process.send_signal(number)
        error = process.communicate(timeout=120)[1]
        if process.returncode == (-number if number == signal.SIGKILL else 128 + number):
            killed += 1
            continue
        assert process.returncode == 0, error.decode()
        return killed


def entries(directory):
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that is not killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_to_the_end(folder / "runs", folder / "result", 0, 0) == 0
    return folder / "result"


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 3), (signal.SIGTERM, 1), (signal.SIGINT, 1)], ids=str)
def test_a_run_that_is_ended_and_resumed_ends_as_one_that_was_not(whole, tmp_path, number, times):
    assert run_to_the_end(tmp_path / "runs", tmp_path / "result", times, 1, number)
    assert whole.read_bytes() == (tmp_path / "result").read_bytes()
    expected, found = (json.loads(Path(f"{path}.json").read_text()) for path in (whole, tmp_path / "result"))
    assert expected == found and len(expected[1]) == 6
