"""Checkpoints of a run: when they are written, which are kept, and what is restored from them."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from forked import start_code
from tiny import data, net

import fulmen as fm
from fulmen import dispatch
from fulmen.train.callbacks import run_state
from fulmen.train.checkpoints import find_resumable
from fulmen.train.checkpoints.background_write import BackgroundWrite
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.file_lock import FolderInUseError, FolderLock
from fulmen.train.checkpoints.state_file import FolderStore
from fulmen.train.step_loop import require_no_minutes

pytest.importorskip("safetensors")

X, Y = data(48)
OPTIONS = dict(batch_size=16, progress=False)


def ready(seed=0):
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.adam, lr=1e-2, seed=seed)


@pytest.fixture(scope="module")
def state():
    return ready()


def run(state, directory, every=fm.Every(steps=2), keep=fm.Latest(9), epochs=2, callbacks=(), **options):
    checkpoint = fm.Checkpoint(directory, every=every, keep=keep)
    options = {**OPTIONS, **options}
    return fm.fit(state, (X, Y), epochs=epochs, validation=(X, Y), callbacks=[*callbacks, checkpoint], **options)


def steps_in(directory):
    return [each.step for each in fm.checkpoints(directory)]


def same(a, b):
    leaves = [[np.asarray(jax.random.key_data(v) if fm_key(v) else v) for v in jax.tree.leaves(t)] for t in (a, b)]
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(*leaves, strict=True))


def fm_key(leaf):
    return jax.numpy.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)


class Recorder:
    """Keeps a copy of the state after each step, and of the time points at which it was due."""

    def __init__(self):
        self.states, self.due = {}, []


@dispatch
def on(event: fm.StepEnd, callback: Recorder, run):
    callback.states[run.step] = run.state


# When, and which


def test_a_run_is_saved_when_it_is_due_and_at_its_end(state, tmp_path):
    final, _ = run(state, tmp_path / "runs" / "a", fm.Every(steps=4))
    assert steps_in(tmp_path / "runs" / "a") == [4, 6]
    assert same(fm.restore(tmp_path / "runs" / "a", ready(1)), final)


@pytest.mark.parametrize("every", [fm.Every(epochs=1), fm.Every(epochs=1) | fm.Every(steps=3)])
def test_an_epoch_is_saved_with_its_metrics(state, tmp_path, every):
    _, history = run(state, tmp_path, every)
    saved = fm.checkpoints(tmp_path)
    assert [each.step for each in saved] == [3, 6]
    for number, each in enumerate(saved):
        assert each.metrics["validation/loss"] == history["validation/loss"][number]
        assert len(each.run["history"]["loss"]) == number + 1


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (fm.Latest(1), {7}),
        (fm.Latest(2), {6, 7}),
        (fm.Best("loss"), {2, 7}),
        (fm.Best("loss", 2), {2, 6, 7}),
        (fm.Best("norm", mode="max"), {4, 7}),
        (fm.Latest(3) | fm.Best("accuracy"), {2, 5, 6, 7}),
        (fm.Best("loss") | fm.Best("norm", mode="min") | fm.Latest(1), {1, 2, 7}),
    ],
)
def test_what_is_kept(tmp_path, keep, kept):
    measured = {
        1: dict(loss=3.0, accuracy=0.1, norm=1.0),
        2: dict(loss=1.0, accuracy=0.9, norm=2.0),
        3: {},
        4: dict(loss=2.0, accuracy=0.9, norm=9.0),
        5: {},
        6: dict(loss=1.0, accuracy=0.2, norm=3.0),
        7: {},
    }
    from fulmen.train.checkpoints.manifest import Manifest

    folder = CheckpointFolder(tmp_path, keep, 0)
    for step, metrics in measured.items():
        folder.add(Manifest(step, 0.0, "safetensors", metrics), lambda path: None, b"{}")
    folder.close()
    assert set(steps_in(tmp_path)) == kept


@pytest.mark.filterwarnings("ignore:the resumed run has another length")
def test_the_checkpoint_that_a_run_was_resumed_from_is_kept(state, tmp_path, capsys):
    run(state, tmp_path, fm.Every(epochs=1), keep=fm.Latest(1), epochs=1)
    run(state, tmp_path, fm.Every(epochs=1), keep=fm.Latest(1), epochs=4, resume=tmp_path, progress=True)
    assert steps_in(tmp_path) == [3, 12]
    assert f"Resumed after step 3, from {tmp_path}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fm.Best("norm"), ValueError, r"'norm'.*write fm\.Best\('norm', mode='max'\)"),
        (lambda: fm.Best("loss", mode="low"), ValueError, "mode must be 'max' or 'min', got 'low'"),
        (lambda: fm.Best(3), TypeError, r"Best\.metric must be a name, got 3"),
        (lambda: fm.Latest(0), ValueError, r"Latest\.n must be a positive integer, got 0"),
        (lambda: fm.Checkpoint("x", every=5), TypeError, r"every must be an fm\.Every, got 5; write every=fm\.Every"),
        (lambda: fm.Checkpoint("x", keep=3), TypeError, r"keep must be .* got 3; write keep=fm\.Latest\(3\)"),
        (lambda: fm.Checkpoint(3), TypeError, "directory must be a string or a path, got int"),
        (
            lambda: fm.Checkpoint("gs://bucket/run"),
            ValueError,
            r"fm\.Checkpoint\('gs://bucket/run', store=fm\.OrbaxStore\(\)\)",
        ),
        (lambda: fm.Checkpoint(Path("s3://bucket/run")), ValueError, r"'s3://bucket/run', store=fm\.OrbaxStore\(\)"),
        (
            lambda: fm.save("gs://bucket/state", None),
            ValueError,
            r"path in the file system, got 'gs://bucket/state'.*OrbaxStore",
        ),
        (
            lambda: fm.load("gs://bucket/state", like=fm.models.Dense(1, 1)),
            ValueError,
            "file system, got 'gs://bucket/state'",
        ),
    ],
)
def test_wrong_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_best_is_saved_after_epochs_in_which_it_improved(state, tmp_path):
    keep = fm.Best("validation/loss") | fm.Latest(2)
    run(state, tmp_path, fm.Every(minutes=60), keep=keep, epochs=3)
    assert steps_in(tmp_path)[-1] == 9 and len(steps_in(tmp_path)) > 1  # the loss falls
    assert int(fm.restore(tmp_path, state, "best").step) == 9


def test_a_metric_that_the_history_does_not_have_is_an_error(state, tmp_path):
    with pytest.raises(ValueError, match=r"no 'validaton/loss'; did you mean 'validation/loss'"):
        run(state, tmp_path, keep=fm.Best("validaton/loss"))


# What is saved


def test_values_are_those_at_the_call_though_arrays_are_donated(state, tmp_path, monkeypatch):
    written = FolderStore.write

    def slowly(store, folder, snapshot):
        time.sleep(0.05)  # the run continues in the meantime
        written(store, folder, snapshot)

    monkeypatch.setattr(FolderStore, "write", slowly)
    recorder = Recorder()
    run(state, tmp_path, fm.Every(steps=1), callbacks=[recorder])
    assert steps_in(tmp_path) == list(recorder.states) == [1, 2, 3, 4, 5, 6]
    for step, expected in recorder.states.items():
        assert same(fm.restore(tmp_path, ready(1), step), expected)


class Grows:
    """Remembers all epochs in a list that it changes."""

    def __init__(self):
        self.epochs = []


@dispatch
def on(event: fm.EpochEnd, callback: Grows, run):
    callback.epochs.append(run.epoch)


@dispatch
def run_state(callback: Grows):
    return {"epochs": callback.epochs}


def test_what_callbacks_remember_is_that_at_the_call(state, tmp_path, monkeypatch):
    start = BackgroundWrite.start
    later = lambda writing, write: start(writing, lambda: (time.sleep(0.1), write()))
    monkeypatch.setattr(BackgroundWrite, "start", later)
    run(state, tmp_path, fm.Every(steps=3), callbacks=[Grows()])
    found = fm.checkpoints(tmp_path)[0]
    assert found.run["callbacks"] == {"Grows#0": {"epochs": []}} and found.run["position"]["batch"] == 3


def test_restoring_into_a_component_gives_a_state_for_evaluation(state, tmp_path):
    final, _ = run(state, tmp_path)
    for like in (fm.Classifier(net()), fm.init(fm.Classifier(net()), jax.random.key(5))):
        restored = fm.restore(tmp_path, like)
        assert fm.evaluate(restored, (X, Y)) == fm.evaluate(final, (X, Y)) and int(restored.step) == 6
    with pytest.raises(ValueError, match="does not fit `like`"):
        fm.restore(tmp_path, fm.Classifier(net(classes=4)))
    with pytest.raises(TypeError, match=r"like must be what was saved, got the class Classifier"):
        fm.restore(tmp_path, fm.Classifier)


class Rows:
    """A store of a user's: the parameters of a linear layer, as text."""

    name = "rows"

    def require(self):
        pass

    def snapshot(self, state):
        return np.array(state.system.model.layer.weight).tolist()

    def write(self, folder, snapshot):
        (folder / "rows.json").write_text(json.dumps(snapshot))

    def read(self, folder, like, inside=""):
        assert not inside
        rows = np.array(json.loads((folder / "rows.json").read_text()), np.float32)
        return fm.replace(like, {"system.model.layer.weight": rows})


def test_a_custom_store(state, tmp_path):
    final, _ = fm.fit(state, (X, Y), epochs=1, callbacks=[fm.Checkpoint(tmp_path, store=Rows())], **OPTIONS)
    restored = fm.restore(tmp_path, state, store=Rows())
    assert (np.asarray(restored.system.model.layer.weight) == np.asarray(final.system.model.layer.weight)).all()
    with pytest.raises(ValueError, match=r"store 'rows'; write store="):
        fm.restore(tmp_path, state)


def test_a_relative_directory_is_that_of_the_beginning(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    class Moves:
        pass

    @dispatch
    def on(event: fm.EpochStart, callback: Moves, run):
        os.chdir(tmp_path / "other")

    run(state, "runs", callbacks=[Moves()])
    assert steps_in(tmp_path / "runs") == [2, 4, 6] and not os.listdir(tmp_path / "other")


def test_steps_that_are_not_there_are_errors_that_list_the_others(state, tmp_path):
    run(state, tmp_path, fm.Every(steps=4))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5; it has 4, 6"):
        fm.restore(tmp_path, state, 5)
    with pytest.raises(ValueError, match=r"saved without one.*keep=fm\.Latest\(3\) \| fm\.Best"):
        fm.restore(tmp_path, state, "best")
    with pytest.raises(FileNotFoundError, match=r"other is not a directory"):
        fm.restore(tmp_path / "other", state)
    with pytest.raises(FileNotFoundError, match=r"is not a directory"):
        fm.checkpoints(tmp_path / "other")


def test_the_list_prints_as_a_table(state, tmp_path):
    run(state, tmp_path, fm.Every(steps=2) | fm.Every(epochs=1))
    (tmp_path / "step-00000002" / "run.json").unlink()
    text = repr(fm.checkpoints(tmp_path))
    assert "4 checkpoints" in text and "validation/loss" in text and "run.json is missing" in text
    assert len(text.splitlines()) == 5 and "step 6" in repr(fm.checkpoints(tmp_path)[-1])


def test_run_json_is_plain_json(state, tmp_path):
    run(state, tmp_path)
    text = (tmp_path / "step-00000002" / "run.json").read_text()
    saved = json.loads(text)
    assert saved["options"]["batch_size"] == 16 and saved["versions"]["fulmen"] == fm.__version__


# Failures


def test_a_failed_save_is_an_error_of_the_run_and_keeps_the_earlier_checkpoints(state, tmp_path, monkeypatch):
    written = FolderStore.write

    def full(store, folder, snapshot):
        if folder.name.startswith(".step-00000004"):
            (folder / "state.safetensors").write_bytes(b"begun")
            raise OSError(28, "No space left on device")
        written(store, folder, snapshot)

    monkeypatch.setattr(FolderStore, "write", full)
    with pytest.raises(OSError, match=r"checkpoint of step 4 cannot be written into .*: No space left") as raised:
        run(state, tmp_path)
    assert raised.value.errno == 28
    assert steps_in(tmp_path) == [2] and sorted(os.listdir(tmp_path)) == [".lock", "step-00000002"]
    assert all(each.valid for each in fm.checkpoints(tmp_path))


def test_a_failed_save_is_noticed_at_the_next_refresh(tmp_path):
    checkpoint = fm.Checkpoint(tmp_path)
    checkpoint._writing.start(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    time.sleep(0.05)
    with pytest.raises(OSError, match="No space left"):
        fm.on(fm.callbacks.LogsRead(), checkpoint, None)


def test_an_error_of_the_run_is_not_hidden_and_the_lock_is_released(state, tmp_path):
    class Breaks:
        pass

    @dispatch
    def on(event: fm.EpochEnd, callback: Breaks, run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(state, tmp_path, callbacks=[Breaks()])
    assert steps_in(tmp_path) == [2]
    run(state, tmp_path, resume=tmp_path)
    assert steps_in(tmp_path) == [2, 4, 6]


def test_a_folder_that_cannot_be_made_is_an_error_before_the_first_step(state, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"checkpoints cannot be written into .*file/runs"):
        run(state, tmp_path / "file" / "runs")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
def test_a_read_only_folder_is_an_error_before_the_first_step(state, tmp_path, unprivileged):
    unprivileged(tmp_path, 0o555)
    for directory in (tmp_path, tmp_path / "runs"):
        with pytest.raises(PermissionError, match=r"checkpoints cannot be written into .*: Permission denied"):
            run(state, directory)


def test_a_run_does_not_mix_with_another_one_in_its_directory(state, tmp_path):
    run(state, tmp_path)
    with pytest.raises(ValueError, match=r"has a checkpoint of step 6, and this run begins at step 0\. Write resume="):
        run(state, tmp_path)


LOCKED = """
import sys, time
from pathlib import Path
from fulmen.train.checkpoints.file_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def started(code, folder, directory):
    """A process, and the first line that it prints."""
    process, output = start_code(code, folder, directory)
    while process.is_alive() and not (output.exists() and output.read_text().endswith("\n")):
        time.sleep(0.01)
    return process, output.read_text().strip()


def test_a_lock_keeps_two_runs_out_of_one_folder(state, tmp_path):
    (tmp_path / "program").mkdir()
    process, line = started(LOCKED, tmp_path / "program", tmp_path)
    try:
        assert line == "locked"
        with pytest.raises(RuntimeError, match=rf"in use by process {process.pid} on .*another folder"):
            run(state, tmp_path)
    finally:
        process.kill()
        process.join()
    run(state, tmp_path)  # the lock of a dead process does not count
    assert steps_in(tmp_path) == [2, 4, 6]


def test_a_lock_holds_within_a_process(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


FORKED = """
import os, signal, sys, time, warnings
from pathlib import Path
from fulmen.train.checkpoints.file_lock import FolderLock
warnings.simplefilter("ignore")
lock = FolderLock(Path(sys.argv[1]))
begun, begins = os.pipe()
if forked := os.fork():
    os.read(begun, 1)
    print(forked, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.write(begins, b"x")
time.sleep(600)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_a_killed_run_has_forked_does_not_keep_its_lock(tmp_path):
    """As the workers of a data loader, which may outlive it."""
    (tmp_path / "program").mkdir()
    process, output = start_code(FORKED, tmp_path / "program", tmp_path)
    process.join(60)
    assert process.exitcode == -9
    forked = int(output.read_text())
    try:
        FolderLock(tmp_path).release()
        os.kill(forked, 0)  # it lives
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_lock_that_is_a_link_is_refused(state, tmp_path):
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="checkpoints cannot be written into"):
        run(state, tmp_path / "runs")
    assert (tmp_path / "outside").read_text() == "precious"


# Incomplete checkpoints


@pytest.mark.filterwarnings("ignore:the resumed run has another length")
def test_what_a_killed_process_left_is_not_listed_and_is_removed_by_the_next_run(state, tmp_path):
    run(state, tmp_path)
    shutil.copytree(tmp_path / "step-00000006", tmp_path / ".step-00000008.0a1b2c3d")
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "notes").mkdir()
    assert [(each.step, each.valid) for each in fm.checkpoints(tmp_path)] == [(2, True), (4, True), (6, True), (9, False)]
    with pytest.warns(UserWarning, match=r"step-00000009/manifest\.json is missing.*step 6 is used"):
        assert find_resumable(tmp_path).step == 6
    with pytest.warns(UserWarning, match="step-00000009"):
        run(state, tmp_path, epochs=3, resume=tmp_path)
    assert not (tmp_path / ".step-00000008.0a1b2c3d").exists() and (tmp_path / "notes").exists()
    assert all(each.valid for each in fm.checkpoints(tmp_path))


@pytest.mark.filterwarnings("ignore:the resumed run has another length")
def test_a_checkpoint_that_was_being_replaced_is_still_there(state, tmp_path):
    run(state, tmp_path)
    (tmp_path / "step-00000006").rename(tmp_path / "step-00000006.previous")
    assert find_resumable(tmp_path).step == 6
    assert int(fm.restore(tmp_path, state).step) == 6
    run(state, tmp_path, epochs=3, resume=tmp_path)
    shutil.copytree(tmp_path / "step-00000008", tmp_path / "step-00000008.previous")
    assert [each.path.name for each in fm.checkpoints(tmp_path) if each.step == 8] == ["step-00000008"]


def test_without_safetensors_a_run_does_not_begin(state, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    recorder = Recorder()
    with pytest.raises(ImportError, match=r"fulmen\[save\]"):
        run(state, tmp_path, callbacks=[recorder])
    assert not recorder.states


def test_several_processes_do_not_save_by_their_clocks(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    saving = fm.Checkpoint(tmp_path, every=fm.Every(minutes=5))
    with pytest.raises(ValueError, match=r"Checkpoint is due Every\(minutes=5\).* several processes.*Every\(steps=…\)"):
        require_no_minutes([(saving, fm.callbacks.due(saving))])


def test_no_checkpoints_is_nothing_to_resume(tmp_path):
    assert find_resumable(tmp_path) is None and find_resumable(tmp_path / "new") is None


def test_other_threads_can_use_a_checkpoint(state, tmp_path):
    """`fit` in a thread, as a notebook's or a server's."""
    thread = threading.Thread(target=run, args=(state, tmp_path))
    thread.start()
    thread.join()
    assert steps_in(tmp_path) == [2, 4, 6]


def test_a_large_state_of_several_processes_needs_another_store(monkeypatch):
    leaf = SimpleNamespace(is_fully_addressable=False, nbytes=3 * 2**30)
    monkeypatch.setattr("fulmen.train.checkpoints.state_file.jax.Array", SimpleNamespace)
    with pytest.raises(ValueError, match=r"at most 2 GiB.*got 3\.0 GiB.*store=fm\.OrbaxStore\(\)"):
        FolderStore().snapshot(SimpleNamespace(arrays=[leaf]))
