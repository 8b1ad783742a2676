"""Damaged and hostile checkpoints: each is an error that names the file; nothing runs, and nothing outside is touched."""

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import optax
import pytest
from forked import run_code
from tiny import data, net

import fulmen as fm
from fulmen.train.checkpoints import find_resumable
from fulmen.train.checkpoints.checkpoint_files import LocalFiles
from fulmen.train.checkpoints.manifest import Manifest, is_inside, read_manifest

safetensors = pytest.importorskip("safetensors.numpy")

FILES = ["state.safetensors", "run.json", "manifest.json"]


@pytest.fixture(scope="module")
def state():
    return fm.setup(net(), data(32), optimizer=optax.adam, lr=1e-2)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """The directory of a run with the steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved")
    options = dict(epochs=1, batch_size=16, progress=False)
    fm.fit(state, data(32), callbacks=[fm.Checkpoint(directory, every=fm.Every(steps=1), keep=fm.Latest(9))], **options)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "runs")


def folder(directory, step=2):
    return directory / f"step-{step:08d}"


def require_damaged(directory, state, words):
    """Every way to use the checkpoint of step 2 names what is wrong, and the one of step 1 is still there."""
    first, second = fm.checkpoints(directory)
    assert first.valid and not second.valid and words in second.problem
    for use in (lambda: fm.restore(directory, state, 2), lambda: second.run, lambda: second.load(state)):
        with pytest.raises((ValueError, OSError)) as raised:
            use()
        assert words in str(raised.value)
    with pytest.warns(UserWarning, match=r"step 1 is used") as warned:
        found = find_resumable(directory)
    assert found.step == 1 and words in str(warned[0].message)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", ["one bit", "truncated", "longer", "missing", "of another step", "a link", "a folder", "a pipe"]
)
def test_each_damaged_file_is_named(directory, state, name, damage):
    path = folder(directory) / name
    if damage == "one bit":
        flip(path, 8 * path.stat().st_size // 2)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif damage == "of another step":
        shutil.copy(folder(directory, 1) / name, path)
    else:
        path.rename(path.with_name("other"))
        if damage == "a link":
            path.symlink_to("other")
        elif damage == "a folder":
            path.mkdir()
        elif damage == "a pipe":
            os.mkfifo(path)
    require_damaged(directory, state, f"step-00000002/{name}")


def test_a_thousand_flipped_bits_are_a_thousand_errors(directory):
    """Of all files of a checkpoint together, at random."""
    random.seed(0)
    paths = [folder(directory) / name for name in FILES]
    contents = {path: path.read_bytes() for path in paths}
    for path in random.choices(paths, [len(contents[path]) for path in paths], k=1000):
        flip(path, random.randrange(8 * len(contents[path])))
        found = fm.checkpoints(directory)[-1]
        assert not found.valid and path.name in found.problem
        path.write_bytes(contents[path])
    assert fm.checkpoints(directory)[-1].valid


def test_a_folder_under_the_name_of_another_step_is_damaged(directory, state):
    shutil.rmtree(folder(directory))
    shutil.copytree(folder(directory, 1), folder(directory))
    require_damaged(directory, state, "manifest.json is damaged: it is of step 1")


def test_without_any_valid_checkpoint_a_run_starts_from_scratch_with_a_warning(directory, state):
    for step in (1, 2):
        flip(folder(directory, step) / "state.safetensors", 99)
    with pytest.warns(UserWarning, match=r"step-00000002/state.*step-00000001/state.*there is no other"):
        assert find_resumable(directory) is None


# Hostile checkpoints, whose digests are right


def forged(directory, **changes):
    """Write a manifest of the checkpoint of step 2 that fits its files."""
    at = folder(directory)
    old = json.loads((at / "manifest.json").read_bytes())
    files = {name: [(at / name).stat().st_size, digest(at / name)] for name in FILES[:2] if (at / name).is_file()}
    fields = {**old, "files": files, **changes}
    del fields["sha256"]
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    (at / "manifest.json").write_bytes(json.dumps(fields, sort_keys=True).encode())


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_forged_manifest_is_accepted_where_it_is_right(directory, state):
    forged(directory)
    assert fm.checkpoints(directory)[-1].valid and int(fm.restore(directory, state).step) == 2


OUTSIDE = ["../outside", "/etc/hostname", "a/../../outside", "..\\outside", "C:outside", "", ".", "a//b", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_the_folder_are_refused(directory, state, name):
    assert not is_inside(name)
    (directory / "outside").write_bytes(b"x")
    forged(directory, files={name: [1, hashlib.sha256(b"x").hexdigest()]})
    require_damaged(directory, state, "manifest.json is damaged")


@pytest.mark.parametrize(
    "changes",
    [
        dict(step="2"),
        dict(step=2.0),
        dict(step=10**90),
        dict(step=-2),
        dict(step=True),
        dict(time="yesterday"),
        dict(time=1e300),
        dict(time=float("nan")),
        dict(time=10**90),
        dict(store=["os", "system"]),
        dict(metrics={"loss": "low"}),
        dict(metrics={"loss": 10**90}),
        dict(metrics=[1]),
        dict(best={"loss": "os.system"}),
        dict(files=[]),
        dict(files={"run.json": [1]}),
        dict(files={"run.json": ["1", "a" * 64]}),
        dict(files={"run.json": [1, "a"]}),
        dict(files={"run.json": {"size": 1}}),
        dict(files={}),
        dict(__class__="os.system"),
        dict(format=99),
    ],
    ids=str,
)
def test_a_manifest_of_other_types_is_refused(directory, state, changes):
    forged(directory, **changes)
    require_damaged(directory, state, "step-00000002/")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"step": ' + b"9" * 100_000 + b"}",
        b'{"step": 2}',
        b"{}",
        pickle.dumps(os.getcwd),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("name", ["manifest.json", "run.json"])
def test_files_that_are_no_json_objects(directory, state, name, content):
    (folder(directory) / name).write_bytes(content)
    if name == "manifest.json":
        return require_damaged(directory, state, "step-00000002/manifest.json")
    forged(directory)
    found = fm.checkpoints(directory)[-1]
    if content not in (b"{}", b'{"step": 2}'):
        with pytest.raises(ValueError, match=r"step-00000002/run\.json is damaged"):
            _ = found.run
    return None


@pytest.mark.parametrize("store", ["os.system", "orbax", "", "FolderStore"])
def test_the_name_of_a_store_is_not_the_name_of_code(directory, state, store):
    forged(directory, store=store)
    with pytest.raises((ValueError, OSError, ImportError), match=r"store|state\.json"):
        fm.restore(directory, state, 2)


def header(path, change):
    """Change the JSON header of a safetensors file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def other_shape(table):
    table["system.layer.weight"]["shape"] = [2**40, 2**40]
    return table


def other_offsets(table):
    table["system.layer.weight"]["data_offsets"] = [0, 2**62]
    return table


def overlapping(table):
    table["system.layer.weight"]["data_offsets"] = table["optimizer_state.0.0.mu.layer.weight"]["data_offsets"]
    return table


def sparse(path, size):
    """A file that takes no room on the disk, with a header of almost all of it."""
    with open(path, "r+b") as file:
        file.write((size - 8).to_bytes(8, "little"))
        file.truncate(size)


HEADERS = {
    "a huge shape": lambda path: header(path, other_shape),
    "huge offsets": lambda path: header(path, other_offsets),
    "overlapping arrays": lambda path: header(path, overlapping),
    "a huge header": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:]),
    "a huge header in a sparse file": lambda path: sparse(path, 2**33),
    "a header of 2**63": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "deep JSON": lambda path: path.write_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(os.getcwd)),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("change", HEADERS)
def test_hostile_headers_allocate_nothing(directory, state, change):
    resource = pytest.importorskip("resource")
    path = folder(directory) / "state.safetensors"
    HEADERS[change](path)
    forged(directory) if path.stat().st_size < 2**30 else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for use in (lambda: fm.restore(directory, state, 2), lambda: fm.load(path, like=state)):
        with pytest.raises(ValueError, match=r"state\.safetensors"):
            use()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_arrays_of_other_types_and_shapes_are_refused(directory, state):
    path = folder(directory) / "state.safetensors"
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    for value in (np.zeros((3, 4), np.float32), np.zeros((4, 3), np.int32), np.zeros((4, 3, 9), np.uint8)):
        arrays = {**safetensors.load_file(path), "system.layer.weight": value}
        text = json.loads(metadata["fulmen"])
        for entry in text["leaves"]:
            entry["sha256"] = hashlib.sha256(arrays[entry["path"]].tobytes()).hexdigest()
        text = json.dumps(text)
        safetensors.save_file(arrays, path, metadata={"fulmen": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
        forged(directory)
        with pytest.raises(ValueError, match=r"state\.safetensors.*system\.layer\.weight"):
            fm.restore(directory, state, 2)


def test_a_sparse_file_is_not_read_into_memory(directory, state):
    with open(folder(directory) / "run.json", "r+b") as file:
        file.truncate(2**33)
    forged_size = folder(directory) / "manifest.json"
    before = forged_size.read_bytes()
    assert "run.json is damaged: it has 8589934592 bytes" in fm.checkpoints(directory)[-1].problem
    with open(folder(directory) / "manifest.json", "wb") as file:
        file.truncate(2**33)
    assert "manifest.json is damaged: it is larger than" in fm.checkpoints(directory)[-1].problem
    forged_size.write_bytes(before)


@pytest.mark.parametrize("name", ["step-2", "step-000000002", "step-00000002.tmp", "step-0000000२", "Step-00000002"])
def test_other_names_are_no_checkpoints(directory, name):
    shutil.copytree(folder(directory), directory / name)
    (directory / "step-00000003").symlink_to(folder(directory))
    (directory / "step-00000004").touch()
    assert [each.path.name for each in fm.checkpoints(directory)] == ["step-00000001", "step-00000002"]


@pytest.fixture
def removed(directory):
    """Remove deep folders afterwards, which pytest cannot."""
    yield
    subprocess.run(["rm", "-rf", str(directory)], check=True)


@pytest.mark.parametrize("listed", [False, True])
def test_deep_folders_do_not_exhaust_the_stack(directory, listed, removed):
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder(directory))
        for _ in range(2500):  # deeper than Python's stack, and a longer path than the system allows
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.fchdir(before)
        os.close(before)
    if listed:
        forged(directory, files={"d/file": [1, "0" * 64], "run.json": [1, "0" * 64]})
    found = fm.checkpoints(directory)[-1]
    assert found.valid != listed


def test_files_in_the_folder_of_a_store_that_the_manifest_does_not_list(directory, state):
    (folder(directory) / "arrays").mkdir()
    (folder(directory) / "arrays" / "listed").write_bytes(b"x")
    files = {name: [(folder(directory) / name).stat().st_size, digest(folder(directory) / name)] for name in FILES[:2]}
    forged(directory, files={**files, "arrays/listed": [1, hashlib.sha256(b"x").hexdigest()]})
    assert fm.checkpoints(directory)[-1].valid
    (folder(directory) / "arrays" / "added").touch()
    require_damaged(directory, state, "arrays/added is not in manifest.json")


def test_a_note_beside_the_files_of_a_checkpoint_does_no_harm(directory, state):
    (folder(directory) / "notes.txt").write_text("the run of Tuesday")
    assert fm.checkpoints(directory)[-1].valid


WATCHED = """
import os, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import jax, optax
import fulmen as fm
from fulmen.train.checkpoints import find_resumable
from tiny import data, net
directory, good = Path(sys.argv[2]), Path(sys.argv[3])
state = fm.setup(net(), data(32), optimizer=optax.adam, lr=1e-2)
warnings.simplefilter("ignore")

def use(directory):
    for each in [fm.checkpoints, find_resumable, lambda d: fm.restore(d, state, 2), lambda d: fm.restore(d, net(), 2),
                 lambda d: fm.checkpoints(d)[-1].run, lambda d: fm.load(d / "step-00000002" / "state.safetensors", like=state)]:
        try:
            each(directory)
        except (ValueError, OSError) as error:
            repr(error)

use(good)  # what is imported at the first use
seen, watching = [], True

def is_inside(path):
    return isinstance(path, int) or os.path.abspath(os.fsdecode(path)).startswith(str(directory))

def hook(name, arguments):
    if watching and name not in QUIET:
        seen.append((name, repr(arguments)[:300]))
        writes = name == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if name not in PATHS or not is_inside(arguments[0]) or writes:
            os.write(1, f"{name} {arguments!r:.300}\\n".encode())

PATHS = {"open", "os.scandir", "os.listdir", "os.walk", "os.fwalk"}
QUIET = {"object.__getattr__", "object.__setattr__", "sys._getframe", "sys._current_frames", "object.__delattr__",
         "builtins.id", "code.__new__", "function.__new__", "sys.unraisablehook", "array.__new__"}
sys.addaudithook(hook)
use(directory)
for action in (lambda: open("/canary"), lambda: open(directory / "canary", "w"), lambda: exec("1")):  # the hook sees these
    try:
        action()
    except OSError:
        pass
watching = False
print("done", len(seen))
"""


def as_pickle(at):
    class Runs:
        def __reduce__(self):
            return os.system, ("touch ran",)

    for name in FILES:
        (at / name).write_bytes(pickle.dumps(Runs()))


def as_links(at):
    for name in FILES:
        (at / name).rename(at.parent / name)
        (at / name).symlink_to(at.parent.parent / "elsewhere" / name)


def class_names(at):
    description = {"__class__": "os.system", "py/object": "os.system", "module": "builtins", "class_name": "exec"}
    (at / "run.json").write_text(json.dumps({**description, "callbacks": {"os.system#0": description}}))
    forged(at.parent, metrics={"__import__('os').system('touch ran')": 1.0})


HOSTILE = {
    "pickles": as_pickle,
    "links": as_links,
    "class names": class_names,
    "another store": lambda at: forged(at.parent, store="os"),
    "a folder outside": lambda at: forged(at.parent, files={"../../elsewhere/secret": [6, "0" * 64]}),
    "an absolute path": lambda at: forged(at.parent, files={"/etc/passwd": [6, "0" * 64]}),
    "a huge shape": lambda at: (HEADERS["a huge shape"](at / "state.safetensors"), forged(at.parent)),
    "deep JSON": lambda at: (HEADERS["deep JSON"](at / "state.safetensors"), forged(at.parent)),
}


def test_an_audit_hook_sees_no_code_and_no_file_outside(directory, saved, tmp_path, tmp_path_factory, monkeypatch):
    """All hostile checkpoints, one after another in one process: `open` inside the folder for reading, and nothing else."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    for number, (name, change) in enumerate(HOSTILE.items()):
        at = shutil.copytree(saved, tmp_path / f"hostile {number}")
        change(folder(at))
        assert name
    shutil.rmtree(directory)
    directory.mkdir()
    script = textwrap.dedent(WATCHED).replace(
        "use(directory)\nfor", "for each in sorted(directory.iterdir()): use(each)\nfor"
    )
    for number in range(len(HOSTILE)):
        shutil.move(tmp_path / f"hostile {number}", directory / str(number))
    monkeypatch.chdir(tmp_path)
    done = run_code(script, tmp_path_factory.mktemp("program"), Path(__file__).parent, directory, saved)
    *outside, last = done.splitlines()
    assert [line.split()[0] for line in outside] == ["open", "open", "compile", "exec"], outside  # the canaries alone
    assert "canary" in outside[0] and "canary" in outside[1] and int(last.split()[1]) > 50
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "runs"]


def test_a_written_manifest_is_read_back(tmp_path):
    written = Manifest(7, 12.5, "safetensors", {"loss": 0.1}, {"loss": "min"}, {"a": (3, "0" * 64)})
    (tmp_path / "manifest.json").write_bytes(written.encoded())
    assert read_manifest(LocalFiles(tmp_path), 7) == written
