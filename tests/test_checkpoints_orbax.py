"""Checkpoints that Orbax writes: the same manifest and values as those of the default store."""

import json
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forked import run_code, start_code
from tiny import data, net

import fulmen as fm

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore")  # Orbax's own

X, Y = data(48)


def ready(seed=0):
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.adam, lr=1e-2, seed=seed)


def bits(tree):
    return [
        np.asarray(
            jax.random.key_data(v) if jnp.issubdtype(getattr(v, "dtype", float), jax.dtypes.prng_key) else v
        ).tobytes()
        for v in jax.tree.leaves(tree)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("orbax")
    callback = fm.Checkpoint(directory, every=fm.Every(steps=2), store=fm.OrbaxStore())
    final, _ = fm.fit(ready(), (X, Y), epochs=2, batch_size=16, callbacks=[callback], progress=False)
    return directory, final


def test_a_state_is_restored_bit_for_bit(saved):
    directory, final = saved
    assert [(each.step, each.valid) for each in fm.checkpoints(directory)] == [(2, True), (4, True), (6, True)]
    restored = fm.restore(directory, ready(1))
    assert bits(restored) == bits(final) and restored.structure is final.structure
    assert [v.weak_type for v in restored.arrays] == [v.weak_type for v in final.arrays]


def test_a_component_is_restored_without_the_optimizer(saved):
    directory, final = saved
    assert fm.evaluate(fm.restore(directory, fm.Classifier(net())), (X, Y)) == fm.evaluate(final, (X, Y))


def test_a_run_is_resumed(saved, tmp_path):
    def run(epochs, resume=None):
        callback = fm.Checkpoint(tmp_path, every=fm.Every(steps=2), store=fm.OrbaxStore())
        options = dict(batch_size=16, callbacks=[callback], progress=False, resume=resume)
        return fm.fit(ready(), (X, Y), epochs=epochs, **options)[0]

    run(1)
    assert bits(run(2, tmp_path)) == bits(saved[1])


def test_damage_is_named(saved, tmp_path):
    import shutil

    directory = shutil.copytree(saved[0], tmp_path / "copy")
    folder = directory / "step-00000006"
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    assert "run.json" in files and "state.json" in files and len(files) > 4
    for name in files:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
        found = fm.checkpoints(directory)[-1]
        assert not found.valid and name in found.problem
        (folder / name).write_bytes(content)
    assert fm.checkpoints(directory)[-1].valid


def test_another_system_is_refused(saved):
    with pytest.raises(ValueError, match=r"does not fit `like`"):
        fm.restore(saved[0], fm.setup(fm.Classifier(net(4)), (X, Y), optimizer=optax.adam, lr=1e-2))


def test_without_orbax(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "fulmen\[orbax\]"'):
        callback = fm.Checkpoint(tmp_path, store=fm.OrbaxStore())
        fm.fit(ready(), (X, Y), epochs=1, batch_size=16, callbacks=[callback], progress=False)


def test_orbax_is_imported_when_it_is_used_only(tmp_path):
    code = "import sys, fulmen; fulmen.Checkpoint('x', store=fulmen.OrbaxStore()); assert 'orbax' not in sys.modules"
    run_code(code, tmp_path)


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
import warnings; warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np
import fulmen as fm
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fulmen.train.checkpoints.orbax_store import OrbaxStore
from pathlib import Path
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
values = {"a": jnp.arange(8.0), "b": jnp.ones((4, 3), jnp.bfloat16), "c": jnp.float32(3)}
tree = {**values, "a": jax.device_put(values["a"], split), "b": jax.device_put(values["b"], split)}
state, folder = fm.State(tree, key=0, step=3), Path(sys.argv[1])
store = OrbaxStore()
store.write(folder, store.snapshot(state))
like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=getattr(v, "sharding", None)), state)
for found in (store.read(folder, state), store.read(folder, like)):
    assert found.system["a"].sharding == split and found.system["b"].sharding == split
    assert all((np.asarray(found.system[n]) == np.asarray(tree[n])).all() for n in tree)
    assert int(found.step) == 3
"""


def test_sharded_arrays_keep_their_layout(tmp_path):
    run_code(SHARDED, tmp_path, tmp_path / "saved")
    assert (tmp_path / "saved" / "arrays").is_dir()


TWO = """
import os, sys, warnings; warnings.simplefilter("ignore")
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
port, index, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, index)
import fulmen as fm
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fulmen.train.checkpoints.checkpoint_folder import CheckpointFolder
from fulmen.train.checkpoints.manifest import Manifest
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
whole = np.arange(8.0, dtype=np.float32)
place = lambda sharding: jax.make_array_from_callback((8,), sharding, lambda i: whole[i])
state = fm.State({"a": place(split), "b": place(NamedSharding(mesh, P()))}, key=0, step=2)
store, folder = fm.OrbaxStore(), CheckpointFolder(directory, fm.Latest(1), 0)
for step in (1, 2, 2):
    snapshot = store.snapshot(state)
    write = lambda path: store.write(path, snapshot, shared=folder.directory.shared)
    folder.add(Manifest(step, 0.0, "orbax"), write, b"{}")
folder.close()
restored = fm.restore(directory, state)
for name, array in state.system.items():
    assert restored.system[name].sharding == array.sharding
    for shard in restored.system[name].addressable_shards:
        assert (np.asarray(shard.data) == whole[shard.index]).all()
assert [each.step for each in fm.checkpoints(directory)] == [2]
jax.distributed.shutdown()  # waits for the other process; a forked process runs no exit handlers that would do it
print("done")
"""


def require_that_two_processes_write_one_checkpoint(directory, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start_code(TWO, folder, port, i, directory, name=f"process{i}") for i in range(2)]
    for process, _ in both:
        process.join(120)
        process.kill()
    assert [output.read_text().strip().splitlines()[-1] for _, output in both] == ["done"] * 2
    assert fm.checkpoints(directory)[0].valid


def test_two_processes_write_one_checkpoint(tmp_path):
    require_that_two_processes_write_one_checkpoint(tmp_path / "checkpoints", tmp_path)
