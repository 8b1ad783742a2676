"""States and components are copied and pickled, here and into another process."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forked import run_code
from tiny import data

import fulmen as fm
from fulmen import dispatch

X, Y = data(8)
fast_relu = jax.jit(jax.nn.relu)  # by its own name it is jax.nn.relu


class Activated(fm.Model):
    """Dense with a function after it."""

    layer: fm.models.Dense
    function: object = fm.static()


@dispatch
def forward(model: Activated, x):
    return model.function(model.layer(x))


FUNCTIONS = {
    "a custom derivative": jax.nn.relu,
    "jitted": jax.nn.silu,
    "plain": jax.nn.gelu,
    "a ufunc": jnp.tanh,
    "jitted again": fast_relu,
}


def equinox_model():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    return eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=key), eqx.nn.Lambda(jax.nn.relu), eqx.nn.LayerNorm(3)])


MODELS = {name: lambda f=f: Activated(fm.models.Dense(4, 3), f) for name, f in FUNCTIONS.items()}
MODELS |= {
    "a chain": lambda: fm.models.Chain(fm.models.Dense(4, 8), jax.nn.relu, fm.models.Dense(8, 3)),
    "equinox": equinox_model,
}


def by(module):
    library = pytest.importorskip(module)
    return lambda value: library.loads(library.dumps(value))


WAYS = {
    "copy": lambda: copy.copy,
    "deepcopy": lambda: copy.deepcopy,
    "pickle": lambda: by("pickle"),
    "cloudpickle": lambda: by("cloudpickle"),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def state(request):
    component = fm.init(fm.Classifier(request.param()), jax.random.key(0))
    return fm.setup(component, (X, Y), optimizer=optax.adam, lr=1e-2, batch_size=8)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copied_state_trains_on_with_the_same_programs(state, way):
    copied = way()(state)
    assert copied is not state and copied.structure is state.structure
    expected, logs = fm.train_step(state, (X, Y))
    found, found_logs = fm.train_step(copied, (X, Y))
    assert float(found_logs["loss"]) == float(logs["loss"])
    for a, b in zip(found.arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copied_component_computes_the_same(state, way):
    copied = way()(state.system)
    np.testing.assert_array_equal(fm.predict(copied, X), fm.predict(state.system, X))


ANOTHER_PROCESS = """
import pickle, sys
import fulmen as fm
from tiny import data

state = pickle.load(open(sys.argv[1], "rb"))
state, logs = fm.train_step(state, data(8))
print(float(logs["loss"]), int(state.step), state.system.model.function.__name__)
"""


def test_another_process_reads_a_state(tmp_path):
    state = fm.setup(fm.Classifier(MODELS["jitted again"]()), (X, Y), optimizer=optax.adam, lr=1e-2, batch_size=8)
    path = tmp_path / "state.pickle"
    path.write_bytes(pickle.dumps(state))
    loss, step, name = run_code(ANOTHER_PROCESS, tmp_path, path).split()
    assert float(loss) == pytest.approx(float(fm.train_step(state, (X, Y))[1]["loss"]), rel=1e-6)
    assert (step, name) == ("1", "relu")
