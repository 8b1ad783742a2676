"""Equinox and Flax modules in the place of models, without wrapping."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forked import run_code

import fulmen as fm
from fulmen import dispatch, forward

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")
linen = pytest.importorskip("flax.linen")

from fulmen.interop.equinox import with_state  # noqa: E402


class EquinoxNet(eqx.Module):
    """With state, dropout, and a function among its leaves."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    activation: object

    def __init__(self, seed=0):
        one, two = jax.random.split(jax.random.key(seed))
        self.hidden, self.out = eqx.nn.Linear(4, 8, key=one), eqx.nn.Linear(8, 3, key=two)
        self.norm, self.drop = eqx.nn.BatchNorm(8, "batch", mode="batch"), eqx.nn.Dropout(0.5)
        self.activation = jax.nn.relu

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.drop(self.activation(x), key=key)), state


class FlaxNet(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.hidden, self.out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(jax.nn.relu(self.norm(self.hidden(x)))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(linen.relu(x)))


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    """Equinox's BatchNorm mixes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.random((n, 4), np.float32), rng.integers(0, 3, n).astype(np.int32)


X, Y = data()


def drawn(key, x):
    return {"w": jax.random.normal(key, (x.shape[1], 3))}, {"mean": jnp.zeros(3)}


def applied(parameters, state, rng, x, is_training):
    z = x @ parameters["w"]
    if is_training:
        z = z * jax.random.bernoulli(rng, 0.5, z.shape).astype(z.dtype)
    return z - state["mean"][None], {"mean": 0.9 * state["mean"] + 0.1 * z.mean(0)}


MODELS = {
    "equinox": EquinoxNet,
    "nnx": FlaxNet,
    "linen": lambda: fm.Linen(LinenNet(), X[:1]),
    "functional": lambda: fm.functional(drawn, applied, X[:1]),
}
WITHOUT_WRAPPING = ["equinox", "nnx"]

every = pytest.mark.parametrize("name", MODELS)
each = pytest.mark.parametrize("name", WITHOUT_WRAPPING)


@pytest.fixture(scope="module")
def states():
    """States after a few steps, and before: of `fit`, or the steps that `check_component` takes too."""
    found = {}
    for name, make in MODELS.items():
        before = after = fm.setup(fm.Classifier(make()), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=24)
        if name in ("equinox", "functional"):  # a page of the documentation fits the others
            after, _ = fm.fit(before, (X, Y), epochs=2, batch_size=8, progress=False)
        else:
            for _ in range(3):
                after, _ = fm.train_step(after, (X, Y))
        found[name] = before, after
    return found


def by_role(component, role):
    return {leaf.path: np.asarray(leaf.value) for leaf in fm.leaves(component) if leaf.role == role}


def equal(a, b):
    return a.keys() == b.keys() and all((a[path] == b[path]).all() for path in a)


@every
def test_training_moves_parameters_and_statistics(states, name):
    before, after = (state.system for state in states[name])
    for role in ("parameter", "buffer"):
        old, new = by_role(before, role), by_role(after, role)
        assert old and old.keys() == new.keys()
        assert all((old[path] != new[path]).any() for path in old)
    assert type(after.model) is type(before.model) is type(MODELS[name]())
    assert np.isfinite(fm.evaluate(states[name][1], (X, Y))["loss"])
    assert fm.predict(states[name][1], X).shape == (24, 3)


@every
def test_dropout_by_the_key_and_off_in_evaluation(states, name):
    system = states[name][1].system
    calls = [forward(system, X, mode) for mode in (fm.Train(jax.random.key(1)), fm.Train(jax.random.key(2)))]
    assert (calls[0] == forward(system, X, fm.Train(jax.random.key(1)))).all()
    assert (calls[0] != calls[1]).any()
    assert (forward(system, X, fm.Eval(jax.random.key(1))) == forward(system, X)).all()


@every
def test_attacks_leave_statistics_alone(states, name):
    state = states[name][1]
    attack, before = fm.FGSM(fm.LinfBall(0.1)), by_role(state.system, "buffer")
    batch = fm.Labeled(X, Y)
    attacked = fm.perturb(attack, state, batch, jax.random.key(0))
    assert 0.09 < np.abs(np.asarray(attacked.x) - X).max() <= 0.1 + 1e-6
    assert equal(by_role(state.system, "buffer"), before)
    # A step of adversarial training moves them by the attacked examples alone, as a plain step on these does.
    start = fm.Adversarial(state.system, attack)
    mode = fm.Train(jax.random.key(0))

    @jax.jit
    def statistics():
        inside = fm.augment(start, batch, mode)
        moved = fm.differentiate(start, inside, mode)[2].system
        plain = fm.differentiate(state.system, inside.batch, fm.Train(jax.random.key(3)))[2]
        return [{leaf.path: leaf.value for leaf in fm.leaves(c) if leaf.role == "buffer"} for c in (moved, plain)]

    moved, plain = statistics()
    assert moved.keys() == plain.keys() == before.keys()
    if name != "functional":  # whose statistics are of what is dropped out
        for path, value in plain.items():
            np.testing.assert_allclose(moved[path], value, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:fm.check")
def test_component_passes_all_checks(name):
    fm.testing.check_component(fm.Classifier(MODELS[name]()), (X, Y))


def test_roles():
    roles = {leaf.path: leaf.role for leaf in fm.leaves(EquinoxNet())}
    assert roles["hidden.weight"] == "parameter"
    assert roles["norm.batch_state_index.init.0"] == roles["norm.batch_counter.init"] == "buffer"
    assert roles["activation"] == roles["drop.p"] == roles["drop.inference"] == "static"
    roles = {leaf.path: leaf.role for leaf in fm.leaves(fm.Classifier(FlaxNet()))}
    assert roles["model.hidden.kernel.value"] == "parameter"
    assert roles["model.norm.mean.value"] == "buffer"
    assert roles["model.drop.rngs.key.value"] == "hyperparameter"
    assert fm.count_parameters(EquinoxNet()) == fm.count_parameters(FlaxNet()) == 4 * 8 + 8 + 16 + 8 * 3 + 3
    rows = {row.path: row for row in fm.summary(fm.Classifier(EquinoxNet())).rows}
    assert (rows["model.drop.p"].role, rows["model.drop.p"].value) == ("static", 0.5)
    assert rows["model.hidden.weight"].type == "EquinoxNet"


@each
def test_equal_systems_share_compiled_code(name):
    first, second = (fm.setup(fm.Classifier(MODELS[name]()), (X, Y), optimizer=optax.sgd, lr=0.1) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)


@every
def test_saving(states, name, tmp_path):
    start, state = states[name]
    fm.save(tmp_path / "state.safetensors", state)
    loaded = fm.load(tmp_path / "state.safetensors", like=start)
    assert equal(by_role(loaded.system, "buffer"), by_role(state.system, "buffer"))
    assert equal(by_role(loaded.system, "parameter"), by_role(state.system, "parameter"))


# As parts


class Headed(fm.Model):
    backbone: eqx.Module
    head: fm.models.Dense


@dispatch
def forward(net: Headed, x):
    return net.head(forward(net.backbone, x))


class Own(fm.Model):
    backbone: eqx.nn.Sequential


@dispatch
def forward(net: Own, x):
    return jax.vmap(lambda x: net.backbone(x, key=jax.random.key(0)))(x)  # the library's own call


def test_a_field_of_a_model():
    net = fm.init(Headed(EquinoxNet(), fm.models.Dense(3, 2)), jax.random.key(0))
    assert net(X).shape == (24, 2)
    rate = eqx.nn.Sequential([eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=jax.random.key(0))])
    noisy = [forward(Own(rate), X, mode) for mode in (fm.Train(jax.random.key(0)), fm.Eval())]
    assert (noisy[0] != noisy[1]).any()  # the mode has reached the library's own call too
    np.testing.assert_allclose(noisy[1], jax.vmap(rate.layers[1])(X), rtol=1e-6)
    assert fm.bind(Own(rate), fm.Eval()).backbone.layers[0].inference
    compiled = jax.jit(lambda bound, x: jax.checkpoint(forward)(bound.backbone, x))  # what is bound is data
    np.testing.assert_allclose(compiled(fm.bind(Own(rate), fm.Eval()), X), noisy[1], rtol=1e-6)


class Judged(eqx.Module):
    layer: eqx.nn.Linear

    def __init__(self, seed=0):
        self.layer = eqx.nn.Linear(4, 3, key=jax.random.key(seed))

    def __call__(self, x):
        return self.layer(x)


@dispatch
def loss(net: Judged, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(forward(net, batch.x), batch.y)


class Scaled(nnx.Module):
    def __init__(self):
        self.weight, self.calls = nnx.Param(jnp.ones((4, 3))), nnx.BatchStat(jnp.zeros((), jnp.int32))

    def logits(self, x, factor):
        self.calls.set_value(self.calls.get_value() + 1)
        return factor * (x @ self.weight.get_value())


@dispatch
def forward(net: Scaled, x, mode: fm.Train):
    return net.logits(x, 2.0)


@dispatch
def forward(net: Scaled, x):
    return net.logits(x, 1.0)


@dispatch
def loss(net: Scaled, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(forward(net, batch.x), batch.y)


class Pair(fm.System):
    one: Judged
    two: Scaled


def test_modules_with_a_loss():
    state, history = fm.fit(Judged(), (X, Y), optimizer=optax.sgd, lr=0.1, epochs=2, batch_size=24, progress=False)
    assert history["loss"][1] < history["loss"][0] and isinstance(state.system, Judged)
    assert set(fm.evaluate(state.system, (X, Y))) == {"loss"}
    pair = fm.setup(Pair(Judged(), Scaled()), (X, Y), optimizer={"one": optax.sgd(0.1), "two": fm.frozen})
    stepped, _ = fm.train_step(pair, (X, Y))
    assert set(fm.losses(stepped, (X, Y))) == {"one", "two"}
    before, after = (by_role(s.system, "parameter") for s in (pair, stepped))
    assert [(before[path] != after[path]).any() for path in before] == [True, True, False]
    # A method of the user's own has the mode, and the module as the library has it.
    z = [forward(Scaled(), X, mode) for mode in (fm.Train(jax.random.key(0)), fm.Eval())]
    np.testing.assert_allclose(z[0], 2 * z[1], rtol=1e-6)
    with pytest.raises(fm.MissingMethodError, match=r"def loss\(equinoxnet: EquinoxNet, batch: fm.Labeled\)"):
        fm.loss(EquinoxNet(), fm.Labeled(X, Y))


@each
def test_frozen(name):
    system = fm.Classifier(fm.models.Chain(fm.Frozen(MODELS[name]()), fm.models.Dense(3, 3)))
    state = fm.setup(system, (X, Y), optimizer=optax.sgd, lr=0.1)
    stepped, _ = fm.train_step(state, (X, Y))
    assert {leaf.role for leaf in fm.leaves(state.system.model.layers[0])} >= {"frozen"}
    assert not by_role(state.system.model.layers[0], "parameter") and not by_role(state.system, "buffer")
    assert equal(by_role(state.system, "frozen"), by_role(stepped.system, "frozen"))


# Each library's own


def test_equinox_state_inside_a_module_and_as_a_pair():
    model, state = eqx.nn.make_with_state(EquinoxNet)()
    with pytest.raises(ValueError, match=r"must have its state inside.*with_state\(model, state\)"):
        forward(model, X)
    net = with_state(model, state)
    assert jnp.array_equal(forward(net, X), forward(EquinoxNet(), X))
    trained = fm.train_step(fm.setup(fm.Classifier(net), (X, Y), optimizer=optax.sgd, lr=0.1), (X, Y))[0].system.model
    model, state = eqx.nn.make_with_state(lambda: trained)()  # and back, to be used without Fulmen
    inference = eqx.nn.inference_mode(model)
    z, _ = jax.vmap(lambda x: inference(x, state, key=None), axis_name="batch")(jnp.asarray(X))
    np.testing.assert_allclose(z, forward(trained, X), rtol=1e-5, atol=1e-6)


class Axes(eqx.Module):
    layers: list

    def __init__(self):
        self.layers = [eqx.nn.BatchNorm(4, name, mode="batch") for name in ("one", "two")]

    def __call__(self, x, state):
        return x, state


class Mute(eqx.Module):
    weight: jax.Array


def test_equinox_modules_that_cannot_be_called():
    with pytest.raises(ValueError, match=r"several batch axes, 'one', 'two'"):
        forward(Axes(), X)
    with pytest.raises(TypeError, match=r"Mute has no __call__: write forward\(module: Mute, x\)"):
        forward(Mute(jnp.ones(3)), X)
    with pytest.raises(ValueError, match=r"the inputs of \w+ must have a batch axis"):
        forward(EquinoxNet(), np.float32(1.0))


def test_nnx_modules_are_not_changed():
    net = FlaxNet()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngState))))
    state, _ = fm.train_step(fm.setup(fm.Classifier(net), (X, Y), optimizer=optax.sgd, lr=0.1), (X, Y))
    forward(net, X, fm.Train(jax.random.key(0)))
    after = nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngState)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))
    nnx.update(net, nnx.state(state.system.model))  # as one would take the result over
    net.eval()
    np.testing.assert_allclose(net(jnp.asarray(X)), forward(state.system, X), rtol=1e-6)


class Tied(nnx.Module):
    def __init__(self):
        self.one = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.two = self.one


class Two(fm.System):
    one: Judged
    two: Judged


def test_shared_modules():
    net = Judged()
    with pytest.raises(ValueError, match=r"the same Judged is at 'one' and at 'two'"):
        fm.setup(Two(net, net), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(ValueError, match=r"the same array is at 'model.one.bias.value' and at 'model.two.bias.value'"):
        fm.setup(fm.Classifier(Tied()), (X, Y), optimizer=optax.sgd, lr=0.1)


def test_members_of_a_population():
    """A module is drawn when it is made: members of one are copies, which is said, and those of several are what they are."""
    makers = [lambda i: eqx.nn.Linear(4, 3, key=jax.random.key(i)), lambda i: nnx.Linear(4, 3, rngs=nnx.Rngs(i))]
    options = dict(optimizer=optax.sgd, lr=0.1)
    for make in makers:
        with pytest.raises(
            TypeError,
            match=r"members must be systems, got .* as member 0\. Write fm.Population\(fm.Classifier\(module\), 3\)",
        ):
            fm.Population(make(0), 3)
        with pytest.warns(UserWarning, match="its 2 members start with the same arrays"):
            fm.setup(fm.Population(fm.Classifier(make(0)), 2), (X, Y), **options)
        state = fm.setup(fm.Population([fm.Classifier(make(i)) for i in range(2)]), (X, Y), **options)
        for i, member in enumerate(fm.members(state)):
            assert equal(by_role(member.system.model, "parameter"), by_role(make(i), "parameter"))


class WithSet(eqx.Module):
    sizes: set


class NoTree(nnx.Module, pytree=False):
    pass


def test_modules_that_jit_does_not_accept():
    with pytest.raises(TypeError, match=r"model.sizes is static and must be hashable, got a set. Give a tuple"):
        fm.setup(fm.Classifier(WithSet({1})), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(TypeError, match=r"NoTree at 'model' must be a pytree.*pytree=False"):
        fm.setup(fm.Classifier(NoTree()), (X, Y), optimizer=optax.sgd, lr=0.1)


def test_given_linen_variables():
    module = LinenNet()
    variables = module.init(jax.random.key(5), jnp.asarray(X), train=False)
    model = fm.init(fm.Linen(module, variables=variables), jax.random.key(0))
    expected = module.apply(variables, jnp.asarray(X), train=False)
    np.testing.assert_array_equal(forward(model, jnp.asarray(X)), expected)
    assert jax.tree.structure(model.variables) == jax.tree.structure(dict(variables))
    with pytest.raises(ValueError, match=r"fm.Linen\(module, x\[:1\]\)"):
        fm.setup(fm.Classifier(fm.Linen(module)), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(TypeError, match=r"Linen.module must be a module of flax.linen"):
        fm.validate(fm.Linen(jnp.tanh, X[:1]))


def test_functional_pairs():
    given = []

    def apply(parameters, x, /, *, key, deterministic):
        given.append((key is None, deterministic))
        return x @ parameters

    model = fm.init(fm.functional(lambda key: jax.random.normal(key, (4, 3)), apply), jax.random.key(0))
    forward(model, X, fm.Train(jax.random.key(0)))
    forward(model, X)
    assert given == [(False, False), (False, True)]  # a key without a default is there in an evaluation too
    assert [leaf.role for leaf in fm.leaves(model)] == ["parameter"]
    kept = fm.init(fm.functional(lambda key: 1 / 0, apply, parameters=jnp.ones((4, 3))), jax.random.key(0))
    assert kept.parameters.shape == (4, 3)
    with pytest.raises(TypeError, match=r"init must return \(parameters, state\)"):
        fm.init(fm.functional(lambda key, x: jnp.ones(3), applied, X[:1]), jax.random.key(0))
    with pytest.raises(TypeError, match=r"Functional.apply must be a function, got 3"):
        fm.validate(fm.functional(lambda key: key, 3))


def test_record_on_a_tree_of_outputs():
    class Counted(fm.Model):
        count: fm.Buffer

    @dispatch
    def loss(model: Counted, batch: fm.Unlabeled):
        outputs = fm.record({"used": batch.x.sum(), "unused": batch.x, "label": jnp.arange(3)}, model.count, 5.0)
        return outputs["used"]

    moved = fm.differentiate(Counted(fm.Buffer(jnp.zeros(()))), fm.Unlabeled(jnp.asarray(X)), fm.Train(jax.random.key(0)))[2]
    assert float(moved.count.value) == 5.0


def test_players_of_a_game(states):
    """What a game draws from and asks are the modules in its mode: of a batch, with statistics that move."""

    class Batched(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.out = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, z):
            return self.out(self.norm(z))

    gan = fm.GAN(Batched(nnx.Rngs(0)), eqx.nn.Linear(4, 1, key=jax.random.key(1)), latent=4)
    state = fm.setup(gan, X, optimizer=optax.sgd, lr=0.1, batch_size=8)
    after, _ = fm.train_step(state, X[:8])
    for path in ("generator.norm.mean", "generator.out.kernel", "critic.weight"):
        old, new = (
            {leaf.path.removesuffix(".value"): leaf.value for leaf in fm.leaves(s.system)}[path] for s in (state, after)
        )
        assert (old != new).any(), path
    assert fm.sample(after, jax.random.key(0), (5, 4)).shape == (5, 4)


# What is not there


def test_importing_fulmen_imports_no_foreign_library(tmp_path):
    names = ("equinox", "flax", "haiku", "torch", "keras", "fulmen.interop.equinox", "fulmen.interop.nnx")
    code = f"import sys, fulmen; print([name for name in {names} if name in sys.modules])"
    assert run_code(code, tmp_path).strip() == "[]"


@pytest.mark.parametrize("library, package", [("equinox", "equinox"), ("nnx", "flax")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"fulmen.interop.{library}", raising=False)
    with pytest.raises(ImportError, match=rf'need the package {package}: pip install "fulmen\[{package}\]"'):
        __import__(f"fulmen.interop.{library}")


def test_modules_of_known_libraries_get_advice():
    with pytest.raises(TypeError, match=r"model must be a Component, got LinenNet.*fm.Linen\(module, x\[:1\]\)"):
        fm.setup(fm.Classifier(LinenNet()), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(TypeError, match=r"a component must be given, got LinenNet.*fm.Linen"):
        fm.setup(LinenNet(), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(fm.MissingMethodError, match=r"fm.Linen\(module, x\[:1\]\)"):
        forward(LinenNet(), X)
    torch = type("Module", (), {"__module__": "torch.nn.modules.module"})
    net = type("Net", (torch,), {})()
    with pytest.raises(TypeError, match=r"A PyTorch module holds no JAX arrays"):
        fm.setup(fm.Classifier(net), (X, Y), optimizer=optax.sgd, lr=0.1)
