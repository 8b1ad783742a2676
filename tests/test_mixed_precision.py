"""`MixedPrecision`: half precision inside models only; `LossScaled`: float16 with a dynamic loss scale."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, data, net

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, Chain, Dense, LayerNorm
from fulmen.systems import LossScaled

X, Y = data(24)
HALF = [jnp.bfloat16, jnp.float16]
ATTACK = fm.FGSM(fm.LinfBall(0.1))


def drawn(system):
    """The system with its arrays, which do not depend on what it is wrapped in."""
    return fm.init(system, jax.random.key(0))


def classifier(*more, **options):
    return drawn(fm.Classifier(Chain(Dense(4, 8), BatchNorm(8), *more, Dense(8, 3)), **options))


PERCEPTRON = fm.Classifier(Chain(Dense(4, 8), jax.nn.relu, Dense(8, 3)))


def equations(jaxpr):
    """All equations of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def step_equations(system, raw, **options):
    state = fm.setup(system, raw, optimizer=optax.adam, lr=1e-2, **options)
    return list(equations(jax.make_jaxpr(fm.train_step)(state, raw).jaxpr))


def types(found, *names):
    return {str(v.aval.dtype) for e in found if e.primitive.name in names for v in (*e.invars, *e.outvars)}


def text(n=48, length=9, vocabulary=24):
    rng = np.random.default_rng(0)
    start, stride = rng.integers(0, vocabulary, (n, 1)), rng.integers(1, 4, (n, 1))
    return ((start + stride * np.arange(length)) % vocabulary).astype(np.int32)


@functools.cache
def gpt():
    return drawn(fm.LanguageModel(fm.models.Transformer(24, 8, features=32, heads=2, layers=2)))


@functools.cache
def gpt_equations(unroll):
    return step_equations(fm.MixedPrecision(fm.replace(gpt(), {"model.blocks.unroll": unroll})), text())


def test_logits_are_computed_in_half_precision_and_the_cross_entropy_in_float32():
    found = gpt_equations(False)
    wide = [e for e in found if any(getattr(v.aval, "shape", ())[-1:] == (24,) for v in e.outvars)]
    assert types(wide, "dot_general") == {"bfloat16"}
    assert types(wide, "exp", "log", "reduce_max", "reduce_sum") == {"float32"}


def curve(system, epochs=12, **options):
    state, history = fm.fit(
        system, text(), batch_size=16, epochs=epochs, optimizer=optax.adam, lr=3e-3, progress=False, **options
    )
    return state, history["loss"]


@functools.cache
def exact_curve():
    return curve(gpt())[1]


def test_a_gpt_learns_as_in_float32():
    exact, (state, found) = exact_curve(), curve(fm.MixedPrecision(gpt()))
    assert exact[-1] < 0.5 * exact[0]  # 36 steps that learn
    assert np.abs(found / exact - 1).max() < 0.01, found / exact
    assert {leaf.value.dtype for leaf in fm.leaves(state.system) if leaf.role == "parameter"} == {np.dtype("float32")}
    assert {v.dtype for v in jax.tree.leaves(state.optimizer_state)} == {np.dtype("float32"), np.dtype("int32")}


@pytest.mark.parametrize("unroll", [False, True])
def test_the_products_of_a_step_are_in_half_precision(unroll):
    found = gpt_equations(unroll)
    assert types([e for e in found if e.primitive.name == "dot_general"], "dot_general") <= {"bfloat16", "float32"}
    products = [e for e in found if e.primitive.name == "dot_general"]
    assert len(products) >= 10
    assert {str(v.aval.dtype) for e in products for v in e.invars} == {"bfloat16"}
    if not unroll:
        assert types(step_equations(gpt(), text()), "dot_general") == {"float32"}


def test_losses_and_statistics_are_in_float32():
    system = classifier(jax.nn.relu, LayerNorm(8), objective=fm.CrossEntropy() + 1e-3 * fm.L2())
    found = step_equations(fm.MixedPrecision(system), (X, Y))
    assert types(found, "log", "exp", "rsqrt", "integer_pow", "square", "sqrt") == {"float32"}
    assert "bfloat16" in types(found, "dot_general")


def test_a_custom_loss_sees_float32_outputs_and_the_model_half_precision():
    seen = {}

    class Own(fm.Model):
        layer: Dense
        shift: fm.Parameter

    @dispatch
    def forward(own: Own, x):
        y = own.layer(x) + own.shift.value[None]
        seen["inside"] = x.dtype, own.layer.weight.dtype, own.shift.value.dtype, y.dtype
        return y

    @dispatch
    def loss(own: Own, batch):
        y = own(batch.x)
        seen["loss"] = batch.x.dtype, own.layer.weight.dtype, own.shift.value.dtype, y.dtype
        return (y - batch.y) ** 2 @ jnp.ones(3)

    system = fm.MixedPrecision(Own(Dense(4, 3), fm.Parameter(jnp.zeros(3))))
    state = fm.setup(system, (X, np.ones((24, 3), np.float32)), optimizer=optax.sgd, lr=0.1)
    assert seen == {"inside": (jnp.bfloat16,) * 4, "loss": (jnp.float32,) * 4}
    state, _ = fm.train_step(state, (X, np.ones((24, 3), np.float32)))
    assert (np.asarray(state.system.system.shift.value) != 0).all()


@pytest.mark.parametrize("name", ["inside", "outside", "population", "ema", "frozen", "foreign", "sam"])
def test_it_composes_with_other_systems(name):
    """The type does not depend on what is around or inside, so each case takes one of the two."""
    compute = HALF[name in ("outside", "ema", "foreign")]
    half = fm.MixedPrecision(PERCEPTRON, compute)
    foreign = eqx.nn.Sequential([eqx.nn.Linear(4, 8, key=jax.random.key(0)), eqx.nn.Linear(8, 3, key=jax.random.key(1))])
    system = {
        "inside": lambda: fm.Adversarial(half, ATTACK),
        "outside": lambda: fm.MixedPrecision(fm.Adversarial(PERCEPTRON, ATTACK), compute),
        "population": lambda: fm.Population(half, 2),
        "ema": lambda: fm.MixedPrecision(fm.EMA(classifier(), 0.9), compute),
        "frozen": lambda: fm.MixedPrecision(fm.Classifier(Chain(fm.Frozen(Dense(4, 8)), Dense(8, 3))), compute),
        "foreign": lambda: fm.MixedPrecision(fm.Classifier(foreign), compute),
        "sam": lambda: fm.defences.SAM(half),
    }[name]()
    if name in ("foreign", "frozen"):
        products = [e for e in step_equations(system, (X, Y), batch_size=8) if e.primitive.name == "dot_general"]
        assert {str(v.aval.dtype) for e in products for v in e.invars} == {jnp.dtype(compute).name}
    state, history = fm.fit(system, (X, Y), batch_size=8, epochs=2, optimizer=optax.sgd, lr=1e-2, progress=False)
    assert np.isfinite(history["loss"]).all()
    assert jax.eval_shape(fm.forward, state, X).dtype == np.float32
    assert np.isfinite(fm.evaluate(state, (X, Y))["loss"])


def test_other_kinds_of_systems_take_it():
    """Of the other kinds see the tests of microbatches."""
    for name in ("regressor", "pair", "weighted", "actor_critic"):
        system, raw = fm.testing.systems()[name]
        options = {"batch_size": 10, "steps": 2, "optimizer": optax.sgd, "lr": 1e-2, "progress": False}
        _, history = fm.fit(fm.MixedPrecision(system), raw, **options)
        assert np.isfinite(history["loss"]).all(), name


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_buffers_of_modules_of_other_libraries_remain_in_float32(library):
    nnx, linen = pytest.importorskip("flax.nnx"), pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            return linen.Dense(3)(linen.BatchNorm(use_running_average=not train)(x))

    if library == "linen":
        module = fm.Linen(Net(), X[:1])
    else:
        rngs = nnx.Rngs(0)
        module = nnx.Sequential(nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs))
    options = {"batch_size": 8, "epochs": 4, "optimizer": optax.adam, "lr": 1e-2, "progress": False}
    with jax.numpy_dtype_promotion("standard"):  # which Flax needs
        state, history = fm.fit(fm.MixedPrecision(fm.Classifier(module)), (X, Y), **options)
    found = [leaf for leaf in fm.leaves(state.system) if leaf.role in ("parameter", "buffer")]
    assert {leaf.value.dtype for leaf in found} == {np.dtype("float32")}
    moved = [np.asarray(leaf.value) for leaf in found if leaf.role == "buffer" and "mean" in leaf.path]
    assert len(moved) == 1 and (moved[0] != 0).all() and history["loss"][-1] < history["loss"][0]


def test_the_buffers_of_a_batch_norm_are_those_of_float32():
    raw = (X, Y)
    states = [fm.setup(s, raw, optimizer=optax.sgd, lr=0.0) for s in (classifier(), fm.MixedPrecision(classifier()))]
    exact, half = (fm.train_step(state, raw)[0].system for state in states)
    exact, half = exact.model.layers[1], half.system.model.layers[1]
    assert half.mean.value.dtype == half.variance.value.dtype == jnp.float32
    np.testing.assert_allclose(half.mean.value, exact.mean.value, atol=2e-3)
    np.testing.assert_allclose(half.variance.value, exact.variance.value, rtol=1e-2)
    assert (half.mean.value.astype(jnp.bfloat16).astype(jnp.float32) != half.mean.value).any()


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"MixedPrecision.compute must be jnp.bfloat16 or jnp.float16, got .*float32"):
        fm.setup(fm.MixedPrecision(classifier(), jnp.float32), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(TypeError, match=r"write fm.Population\(MixedPrecision\(system\), 2\)"):
        fm.setup(fm.MixedPrecision(fm.Population(classifier(), 2)), (X, Y), optimizer=optax.sgd, lr=0.1)
    with pytest.raises(ValueError, match="LossScaled defines its own training step and must be the outermost"):
        fm.setup(fm.EMA(LossScaled(fm.MixedPrecision(classifier(), jnp.float16))), (X, Y), optimizer=optax.sgd, lr=0.1)


# float16


def half(system, **options):
    return LossScaled(fm.MixedPrecision(system, jnp.float16), **options)


def test_the_loss_scale_prevents_underflow_and_is_not_seen_elsewhere():
    tiny = drawn(fm.Classifier(Dense(4, 3), 1e-7 * fm.CrossEntropy()))  # float16 rounds below 6e-8 to 0
    gradients = {}
    for name, system in {"exact": tiny, "half": fm.MixedPrecision(tiny, jnp.float16), "scaled": half(tiny)}.items():
        state = fm.setup(system, (X, Y), optimizer=optax.sgd, lr=1.0)
        value, found, _, logs = jax.jit(fm.differentiate)(state.system, fm.Labeled(X, Y), fm.Train(jax.random.key(0)))
        weights = [v for v in jax.tree.leaves(found) if v.ndim == 2]
        gradients[name] = np.asarray(weights[0])
        np.testing.assert_allclose(value, logs["loss"].compute(), rtol=1e-6)
        np.testing.assert_allclose(value, jax.jit(fm.loss)(state, (X, Y)), rtol=1e-5)
    np.testing.assert_allclose(gradients["scaled"], gradients["exact"], rtol=2e-2, atol=1e-10)
    assert np.abs(gradients["half"] - gradients["exact"]).max() > 0.1 * np.abs(gradients["exact"]).max()


def test_a_gpt_learns_in_float16():
    exact, (state, found) = exact_curve(), curve(half(gpt()))
    assert np.abs(found / exact - 1).max() < 0.01, found / exact
    assert float(state.system.scale) == 2**15 and float(state.system.good.value) == 36


@pytest.mark.parametrize("microbatches", [1, 3])
def test_a_step_without_finite_gradients_changes_only_the_scale(microbatches):
    system = half(classifier(), scale=2.0**30, period=4)
    state = fm.setup(system, (X, Y), optimizer=optax.adam, lr=1e-2, microbatches=microbatches)
    before, scales, moved = state, [], []
    for _ in range(25):
        state, logs = fm.train_step(state, (X, Y))
        scales.append(float(logs["loss_scale"]))
        one, other = (s.replace(system=s.system.system) for s in (before, state))
        moved.append(any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(one.arrays, other.arrays, strict=True)))
        before = state
    skipped = moved.index(True)
    assert 5 < skipped < 20 and not any(moved[:skipped])
    assert scales[: skipped + 1] == [2.0 ** (30 - i) for i in range(skipped + 1)]
    assert scales[skipped : skipped + 5] == [scales[skipped]] * 4 + [2 * scales[skipped]]  # four good steps
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(state.system))


def test_steps_with_other_scales_share_a_program():
    state = fm.setup(half(classifier()), (X, Y), optimizer=optax.sgd, lr=0.1)
    state, _ = fm.train_step(state, (X, Y))
    with Compilations() as count:
        for scale in (2.0**8, 2.0**40):
            state, _ = fm.train_step(fm.replace(state, {"system.scale": scale}), (X, Y))
            state, _ = fm.train_step(state, (X, Y))
    assert "jit(_train_step)" not in count.names, count.names


def test_the_check_of_a_system_finds_nothing():
    assert "no problems found" in str(fm.check(half(fm.Classifier(Dense(4, 3))), (X, Y), optimizer=optax.adam, lr=1e-3))


def test_skipped_steps_do_not_count_in_the_logs():
    options = {"batch_size": 2, "epochs": 3, "optimizer": optax.adam, "lr": 1e-2, "progress": False, "drop_last": True}
    state, history = fm.fit(half(classifier(), scale=2.0**24), (X, Y), **options)
    assert np.isfinite(history["loss"]).all()
    assert history["loss_scale"][-1] == float(state.system.scale) < 2**24


def test_members_have_scales_of_their_own():
    state = fm.setup(
        fm.Population(half(fm.Classifier(Dense(4, 3)), scale=2.0**20), 2), (X, Y), optimizer=optax.adam, lr=[1e-2, 1e-3]
    )
    state = fm.replace(state, {"system.members.scale": jnp.array([2.0**8, 2.0**40])})
    state, _ = fm.train_step(state, (X, Y))
    np.testing.assert_array_equal(state.system.members.scale, [2.0**8, 2.0**39])
    np.testing.assert_array_equal(state.system.members.good.value, [1, 0])


def test_sam_and_adversarial_training_inside():
    for system in (fm.defences.SAM(PERCEPTRON), fm.Adversarial(PERCEPTRON, ATTACK), net()):
        _, history = fm.fit(half(system), (X, Y), batch_size=8, epochs=3, optimizer=optax.adam, lr=1e-2, progress=False)
        assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
