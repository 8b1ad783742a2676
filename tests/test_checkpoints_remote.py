"""Checkpoints in object stores: one in memory, and a server that speaks S3 where the packages moto[server] and s3fs are installed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import optax
import pytest
from killed_runs import outcome, run_to_the_end
from object_store import s3_server
from test_checkpoints_orbax import require_that_two_processes_write_one_checkpoint
from tiny import data, net

import fulmen as fm
from fulmen.testing.equality import bits, same
from fulmen.train.checkpoints import warn_unless_saved
from fulmen.train.checkpoints.bucket import Bucket
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.file_lock import FolderInUseError
from fulmen.train.checkpoints.manifest import Manifest
from fulmen.train.checkpoints.remote_directory import temporary_folder

pytest.importorskip("orbax.checkpoint")
fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.filterwarnings("ignore")  # Orbax's own

X, Y = data(48)


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture(params=["memory", "server"])
def bucket(request):
    yield f"memory://{request.node.originalname}" if request.param == "memory" else request.getfixturevalue("server")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def ready(seed=0):
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.adam, lr=1e-2, seed=seed)


def run(url, epochs, resume=None, callbacks=(), **options):
    saving = fm.Checkpoint(url, every=fm.Every(steps=2), store=fm.OrbaxStore(), **options)
    options = dict(batch_size=16, callbacks=[saving, *callbacks], progress=False, resume=resume)
    return fm.fit(ready(), (X, Y), epochs=epochs, **options)


def system_at(url):
    return fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)


def objects(url):
    system, root = system_at(url)
    return sorted(name.removeprefix(f"{root}/") for name in system.find(root))


def test_a_run_is_saved_listed_restored_and_resumed(bucket):
    whole, history = run(f"{bucket}/whole", 3)
    run(f"{bucket}/run", 1)
    assert [each.step for each in fm.checkpoints(f"{bucket}/run")] == [2, 3]
    state, found = run(Path(f"{bucket}/run"), 3, resume=f"{bucket}/run/", keep=fm.Latest(2))
    assert same(bits(state), bits(whole))
    assert {name: list(found[name]) for name in found if name != "seconds"} == {
        name: list(history[name]) for name in history if name != "seconds"
    }
    listed = fm.checkpoints(f"{bucket}/run")
    assert [(each.step, each.valid) for each in listed] == [(3, True), (8, True), (9, True)]  # 3 is where it was resumed
    assert str(listed[-1].path).startswith(f"{bucket}/run/step-00000009") and listed[-1].metrics["loss"] == found["loss"][-1]
    assert {name.partition("/")[0].removesuffix(".previous") for name in objects(f"{bucket}/run")} == {
        ".owner", "step-00000003", "step-00000008", "step-00000009",
    }  # fmt: skip
    assert same(bits(fm.restore(f"{bucket}/run", ready(1))), bits(whole))
    assert int(fm.restore(f"{bucket}/run", ready(1), step=8).step) == 8
    assert fm.evaluate(fm.restore(f"{bucket}/run", fm.Classifier(net())), (X, Y)) == fm.evaluate(whole, (X, Y))


def test_each_damaged_object_is_named(bucket):
    run(bucket, 1)
    system, root = system_at(bucket)
    last = fm.checkpoints(bucket)[-1]
    folder, other = f"{root}/{last.path.rpartition('/')[2]}", f"{root}/step-00000002"
    names = [name.removeprefix(f"{folder}/") for name in system.find(folder)]
    assert {"manifest.json", "run.json"} < set(names)
    for name in names if bucket.startswith("memory") else names[-2:]:
        path = f"{folder}/{name}"
        content = system.cat_file(path)
        swapped = system.cat_file(f"{other}/{name}") if system.exists(f"{other}/{name}") else b"other"
        flipped = content[:-1] + bytes([content[-1] ^ 1]) if content else b"x"
        for damaged in {flipped, content[:-1], swapped, None} - {content}:
            system.rm_file(path) if damaged is None else system.pipe_file(path, damaged)
            found = fm.checkpoints(bucket)[-1]
            assert not found.valid and f"{last.path}/{name}" in found.problem, (name, damaged, found)
            with pytest.raises(ValueError, match=r"\.json|arrays"):
                fm.restore(bucket, ready(), step=3)
            system.pipe_file(path, content)
    assert fm.checkpoints(bucket)[-1].valid
    system.pipe_file(f"{folder}/run.json", b"{}")
    with pytest.warns(UserWarning, match=r"run\.json is damaged.*step 2 is used"):
        assert int(fm.restore(bucket, ready()).step) == 2


def test_killed_at_each_operation_of_a_save(monkeypatch):
    """From one operation of the store on, all fail: what is there is what a killed process would have left."""
    store = type(fsspec.filesystem("memory"))
    left = [None]  # the number of operations until the process is killed
    for operation in ("put_file", "pipe_file", "rm_file", "rmdir", "cat_file", "ls", "find"):

        def counted(self, *args, real=getattr(store, operation), **options):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise SystemExit
            return real(self, *args, **options)

        monkeypatch.setattr(store, operation, counted)

    def add(url, step, keep=1, content="x"):
        folder = CheckpointFolder(url, fm.Latest(keep), step)

        def write(path):
            (path / "arrays").mkdir()
            for name in ("a", "b", "c"):
                (path / "arrays" / name).write_text(f"{content}{step}")

        folder.add(Manifest(step, 0.0, "orbax"), write, b"{}")

    for step in (3, 2):  # another step, and the same again
        for n in range(1000):
            url = f"memory://killed-{step}-{n}"
            add(url, 2)
            left[0] = n
            with contextlib.suppress(SystemExit):
                add(url, step, content="y")
            ended, left[0] = left[0] >= 0, None
            found = fm.checkpoints(url)
            assert found and all(each.valid for each in found), (n, found, objects(url))
            assert {each.step for each in found} <= {2, step}
            add(url, 4)
            assert {name.partition("/")[0] for name in objects(url)} == {".owner", "step-00000004"}, (n, objects(url))
            assert [(each.step, each.valid) for each in fm.checkpoints(url)] == [(4, True)]
            if ended:
                break
        assert 20 < n < 200


def test_the_run_that_began_last_has_the_directory(bucket):
    first = CheckpointFolder(f"{bucket}/two", fm.Latest(1), 0)
    second = CheckpointFolder(f"{bucket}/two", fm.Latest(1), 0)
    write = lambda path: (path / "state.json").write_text("{}")
    with pytest.raises(FolderInUseError, match=rf"two is in use by process {os.getpid()} .* into another directory"):
        first.add(Manifest(1, 0.0, "orbax"), write, b"{}")
    second.add(Manifest(2, 0.0, "orbax"), write, b"{}")
    with pytest.raises(ValueError, match=r"two has a checkpoint of step 2, and this run begins at step 0"):
        CheckpointFolder(f"{bucket}/two", fm.Latest(1), 0)
    second.add(Manifest(3, 0.0, "orbax"), write, b"{}")
    assert [each.step for each in fm.checkpoints(f"{bucket}/two")] == [3]


@pytest.mark.parametrize("step", [0, 2])
def test_a_store_that_refuses_is_an_error_of_the_run(monkeypatch, step):
    store = type(fsspec.filesystem("memory"))

    class Refuse:
        """Lets the store refuse to write after a step."""

    @fm.dispatch
    def on(event: fm.StepEnd, callback: Refuse, run):
        if run.step == step:
            monkeypatch.setattr(store, "put_file", refused)

    def refused(*args, **options):
        raise PermissionError("Access Denied")

    if step == 0:
        monkeypatch.setattr(store, "pipe_file", refused)
    with pytest.raises(PermissionError, match=r"cannot be written into memory://refusing/run: .*Access Denied"):
        run("memory://refusing/run", 2, callbacks=[Refuse()])
    monkeypatch.undo()
    assert step == 0 or not fm.checkpoints("memory://refusing/run")


def test_what_is_not_there_is_an_error(server):
    with pytest.raises(FileNotFoundError, match=r"memory://none/run is not a directory"):
        fm.checkpoints("memory://none/run")
    with pytest.raises(FileNotFoundError, match=r"s3://none/run is not a directory"):
        fm.restore("s3://none/run", ready())
    with pytest.raises(OSError, match=r"cannot be written into s3://none/run.*bucket does not exist"):
        run("s3://none/run", 1)


@pytest.mark.parametrize("url", ["s3://bucket/run", "s3://bucket/run/", Path("s3://bucket/run")])
def test_all_forms_of_a_url_are_the_same_directory(url):
    with warnings.catch_warnings(action="error"):
        warn_unless_saved(url, [fm.Checkpoint("s3://bucket/run/", store=fm.OrbaxStore())], False)


def test_a_checkpoint_that_is_removed_while_it_is_downloaded_is_as_if_it_were_missing(monkeypatch):
    url = "memory://gone/run"
    run(url, 1)
    get = Bucket.download

    def download(bucket, folder, *args):
        if folder == "step-00000003":
            bucket.remove_folder(folder)
        get(bucket, folder, *args)

    monkeypatch.setattr(Bucket, "download", download)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = fm.restore(url, like=ready())
    assert int(state.step) == 2 and any("step 2 is used" in str(each.message) for each in caught)


def test_urls_that_are_not_known(monkeypatch):
    with pytest.raises(ValueError, match=r"got 'foo://bucket/run'"):
        fm.checkpoints("foo://bucket/run")
    for url in ("file:///bucket/run", "local:///bucket/run"):
        with pytest.raises(ValueError, match=r"Checkpoint.directory must be .*, got .*write the path"):
            fm.Checkpoint(url)
    for url in ("memory://bucket/lr[12]", "memory://bucket/*", "memory://bucket/run?"):
        with pytest.raises(ValueError, match=r"must have no \*, \? or \[, got .*choose another name"):
            fm.checkpoints(url)
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ImportError, match=r"az:// URLs need the package adlfs: pip install adlfs"):
        fm.checkpoints("az://bucket/run")


def test_folders_of_killed_processes_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    here, elsewhere = f"fulmen-checkpoint-{socket.gethostname()}", "fulmen-checkpoint-another.host"
    killed, living, other = (
        tmp_path / n for n in (f"{here}-{ended.pid}-a", f"{here}-{os.getppid()}-a", f"{elsewhere}-{ended.pid}-a")
    )
    for folder in (killed, living, other):
        (folder / "step-00000001").mkdir(parents=True)
    with temporary_folder() as folder:
        assert {*tmp_path.iterdir()} == {living, other, folder}
    assert not folder.exists()


EXAMPLES = """
    import numpy as np, optax
    import fulmen as fm

    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

    def run():
        return dict(system=fm.Classifier(fm.models.Dense(4, 2)), data=(x, (x[:, 0] > 0).astype(np.int32)), optimizer=optax.sgd,
                    lr=1e-2, epochs=2, batch_size=20)
"""


def test_the_command_line_takes_a_url(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("of_a_url.py").write_text(textwrap.dedent(EXAMPLES))
    code, _, error = command("train of_a_url:run --checkpoint memory://command/run --epochs 1")
    assert (code, error) == (0, "")
    code, out, _ = command("train of_a_url:run --checkpoint memory://command/run --resume")
    assert code == 0 and "2 steps" in out
    code, out, _ = command("checkpoints memory://command/run")
    assert code == 0 and "2 checkpoints" in out and "not valid" not in out
    code, out, _ = command("evaluate of_a_url:run --checkpoint memory://command/run")
    assert code == 0 and "step 2" in out
    code, _, error = command("checkpoints memory://command/none")
    assert code and "memory://command/none is not a directory" in error


def test_a_killed_run_ends_as_one_that_was_not(server, tmp_path, monkeypatch):
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    run_to_the_end("classifier", f"{server}/not-killed", tmp_path / "whole", 2)
    ended = run_to_the_end("classifier", f"{server}/killed", tmp_path / "result", 2, [signal.SIGKILL], seed=1)
    assert len(ended) == 1
    assert outcome(tmp_path / "result") == outcome(tmp_path / "whole")
    assert all(each.valid for each in fm.checkpoints(f"{server}/killed"))


def test_two_processes_write_one_checkpoint(server, tmp_path):
    require_that_two_processes_write_one_checkpoint(f"{server}/processes", tmp_path)


def test_a_distributed_state_comes_back_under_another_policy(server):
    runs = Path(__file__).with_name("device_runs.py")
    command = [sys.executable, str(runs), "an_object_store"]
    environment = {**os.environ, "OBJECT_STORE": f"{server}/distributed"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=True)
    (error,) = json.loads(done.stdout.splitlines()[-1]).values()
    assert not error, error
    assert all(each.valid for each in fm.checkpoints(f"{server}/distributed"))
