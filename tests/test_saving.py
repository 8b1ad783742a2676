"""Saving and loading: bit for bit, checked, and without running anything."""

import hashlib
import json
import os
import pickle
import stat
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from tiny import Linear, Net, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.core.component import record
from fulmen.train.checkpoints import load, save

safetensors = pytest.importorskip("safetensors.numpy")

X, Y = data()


class Tracked(fm.Model):
    """Parameters, a buffer, an integer buffer, a hyperparameter, randomness."""

    layer: Linear
    mean: fm.Buffer
    count: fm.Buffer
    scale: float = 0.5


@dispatch
def forward(model: Tracked, x, mode: fm.Train):
    y = model.layer(x) + 0.1 * jax.random.normal(mode.key, (x.shape[0], model.layer.m))
    return record(record(y, model.mean, y.mean(0)), model.count, model.count.value + 1)


@dispatch
def loss(model: Tracked, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(model.scale * model(batch.x), batch.y)


@dispatch
def forward(model: Tracked, x):
    return model.layer(x)


def tracked(classes=3):
    return Tracked(Linear(4, classes), fm.Buffer(jnp.zeros(classes)), fm.Buffer(jnp.int32(0)))


def ready(component=None, optimizer=optax.adam, seed=0):
    return fm.setup(component or tracked(), (X, Y), optimizer=optimizer, lr=1e-2, seed=seed)


@pytest.fixture(scope="module")
def state():
    state = ready()
    for start in (0, 16, 32):
        state, _ = fm.train_step(state, (X[start : start + 16], Y[start : start + 16]))
    return state


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def bits(tree):
    """Every leaf as type, shape, type of numbers, and bytes."""
    found = []
    for leaf in jax.tree.leaves(tree):
        kind, weak = type(leaf), getattr(leaf, "weak_type", False)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found.append((kind, str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()))
        else:
            value = np.asarray(leaf)
            found.append((kind, weak, value.shape, str(value.dtype), value.tobytes()))
    return found


def test_a_state_is_restored_bit_for_bit(state, path):
    save(path, state)
    loaded = load(path, like=ready(seed=1))
    assert bits(loaded) == bits(state) and loaded.structure is state.structure
    assert int(loaded.step) == 3 and isinstance(loaded.step, np.int32)
    assert int(loaded.system.count.value) == 3
    assert jax.random.key_data(loaded.key).tolist() == jax.random.key_data(state.key).tolist()


def test_resume_continues_as_without_interruption(path):
    def train(state):
        return fm.fit(state, (X, Y), epochs=2, batch_size=16, seed=5, progress=False)[0]

    first, _ = fm.fit(ready(), (X, Y), epochs=2, batch_size=16, seed=5, progress=False)
    save(path, first)
    assert bits(train(load(path, like=ready(seed=7)))) == bits(train(first))


def test_a_loaded_state_compiles_nothing(state, path):
    save(path, state)
    fm.train_step(state, (X[:16], Y[:16]))
    loaded = load(path, like=state)
    from tiny import Compilations

    with Compilations() as compiled:
        fm.train_step(loaded, (X[:16], Y[:16]))
    assert len(compiled) == 0


class Leaves(fm.Component):
    """Leaves of all kinds."""

    arrays: dict[str, jax.Array]
    number: float = fm.hyper(default=1 / 3)
    whole: float = fm.hyper(default=2)
    numpy: np.ndarray = fm.hyper(default=None)


def test_every_dtype_is_restored(path):
    rng = np.random.default_rng(0)
    arrays = {
        "bfloat16": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
        "float16": jnp.asarray(rng.normal(size=5), jnp.float16),
        "float8": jnp.asarray([1.0, -2.0], jnp.float8_e4m3fn),
        "int4": jnp.asarray([-8, 7, 1], jnp.int4),
        "complex": jnp.asarray([1 + 2j, 3j], jnp.complex64),
        "bool": jnp.asarray([True, False]),
        "uint32": jnp.asarray([2**32 - 1], jnp.uint32),
        "special": jnp.asarray([jnp.nan, -jnp.inf, -0.0], jnp.float32),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(0.1),
        "weak": jnp.asarray(0.1),
        "weak vector": jnp.broadcast_to(jnp.asarray(0.1), (3,)),
        "empty half": jnp.zeros((2, 0), jnp.bfloat16),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 3),
        "other keys": jax.random.key(5, impl="rbg"),
    }
    before = Leaves(arrays, numpy=np.arange(3.0))
    save(path, before)
    like = Leaves({**arrays, "special": jnp.zeros(3), "bfloat16": jnp.zeros((3, 2), jnp.bfloat16)}, 0.0, 0, np.zeros(3))
    assert bits(load(path, like=like)) == bits(before)
    assert load(path, like=like).number == 1 / 3
    assert np.asarray(load(path, like=like).arrays["bfloat16"]).dtype == ml_dtypes.bfloat16


def test_like_may_hold_shapes(state, path):
    save(path, state)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), state)
    loaded = load(path, like=shapes)
    assert all(isinstance(v, jax.Array) for v in jax.tree.leaves(loaded))
    assert [b[-1] for b in bits(loaded)] == [b[-1] for b in bits(state)]
    drawn = jax.eval_shape(fm.init, net(), jax.random.key(0))
    save(path, fm.init(net(), jax.random.key(0)))
    assert bits(load(path, like=drawn)) == bits(fm.init(net(), jax.random.key(0)))


def test_the_file_describes_its_arrays(state, path):
    save(path, state)
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["fulmen"])
    entries = {entry["path"]: entry for entry in header["leaves"]}
    assert (header["format"], header["version"], header["step"]) == (2, fm.__version__, 3)
    assert header["types"] == {"": "State", "system": "Tracked", "system.layer": "Linear"}
    assert entries["system.layer.weight"] == {
        "path": "system.layer.weight",
        "shape": [4, 3],
        "dtype": "float32",
        "role": "parameter",
        "sha256": hashlib.sha256(np.asarray(state.system.layer.weight).tobytes()).hexdigest(),
    }
    roles = {name: entry["role"] for name, entry in entries.items()}
    assert (roles["system.mean.value"], roles["system.scale"]) == ("buffer", "hyperparameter")
    assert (roles["key"], roles["step"]) == ("key", "step")
    assert {role for name, role in roles.items() if name.startswith("optimizer_state")} == {"optimizer state"}
    weight = safetensors.load_file(path)["system.layer.weight"]
    assert weight.tobytes() == np.asarray(state.system.layer.weight).tobytes()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: ready(pair()), [r"system: the file has Tracked, `like` has Pair", r"and \d+ more"]),
        (
            lambda: ready(tracked(classes=5)),
            [r"system.layer.weight: the file has float32\[4, 3\], `like` has float32\[4, 5\]"],
        ),
        (lambda: ready(optimizer=optax.sgd), [r"optimizer_state.0.0.mu.layer.weight: the file has .*, `like` has nothing"]),
        (
            lambda: jax.tree.map(lambda v: v.astype(jnp.float16) if v.ndim == 2 else v, ready()),
            [r"float32\[4, 3\], `like` has float16"],
        ),
    ],
)
def test_another_structure_gives_one_error_with_the_differences(state, path, other, said):
    save(path, state)
    with pytest.raises(ValueError, match="does not fit `like`") as raised:
        load(path, like=other())
    for text in said:
        assert raised.match(text)
    assert len(str(raised.value).splitlines()) <= 9


def test_the_same_arrays_in_another_component(path):
    class Other(fm.Model):
        layer: Linear

    save(path, fm.init(net(), jax.random.key(0)))
    with pytest.raises(ValueError, match="the root: the file has Net, `like` has Other"):
        load(path, like=fm.init(Other(Linear(4, 3)), jax.random.key(0)))


@pytest.mark.parametrize(
    ("saved", "like", "error", "words"),
    [
        (lambda s: s, lambda s: s.system, ValueError, "holds a State, and `like` is a Tracked: give a state, `fm.setup"),
        (lambda s: s.system, lambda s: s, ValueError, "holds a Tracked, and `like` is a State: .*`like=state.system`"),
        (
            lambda s: s.system.layer,
            lambda s: Linear(4, 3),
            ValueError,
            r"has weight, bias, which `like` does not.*fm.init\(component, key\)",
        ),
        (
            lambda s: s,
            lambda s: Tracked,
            TypeError,
            "like must be what was saved, got the class Tracked; write like=fm.setup",
        ),
        (lambda s: s, lambda s: None, TypeError, "like must be .*got NoneType; write like=fm.setup"),
    ],
    ids=["component", "state", "description", "class", "None"],
)
def test_a_wrong_like_is_refused_with_a_remedy(state, path, saved, like, error, words):
    save(path, saved(state))
    with pytest.raises(error, match=words) as raised:
        load(path, like=like(state))
    assert len(str(raised.value).splitlines()) == 1


def cut(content):
    return content[:-5]


def cut_in_the_header(content):
    return content[:200]


def shifted(content):
    return b"\x01" + content


@pytest.mark.parametrize(
    "damage", [cut, cut_in_the_header, shifted, lambda content: b"", lambda content: b"hello world" * 99]
)
def test_a_damaged_file(state, path, damage):
    save(path, state)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"run\.safetensors is damaged"):
        load(path, like=state)


def rewrite(path, change):
    """The same file with another description or other arrays, and the digests of these."""
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["fulmen"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    text = change(header, tensors)
    for entry in header["leaves"] if isinstance(header["leaves"], list) else ():
        if entry["path"] in tensors:
            entry["sha256"] = hashlib.sha256(tensors[entry["path"]].tobytes()).hexdigest()
    text = json.dumps(header) if text is None else text
    safetensors.save_file(tensors, path, metadata={"fulmen": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


CHANGES = {
    "no JSON": (lambda header, tensors: "{", "damaged: its description is not JSON"),
    "deep JSON": (lambda header, tensors: "[" * 100_000, "damaged"),
    "a list": (lambda header, tensors: "[]", "damaged: its description has no format"),
    "no leaves": (lambda header, tensors: header.update(leaves=3), "damaged"),
    "an odd leaf": (lambda header, tensors: header["leaves"].append({"path": 1}), "damaged"),
    "a later format": (lambda header, tensors: header.update(format=3, version="9.0"), "fulmen 9.0 in format 3.*upgrade"),
    "an array less": (lambda header, tensors: tensors.pop("step") and None, "its arrays are not those that it describes"),
    "another shape": (
        lambda header, tensors: tensors.update({"system.scale": np.zeros(7, np.float32)}),
        "system.scale holds",
    ),
    "another type": (lambda header, tensors: tensors.update({"key": np.zeros(2, np.float32)}), "key holds"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_contradicts_its_description(state, path, change):
    save(path, state)
    rewrite(path, CHANGES[change][0])
    with pytest.raises(ValueError, match=CHANGES[change][1]):
        load(path, like=state)


def test_files_of_other_programs_are_refused(state, path):
    safetensors.save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"not written by `fm\.save`"):
        load(path, like=state)
    path.write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(ValueError, match="damaged"):
        load(path, like=state)


def test_a_missing_file(state, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(path, like=state)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load(tmp_path, like=state)


def test_an_old_file_stays_until_the_new_one_is_complete(state, path, monkeypatch):
    save(path, state)
    content = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    for module, name in ((os, "write"), (os, "replace"), (os, "fsync")):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
            patched.setattr(module, name, lambda *args, **options: fail())
            save(path, ready(seed=4))
    assert path.read_bytes() == content and os.listdir(path.parent) == [path.name]


def test_the_file_has_the_usual_permissions(state, tmp_path):
    (tmp_path / "other").touch()
    save(tmp_path / "new" / "folder" / "run.safetensors", state)
    mode = (tmp_path / "new" / "folder" / "run.safetensors").stat().st_mode
    assert stat.S_IMODE(mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_missing_arrays_cannot_be_saved(path):
    with pytest.raises(ValueError, match=r"layer\.weight"):
        save(path, net())
    with pytest.raises(ValueError, match=r"layer\.weight is a ShapeDtypeStruct"):
        save(path, jax.eval_shape(fm.init, net(), jax.random.key(0)))
    assert not path.exists()


def test_without_safetensors(state, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (lambda: save(path, state), lambda: load(path, like=state)):
        with pytest.raises(ImportError, match=r'pip install "fulmen\[save\]"'):
            use()


def test_equal_paths_are_told_apart(path):
    class Alike(fm.Model):
        arrays: dict

    tree = Alike({"a": {"b": jnp.zeros(2)}, "a.b": jnp.ones(2)})
    save(path, tree)
    assert bits(load(path, like=tree)) == bits(tree)


def test_pickle_restores_states(state):
    assert bits(pickle.loads(pickle.dumps(state))) == bits(state)
    assert isinstance(pickle.loads(pickle.dumps(state.system)), Tracked)


def test_a_component_by_itself(path):
    model = fm.init(Net(Linear(4, 3)), jax.random.key(1))
    save(str(path), model)
    assert bits(load(str(path), like=fm.init(net(), jax.random.key(2)))) == bits(model)


@pytest.mark.parametrize("trained_first", [True, False], ids=["saved after fit", "saved after init"])
def test_numbers_and_arrays_of_hyperparameters_are_interchangeable(path, trained_first):
    system = fm.Classifier(fm.models.BatchNorm(4, momentum=0.9))
    drawn = fm.init(system, jax.random.key(0))
    trained = fm.setup(drawn, (X, Y), optimizer=optax.sgd, lr=0.1).system
    saved, like = (trained, drawn) if trained_first else (drawn, trained)
    save(path, saved)
    loaded = load(path, like=like)
    norm, expected = loaded.model, like.model
    assert type(norm.momentum) is type(expected.momentum)
    assert norm.momentum == expected.momentum and norm.epsilon == expected.epsilon
    assert getattr(norm.momentum, "weak_type", True)
    save(path, fm.replace(drawn, {"model.momentum": 1}))
    with pytest.raises(ValueError, match="momentum"):
        load(path, like=like)
