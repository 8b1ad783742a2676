"""`Adversarial` around systems of every kind: one attack per step, after augmentation; every verb works."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, Net, Pair, net

import fulmen as fm
from fulmen import dispatch
from fulmen.core.batch import inputs
from fulmen.models import MLP, BatchNorm, Chain, Dense

REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)
FGSM = fm.FGSM(REGION)
PGD = fm.PGD(REGION, 0.03, 3)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.random((40, 4), np.float32), rng.integers(0, 3, 40).astype(np.int32)


class Duel(fm.Game):
    """Two players whose losses draw random numbers and are not per example."""

    one: Net
    two: Net


@dispatch
def losses(game: Duel, batch, mode):
    noise = 0.01 * jax.random.normal(mode.key, batch.x.shape)
    gap = jnp.abs(game.one(batch.x + noise) - game.two(batch.x)).mean()
    return {"one": gap, "two": {"gap": -gap, "own": (game.two(batch.x) ** 2).mean()}}


class Brighter(fm.Wrapper):
    """A model with an augmentation."""

    inner: Net


@dispatch
def augment(model: Brighter, batch, mode):
    return fm.replace(batch, x=jnp.clip(batch.x + 0.05, 0, 1))


def classifier(**options):
    return fm.Classifier(Chain(Dense(4, 16), jax.nn.tanh, Dense(16, 3)), **options)


WRAPPED = {
    "a classifier with terms": lambda: classifier(objective=fm.CrossEntropy() + 1e-3 * fm.L2()),
    "a model": net,
    "a system with augmentations": lambda: Pair(Brighter(net()), net()),
    "a game": lambda: Duel(net(), net()),
    "frozen and not": lambda: Pair(fm.Frozen(net()), net()),
    "another": lambda: fm.Adversarial(classifier(), FGSM),
}
RANDOM = ("a classifier with terms", "a model", "a system with augmentations")  # for the others the draws are made alike


def ready(component):
    return fm.init(component, jax.random.key(0))


def leaves_near(ours, theirs, atol=1e-6):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_step_is_the_systems_step_on_attacked_inputs(name, data):
    start = fm.attacks.Uniform() if name in RANDOM else fm.attacks.Clean()
    adv = fm.Adversarial(WRAPPED[name](), fm.FGSM(REGION, step_size=0.08, start=start))
    state = fm.setup(adv, data, optimizer=optax.sgd, lr=0.1)
    attacked, value, slopes = by_hand(state, data)
    assert type(attacked) is fm.data.Attacked
    pairs = zip(inputs_of(attacked.batch), inputs_of(attacked.clean), strict=True)
    assert 0.05 < max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs) <= 0.2
    after, logs = fm.train_step(state, data)
    np.testing.assert_allclose(float(logs["loss"]), float(value), rtol=1e-6)
    moved = jax.tree.map(
        lambda v, g: np.asarray(v) - np.float32(0.1) * np.asarray(g), parameters(state.system.system), slopes
    )
    leaves_near(parameters(after.system.system), moved)


def augmented(adv, data, seed):
    return fm.augment(adv, fm.as_batch(adv, data), fm.Train(jax.random.key(seed)))


def inputs_of(batch):
    return jax.tree.leaves(inputs(batch))


def parameters(component):
    return [leaf.value for leaf in fm.leaves(component) if leaf.role == "parameter"]


@jax.jit
def by_hand(state, data):
    mode = fm.Train(jax.random.fold_in(state.key, state.step), state.step)
    attacked = fm.augment(state.system, fm.as_batch(state.system, data), mode.at("augment"))
    value, slopes, _, _ = fm.differentiate(state.system.system, attacked.batch, mode.at("system"))
    return attacked, value, jax.tree.leaves(slopes)


def test_metrics_are_named_robust(data):
    adv = ready(fm.Adversarial(classifier(metrics=(fm.Accuracy(),)), FGSM))
    batch = fm.as_batch(adv, data)

    def names(adv):
        attacked = augmented(adv, data, 0)
        assert list(fm.metrics(adv, attacked)) == ["robust/accuracy"]
        assert list(fm.metrics(adv, batch)) == ["accuracy"]
        assert fm.losses(adv, attacked).keys() == fm.losses(adv.system, batch).keys()
        return fm.forward(adv, batch.x)

    assert jax.eval_shape(names, adv).shape == (40, 3)
    state, logs = fm.train_step(fm.setup(adv, data, optimizer=optax.sgd, lr=0.1), data)
    assert set(logs) == {"loss", "robust/accuracy", "lr"}
    figures = fm.evaluate(state, data, attack=FGSM)
    assert set(figures) == {"loss", "accuracy", "robust/loss", "robust/accuracy"}
    assert figures["robust/loss"] > figures["loss"]
    assert figures["robust/accuracy"] <= figures["accuracy"]
    plain = fm.evaluate(state.system.system, data)
    assert plain == {name: pytest.approx(figures[name], rel=1e-6) for name in plain}
    assert fm.predict(state, data).shape == (40, 3)


class Blend(fm.Component):
    """Mixes each example with the next one by a random share, as `Mixup` does, which takes long to compile."""


@dispatch
def augment(blend: Blend, batch, mode):
    share = jax.random.uniform(mode.key, (len(batch), 1))
    mixed = lambda v: share * v + (1 - share) * jnp.roll(v, 1, 0)
    return fm.replace(batch, x=mixed(batch.x), y=mixed(jax.nn.one_hot(batch.y, 3)))


def test_the_attack_runs_after_the_augmentation(data):
    adv = ready(fm.Adversarial(classifier(augment=(Blend(),)), FGSM))
    batch, mode = fm.as_batch(adv, data), fm.Train(jax.random.key(3))
    attacked, again = (jax.jit(fm.augment)(adv, batch, mode) for _ in range(2))
    mixed = jax.jit(fm.augment)(adv.system, batch, mode.at("system"))
    assert mixed.y.shape == (40, 3)
    leaves_near((attacked.clean.x, attacked.clean.y, attacked.batch.y), (mixed.x, mixed.y, mixed.y))
    offset = np.asarray(attacked.batch.x) - np.asarray(mixed.x)
    assert (np.abs(offset) <= 0.1).all() and (np.abs(offset) > 0.09).mean() > 0.5
    leaves_near(again, attacked, 0)


def test_parts_with_different_batches_are_attacked_separately(data):
    adv = ready(fm.Adversarial(Pair(Brighter(net()), net()), FGSM))
    attacked = jax.jit(lambda adv: augmented(adv, data, 0))(adv)
    own, clean = attacked.batch.parts["one"].x, attacked.clean.parts["one"].x
    np.testing.assert_allclose(clean, np.clip(data[0] + 0.05, 0, 1), rtol=0, atol=1e-7)
    for part, x, origin in [(adv.system.one.inner, own, clean), (adv.system.two, attacked.batch.parts["two"].x, data[0])]:
        slope = net_slope(part, origin, data[1])
        np.testing.assert_allclose(x, np.clip(origin + np.float32(0.1) * np.sign(slope), 0, 1), rtol=0, atol=1e-6)


@jax.jit
def net_slope(net, x, y):
    return jax.grad(lambda x: fm.loss(net, fm.Labeled(x, y)).sum())(x)


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_the_attack_is_computed_once_in_the_expected_passes():
    steps = 2
    rng = np.random.default_rng(0)
    raw = rng.random((32, 64), np.float32), rng.integers(0, 10, 32).astype(np.int32)
    # Training and evaluating compute the same in an MLP without dropout, so the last clean pass could be merged.
    system = fm.Classifier(MLP(64, 512, 10, dropout=0.1), metrics=(fm.Accuracy(),))
    state = fm.setup(
        fm.Adversarial(system, fm.PGD(REGION, 0.02, steps, fm.attacks.Clean())), raw, optimizer=optax.sgd, lr=0.1
    )
    batch, mode = fm.Labeled(*raw), fm.Train(jax.random.key(0))
    one = flops(lambda s: fm.loss(s, batch).mean(), state.system.system)
    clean = flops(lambda s: fm.differentiate(s, batch, mode)[:2], state.system.system)

    def step(component):
        value, slopes, _, logs = fm.differentiate(component, fm.augment(component, batch, mode), mode)
        return value, slopes, {name: figure.compute() for name, figure in logs.items()}

    assert flops(step, state.system) <= clean + 1.05 * 2 * steps * one
    assert clean + 1.05 * 2 * steps * one <= 1.1 * (2 * steps + 3) * one


def test_running_statistics_change_only_by_the_training_pass(data):
    model = Chain(Dense(4, 16), BatchNorm(16), jax.nn.relu, Dense(16, 3))
    adv = fm.Adversarial(fm.Classifier(model), FGSM)
    state = fm.setup(adv, data, optimizer=optax.sgd, lr=0.0)
    statistics = lambda s: [leaf.value for leaf in fm.leaves(s.system) if leaf.role == "buffer"]
    attacked, _, _ = by_hand(state, data)
    after, _ = fm.train_step(state, data)
    weight, bias = (np.asarray(v) for v in parameters(state.system.system.model[0]))
    hidden = np.asarray(attacked.batch.x) @ weight + bias
    leaves_near(statistics(after), [0.1 * hidden.mean(0), 0.9 + 0.1 * hidden.var(0, ddof=1)])


def test_radii_are_hyperparameters(data):
    state = fm.setup(fm.Adversarial(classifier(), PGD), data, optimizer=optax.sgd, lr=0.1)
    after, weak = fm.train_step(state, data)
    leaves_near(after.system.attack, state.system.attack, 0)
    stronger = fm.replace(state, {"system.attack.region.regions.0.eps": 0.3, "system.attack.step_size": 0.1})
    with Compilations() as compiled:
        _, strong = fm.train_step(stronger, data)
    assert compiled.names == []
    assert float(strong["loss"]) > float(weak["loss"]) + 0.01
    assert not any("attack" in leaf.path for leaf in fm.leaves(state.system) if leaf.role != "hyperparameter")


@pytest.mark.parametrize(
    ("attack", "inputs", "error", "message"),
    [
        (PGD, lambda x: 2 * x, ValueError, r"x must be in Box\(lo=0.0, hi=1.0\)"),
        (FGSM, lambda x: (255 * x).astype(np.uint8), ValueError, "x must be floating-point.* uint8 .*x / 255"),
        (fm.FGSM(fm.LinfBall(-1.0)), lambda x: x, ValueError, "LinfBall.eps"),
        (fm.PGD(REGION, 0.1, 0), lambda x: x, ValueError, "PGD.steps"),
        (
            fm.LinfBall(0.1),
            lambda x: x,
            TypeError,
            r"Adversarial.attack must be an Attack .* got LinfBall\(eps=0.1\); write fm.PGD",
        ),
    ],
)
def test_bad_input_is_found_at_setup(attack, inputs, error, message, data):
    with pytest.raises(error, match=message):
        fm.setup(fm.Adversarial(net(), attack), (inputs(data[0]), data[1]), optimizer=optax.sgd, lr=0.1)


def test_a_custom_attack_in_training(data):
    state = fm.setup(fm.Adversarial(net(), Shift(REGION)), data, optimizer=optax.sgd, lr=0.1)
    _, logs = fm.train_step(state, data)
    expected = fm.loss(state.system.system, fm.Labeled(np.clip(data[0] + 0.01, 0, 1), data[1])).mean()
    np.testing.assert_allclose(float(logs["loss"]), float(expected), rtol=1e-6)


class Shift(fm.Attack):
    """Shifts all examples equally; it has no options."""


@dispatch
def perturb(attack: Shift, system, batch, key):
    return fm.replace(batch, x=fm.attacks.project(attack.region, batch.x + 0.01, batch.x))
