"""Files that `save` writes: damage is noticed, and a save leaves everything else as it was."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import net

import fulmen as fm

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def model():
    return fm.init(net(), jax.random.key(0))


@pytest.fixture
def path(tmp_path, model):
    fm.save(tmp_path / "run.safetensors", model)
    return tmp_path / "run.safetensors"


def flipped(content, bit):
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def test_every_flipped_bit_is_an_error_that_names_the_file(path, model):
    content = path.read_bytes()
    random.seed(0)
    in_header = random.sample(range(8 * len(content)), 1000)
    for bit in [*range(64), *in_header]:
        path.write_bytes(flipped(content, bit))
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            fm.load(path, like=model)


def test_a_flipped_bit_in_an_array_names_the_array(path, model):
    content = path.read_bytes()
    at = content.index(np.asarray(model.layer.weight).tobytes())
    for byte in (at, at + model.layer.weight.nbytes - 1):
        path.write_bytes(flipped(content, 8 * byte + 3))
        with pytest.raises(ValueError, match=r"run\.safetensors is damaged: the array layer\.weight .*SHA-256"):
            fm.load(path, like=model)


def test_every_truncation_is_an_error(path, model):
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"run\.safetensors is damaged"):
            fm.load(path, like=model)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"truncated; the array layer\.weight is incomplete"):
        fm.load(path, like=model)


def test_format_1_loads_with_a_warning(path, model):
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["fulmen"])
    header["format"] = 1
    for entry in header["leaves"]:
        del entry["sha256"]
    safetensors.save_file(safetensors.load_file(path), path, metadata={"fulmen": json.dumps(header)})
    with pytest.warns(UserWarning, match="format 1, which has no digests"):
        loaded = fm.load(path, like=model)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, loaded, model))


@pytest.mark.parametrize("kept", ["fulmen", "sha256"])
def test_a_description_without_its_digest_is_damaged(path, model, kept):
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    safetensors.save_file(safetensors.load_file(path), path, metadata={kept: metadata[kept]})
    with pytest.raises(ValueError, match=r"run\.safetensors .*(SHA-256 of its description.* missing|not written by)"):
        fm.load(path, like=model)


def test_files_are_valid_safetensors_with_aligned_arrays(tmp_path):
    tree = {"a": jnp.arange(3, dtype=jnp.int8), "b": jnp.zeros((0, 2)), "c": jnp.float32(1), "d": jnp.ones(5, bool)}
    fm.save(tmp_path / "x", fm.State(tree, key=0))
    arrays = safetensors.load_file(tmp_path / "x")
    assert all((arrays[f"system.{name}"] == np.asarray(tree[name])).all() for name in tree)
    assert arrays["system.a"].dtype == np.int8 and arrays["system.b"].shape == (0, 2)
    content = (tmp_path / "x").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0


# What a save leaves as it was


def test_an_existing_file_keeps_its_permissions(path, model):
    path.chmod(0o600)
    fm.save(path, model)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_remains_one(tmp_path, path, model):
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(path.name)
    dangling.symlink_to("elsewhere")
    before = path.stat().st_ino
    fm.save(link, model)
    assert link.is_symlink() and path.stat().st_ino != before
    fm.save(dangling, model)
    assert dangling.is_symlink() and (tmp_path / "elsewhere").is_file()
    fm.load(link, like=model)


KILLED = """
import os, signal, sys, jax
import fulmen as fm
from fulmen.train.checkpoints import atomic_files
model = fm.init(fm.models.Dense(3, 2), jax.random.key(0))
def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
atomic_files.os.fsync = wait
fm.save(sys.argv[1], model)
"""


def test_the_next_save_removes_what_killed_ones_left(path, model):
    (path.parent / ".run.safetensors.0a1b2c3d").write_bytes(b"left by a process that was killed")
    (path.parent / ".other.safetensors.0a1b2c3d").write_bytes(b"of another file")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"writing\n"
        fm.save(path, model)
        temporary = [name for name in os.listdir(path.parent) if name.startswith(".run.safetensors.")]
        assert len(temporary) == 1  # that of the living process
    finally:
        process.kill()
        process.communicate()
    fm.save(path, model)
    assert sorted(os.listdir(path.parent)) == [".other.safetensors.0a1b2c3d", "run.safetensors"]
    fm.load(path, like=model)


def test_a_full_disk_is_an_os_error_and_keeps_the_old_file(path, tmp_path, model):
    resource = pytest.importorskip("resource")
    content = path.read_bytes()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OSError, match=r"save cannot write .*run\.safetensors") as raised:
            fm.save(path, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.errno == errno.EFBIG
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["run.safetensors"]


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
def test_missing_permissions_are_reported_as_such(path, model, unprivileged):
    unprivileged(path, 0)
    unprivileged(path.parent, 0o555)
    with pytest.raises(PermissionError, match=r"Permission denied.*run\.safetensors"):
        fm.load(path, like=model)
    with pytest.raises(PermissionError, match=r"save cannot write .*run\.safetensors: Permission denied"):
        fm.save(path, model)
    with pytest.raises(PermissionError, match=r"save cannot write .*new.*: Permission denied"):
        fm.save(path.parent / "new" / "file", model)


def test_a_folder_cannot_be_replaced(tmp_path, model):
    with pytest.raises(IsADirectoryError, match="save cannot write"):
        fm.save(tmp_path, model)
