"""SimCLR, BYOL and CLIP against the formulas in NumPy; and evaluations that end in a ragged batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm

X = data(10)[0]
Y = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
SGD = optax.sgd(0.1)


def unit(v):
    v = np.asarray(v, np.float64)
    return v / np.sqrt((v**2).sum(1, keepdims=True))


def linear(layer, x):
    return np.asarray(x) @ np.asarray(layer.weight) + np.asarray(layer.bias)


def info_nce(z, y, t):
    """One way, by a loop."""
    z, y = unit(z), unit(y)
    return np.array([-np.log(np.exp(z[i] @ y[i] / t) / sum(np.exp(z[i] @ b / t) for b in y)) for i in range(len(z))])


def nt_xent(z, y, t):
    """SimCLR's loss of 2n views, each against the 2n − 1 others: the mean over both views of an example."""
    both, n = unit(np.concatenate([z, y])), len(z)
    values = []
    for i in range(2 * n):
        others = sum(np.exp(both[i] @ both[j] / t) for j in range(2 * n) if j != i)
        values.append(-np.log(np.exp(both[i] @ both[(i + n) % (2 * n)] / t) / others))
    return (np.array(values[:n]) + np.array(values[n:])) / 2


def prediction(z, y):
    return fm.Prediction(None, jnp.asarray(z), fm.Labeled(None, jnp.asarray(y)))


def test_objectives():
    z, y, loss = X[:, :3], Y, jax.jit(fm.loss)
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    close(loss(fm.objectives.InfoNCE(0.3), prediction(z, y)), info_nce(z, y, 0.3))
    both = [np.asarray(loss(fm.objectives.NTXent(0.3), prediction(*pair))) for pair in ((z, y), (y, z))]
    close((both[0] + both[1]) / 2, nt_xent(z, y, 0.3))
    close(loss(fm.objectives.CosineDistance(), prediction(z, y)), ((unit(z) - unit(y)) ** 2).sum(1))


def test_simclr():
    system = fm.init(
        fm.systems.SelfSupervised(Linear(4, 3), fm.objectives.NTXent(0.2), augment=fm.augmentations.Noise(0.5)),
        jax.random.key(0),
    )
    mode = fm.Train(jax.random.key(1))
    views = fm.augment(system, fm.Unlabeled(X), mode)
    first, second = (np.asarray(views.parts[name].x) for name in ("first", "second"))
    assert (first != second).all() and (first != X).all()
    entries = fm.losses(system, views, mode)
    z, y = linear(system.model, first), linear(system.model, second)
    np.testing.assert_allclose(entries["nt_xent"], nt_xent(z, y, 0.2), rtol=1e-4)
    np.testing.assert_array_equal(system(X), system.model(X))


def test_byol():
    net = fm.systems.BYOL(fm.EMA(Linear(4, 3), 0.5), predictor=Linear(3, 3), augment=fm.augmentations.Noise(0.5))
    state = fm.setup(net, X, optimizer=SGD, batch_size=10)
    state, _ = fm.train_step(state, X)  # the average is not the model any more
    mode = fm.Train(jax.random.fold_in(state.key, state.step), state.step)
    byol = state.system
    views = fm.augment(byol, fm.Unlabeled(X), mode.at("augment"))
    first, second = (views.parts[name].x for name in ("first", "second"))
    targets = [linear(byol.model.average.part, v) for v in (second, first)]

    def by_hand(weights):
        (w, b), (v, c) = weights
        total = 0.0
        for x, y in zip((first, second), targets):
            q = (x @ w + b[None]) @ v + c[None]
            cosine = (q * y).sum(1) / jnp.linalg.norm(q, axis=1) / np.linalg.norm(y, axis=1)
            total += (2 - 2 * cosine).mean() / 2
        return total

    layers = (byol.model.component, byol.predictor)
    value, slopes = jax.jit(jax.value_and_grad(by_hand))([(layer.weight, layer.bias) for layer in layers])
    after, logs = fm.train_step(state, X)
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-5)
    new = (after.system.model.component, after.system.predictor)
    for layer, slope, now in zip(layers, slopes, new):
        np.testing.assert_allclose(now.weight, layer.weight - 0.1 * slope[0], atol=1e-6)
    expected = 0.5 * byol.model.average.part.weight + 0.5 * new[0].weight
    np.testing.assert_allclose(after.system.model.average.part.weight, expected, atol=1e-6)
    assert fm.count_parameters(state.system) == 15 + 12


def clip_loss(clip, x, y):
    u, v, t = linear(clip.first, x), linear(clip.second, y), np.exp(float(clip.log_temperature.value))
    return (info_nce(u, v, t) + info_nce(v, u, t)).mean() / 2


def test_clip():
    state = fm.setup(fm.systems.CLIP(Linear(4, 2), Linear(3, 2)), (X, Y), optimizer=SGD, batch_size=10)
    clip = state.system
    assert float(clip.log_temperature.value) == pytest.approx(np.log(0.07))
    after, logs = fm.train_step(state, (X, Y))
    np.testing.assert_allclose(logs["loss"], clip_loss(clip, X, Y), rtol=1e-5)
    logits = unit(linear(clip.first, X)) @ unit(linear(clip.second, Y[:4])).T / 0.07
    np.testing.assert_allclose(clip(X, Y[:4]), logits, rtol=1e-4, atol=1e-4)
    step = 1e-3  # the temperature's gradient, by differences in float64
    moved = [fm.replace(clip, log_temperature=fm.Parameter(np.log(0.07) + d)) for d in (step, -step)]
    slope = (clip_loss(moved[0], X, Y) - clip_loss(moved[1], X, Y)) / (2 * step)
    change = float(after.system.log_temperature.value) - float(clip.log_temperature.value)
    assert change == pytest.approx(-0.1 * slope, rel=1e-3) and abs(change) > 1e-4
    cold = fm.replace(clip, log_temperature=fm.Parameter(jnp.float32(-9.0)))
    assert float(cold.temperature) == pytest.approx(0.01)


@pytest.mark.parametrize("n", [10, 8])
def test_an_evaluation_that_ends_in_a_ragged_batch_is_exact(n):
    """Batches of 4, 4 and 2: each of its own size, weighed by it. With padding in the last one it would be another number."""
    state = fm.setup(fm.systems.CLIP(Linear(4, 2), Linear(3, 2)), (X, Y), optimizer=SGD, batch_size=4)
    figures = fm.evaluate(state, (X[:n], Y[:n]))
    parts = [(X[i : min(i + 4, n)], Y[i : min(i + 4, n)]) for i in range(0, n, 4)]
    expected = sum(len(x) * clip_loss(state.system, x, y) for x, y in parts) / n
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    if n == 10:
        padded = [np.concatenate([v[8:], np.repeat(v[8:9], 2, 0)]) for v in (X, Y)]
        wrong = (4 * sum(clip_loss(state.system, x, y) for x, y in parts[:2]) + 2 * clip_loss(state.system, *padded)) / n
        assert abs(wrong - expected) > 1e-3


def test_info_nce_as_an_objective_of_a_regressor_is_exact_too():
    state = fm.setup(fm.Regressor(Linear(4, 3), fm.objectives.InfoNCE(0.5), metrics=()), (X, Y), optimizer=SGD, batch_size=4)
    value = fm.evaluate(state, (X, Y))["loss"]
    z = linear(state.system.model, X)
    expected = np.concatenate([info_nce(z[i : i + 4], Y[i : i + 4], 0.5) for i in (0, 4, 8)]).mean()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("system", "raw", "words"),
    [
        (lambda: fm.systems.SelfSupervised(Linear(4, 3), augment=()), X, "augment must be an Augmentation"),
        (
            lambda: fm.systems.SelfSupervised(Linear(4, 3), 0.5, augment=fm.augmentations.Noise(0.1)),
            X,
            "objective must be an Objective",
        ),
        (
            lambda: fm.systems.SelfSupervised(Linear(4, 3), fm.objectives.NTXent(0.0), augment=fm.augmentations.Noise(0.1)),
            X,
            "temperature must be above 0",
        ),
        (
            lambda: fm.systems.BYOL(Linear(4, 3), predictor=Linear(3, 3), augment=fm.augmentations.Noise(0.1)),
            X,
            r"BYOL\.model must be an EMA.*fm\.EMA",
        ),
        (lambda: fm.systems.CLIP(Linear(4, 2), Linear(3, 2)), X, r"data of a CLIP must be pairs \(x, y\), got an Unlabeled"),
        (
            lambda: fm.systems.CLIP(Linear(4, 2), Linear(3, 2), log_temperature=0.1),
            (X, Y),
            r"log_temperature must be a Parameter.*Parameter",
        ),
    ],
)
def test_bad_input(system, raw, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fm.setup(system(), raw, optimizer=SGD)
