"""What is compiled for a structure lives as long as the structure, and equal structures share it."""

import gc
import pickle
import weakref
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny import Compilations, data, net

import fulmen as fm
from fulmen.core.state import without_plan
from fulmen.core.structure import RECENT, Structure, fast_compilation, pack, per_structure

X, Y = data(8)
KEY = jax.random.key(0)
MAPS = Path("/proc/self/maps")  # on Linux
PGD = fm.PGD(fm.LinfBall(0.1), step_size=0.05, steps=2)


def state_of(rate):
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd(rate), batch_size=8)


def scanned(state):
    return jax.lax.scan(lambda s, _: fm.train_step(s, (X, Y)), state, None, length=2)[0]


USES = {
    "setup": lambda state: None,
    "train_step": lambda state: fm.train_step(state, (X, Y)),
    "eval_step": lambda state: fm.eval_step(state, (X, Y)),
    "fit": lambda state: fm.fit(state, (X, Y), epochs=1, validation=(X, Y), progress=False),
    "evaluate": lambda state: fm.evaluate(state, (X, Y), attack=PGD),
    "evaluate a component": lambda state: fm.evaluate(state.system, (X, Y)),
    "predict": lambda state: fm.predict(state, X),
    "perturb": lambda state: fm.perturb(PGD, state, (X, Y), KEY),
}


def test_programs_are_dropped_with_the_last_state():
    def used(rate, use):
        """Weak references to the structure of a state that was used, and to its programs."""
        state = state_of(rate)
        use(state)
        both = state.structure, without_plan(state.structure)
        return [weakref.ref(s) for s in both], [
            weakref.ref(p) for s in both for p in s.programs.values() if hasattr(p, "trace")
        ]

    found = {}
    for i, (name, use) in enumerate(USES.items()):
        found[name] = structures, programs = used(0.3 + i / 100, use)
        assert programs and all(structure() is not None for structure in structures), name  # one of the most recent
    for other in range(8):
        RECENT.keep(pack((object(), other))[1])
    gc.collect()  # once for all uses: it takes seconds in a large process
    for name, (structures, programs) in found.items():
        assert not any(reference() for reference in (*structures, *programs)), name


def test_a_sweep_keeps_few_structures_and_no_maps(monkeypatch):
    def maps():
        return MAPS.read_text().count("\n")

    def sweep(rates):
        for rate in rates:
            fm.fit(state_of(rate), (X, Y), epochs=1, validation=(X, Y), progress=False)

    def structures():
        gc.collect()  # of the maps too
        return sum(type(s) is Structure for s in gc.get_objects())

    monkeypatch.setattr(RECENT, "_most", 2)
    sweep(np.linspace(0.1, 0.2, 3))
    known, before = structures(), maps() if MAPS.exists() else 0
    sweep(np.linspace(0.3, 0.4, 4))
    assert structures() <= known + 2  # others may be alive, for states of other tests
    if MAPS.exists():
        assert maps() < before + 90  # what a single fit takes


def test_a_state_keeps_what_was_compiled_for_it():
    state = state_of(0.25)
    component = fm.init(fm.Classifier(net()), KEY)

    def uses():
        for use in USES.values():
            use(state)
        fm.evaluate(component, (X, Y), attack=PGD)

    uses()
    for rate in range(10):
        state_of(20.0 + rate)
    with Compilations() as compiled:
        uses()
    assert compiled.names == []


def test_an_equal_system_shares_programs_after_the_state_is_gone():
    optimizer = optax.sgd(0.5)

    def run():
        state = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optimizer, batch_size=8)
        fm.evaluate(fm.fit(state, (X, Y), epochs=1, progress=False)[0], (X, Y), attack=PGD)

    run()
    gc.collect()
    with Compilations() as compiled:
        run()
    assert compiled.names == []


def test_a_step_that_reads_the_plan_is_compiled_for_each_plan():
    """The schedule of the learning rate reads the length of the run."""
    state = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=fm.cosine(0.1), steps=4, batch_size=8)
    longer = state.replace(plan=fm.Plan(total_steps=8))  # which no step was traced for
    for each in (state, longer):
        trained, logs = fm.train_step(fm.train_step(each, (X, Y))[0], (X, Y))
        expected = optax.cosine_decay_schedule(0.1, each.plan.total_steps)(1)
        np.testing.assert_allclose(logs["lr"], expected, rtol=1e-6)
        again = jax.jit(scanned)(each)
        np.testing.assert_allclose(jax.tree.leaves(again.system)[0], jax.tree.leaves(trained.system)[0], rtol=1e-6)


def test_a_state_goes_through_transformations():
    state = state_of(0.1)
    by_hand, _ = fm.train_step(fm.train_step(state, (X, Y))[0], (X, Y))
    for run in (scanned, jax.jit(scanned)):
        for a, b in zip(jax.tree.leaves(run(state)), jax.tree.leaves(by_hand), strict=True):
            assert np.allclose(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a, b)


# What is equal


class Scaled(fm.Model):
    """A static number."""

    k: int = fm.static()


NAN = float("nan")
SAME_BUT_FOR_EQ = [(2, 2.0), (1, True), (0, False), (0.0, -0.0), (2.0, 2 + 0j), ((1,), (1.0,)), ({"a": 1}, {"a": 1.0})]


@pytest.mark.parametrize("static", [True, False], ids=["in the structure", "a leaf"])
@pytest.mark.parametrize(("first", "second"), SAME_BUT_FOR_EQ, ids=str)
def test_numbers_that_compare_equal_are_told_apart(static, first, second):
    eqx = pytest.importorskip("equinox")
    Module = type(
        "Module", (eqx.Module,), {"__annotations__": {"k": object}} | ({"k": eqx.field(static=True)} if static else {})
    )
    for value in (first, second):
        leaves, structure = pack(Module(value))
        assert repr(structure.unpack(leaves).k) == repr(value)


@pytest.mark.parametrize("value", [2, 2.0, True, -0.0, NAN, "a", None, (1, NAN), np.float32(2)], ids=str)
def test_equal_static_values_share_a_structure(value):
    assert pack(Scaled(value))[1] is pack(Scaled(pickle.loads(pickle.dumps(value))))[1]


def test_a_layer_is_drawn_by_one_program_with_the_same_numbers_as_in_compiled_code():
    layer = fm.models.Dense(17, 13)  # sizes that no other test has
    with Compilations() as compiled:
        drawn = fm.init(layer, KEY)
    assert compiled.names == ["jit(_drawn)"]
    inside = jax.jit(lambda key: fm.init(layer, key).weight)(KEY)
    np.testing.assert_array_equal(drawn.weight, inside)
    assert jax.eval_shape(lambda: fm.init(layer, KEY)).weight.shape == (17, 13)


def test_programs_that_run_seldom_are_compiled_with_fewer_optimisations(monkeypatch):
    """Unless XLA_FLAGS says how much to optimise, as in these tests."""
    assert fast_compilation() is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    options = fast_compilation()
    assert options == ({"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None)
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, "jit", lambda run, compiler_options: given.append(compiler_options) or jit(run))
    for seldom in (True, False):
        run = per_structure(seldom=seldom)(lambda structure, x: x + 1)
        assert run.of(pack(object())[1])(1.0) == 2.0
    assert given == [options, None]
