"""`fit` gives bit for bit what a loop written by hand gives on the same batches.

Run with XLA's full optimisation, by `tests/test_exact.py`: two programs of the same arithmetic agree bit for bit only so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.models import Dense

EPOCHS, BATCH = 2, 32


@pytest.fixture(scope="module")
def ragged():
    """Digits whose last batch is smaller, which is another program."""
    rng = np.random.default_rng(0)
    return rng.random((200, 64), np.float32), rng.integers(0, 10, 200).astype(np.int32)


@pytest.fixture(scope="module")
def digits(ragged):
    return ragged[0][:192], ragged[1][:192]


def batches(data):
    return [*fm.batches(data, batch_size=BATCH, seed=0, epochs=EPOCHS)]


def same(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def cross_entropy(z, y):
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()


def by_hand(parameters, loss, data, optimizer, extra=None):
    """The textbook loop: `loss(parameters, extra, key, x, y) -> (value, extra)`."""

    @jax.jit
    def step(parameters, moments, extra, key, x, y):
        (_, extra), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, extra, key, x, y)
        updates, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, extra

    moments = optimizer.init(parameters)
    with jax.numpy_dtype_promotion("standard"):
        for i, (x, y) in enumerate(batches(data)):
            parameters, moments, extra = step(parameters, moments, extra, jnp.int32(i), x, y)
    return parameters, extra


def dense(parameters, x):
    return jnp.dot(x, parameters[0]) + parameters[1][None]


def arrays(layer):
    return [layer.weight, layer.bias]


def started(system, data, **options):
    return fm.setup(system, data, batch_size=BATCH, epochs=EPOCHS, **options)


def fitted(state, data):
    return fm.fit(state, data, epochs=EPOCHS, batch_size=BATCH, progress=False)[0].system


def test_mlp(ragged):
    state = started(fm.Classifier(fm.models.MLP(64, 32, 10)), ragged, optimizer=optax.adam, lr=1e-3)
    start = [jnp.copy(leaf.value) for leaf in fm.leaves(state.system) if leaf.role == "parameter"]
    assert [v.shape for v in start] == [(64, 32), (32,), (32, 10), (10,)]

    def loss(p, extra, key, x, y):
        return cross_entropy(dense(p[2:], jax.nn.relu(dense(p[:2], x))), y), extra

    expected, _ = by_hand(start, loss, ragged, optax.adam(1e-3))
    same([leaf.value for leaf in fm.leaves(fitted(state, ragged)) if leaf.role == "parameter"], expected)


class Small(fm.Model):
    """A convnet with BatchNorm and dropout."""

    conv: fm.models.Conv
    norm: fm.models.BatchNorm
    drop: fm.models.Dropout
    out: fm.models.Dense


@dispatch
def forward(net: Small, x):
    x = jax.nn.relu(net.norm(net.conv(x.reshape(-1, 4, 4, 4))))
    return net.out(net.drop(x.reshape(x.shape[0], -1)))


def test_convnet_with_batch_norm_and_dropout(digits):
    net = Small(fm.models.Conv(4, 4), fm.models.BatchNorm(4), fm.models.Dropout(0.25), Dense(64, 10))
    state = started(fm.Classifier(net), digits, optimizer=optax.adam, lr=1e-3)
    net = state.system.model
    start = dict(conv=arrays(net.conv), norm=arrays(net.norm), out=arrays(net.out))
    buffers = [net.norm.mean.value, net.norm.variance.value]
    # the mask of a layer is drawn from the step's key and the layer's salt
    run, salt = state.key, fm.bind(state.system, fm.Train(jax.random.key(0))).model.drop.mode.within("forward")

    def loss(p, buffers, i, x, y):
        x = jax.lax.conv_general_dilated(
            x.reshape(-1, 4, 4, 4), p["conv"][0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) + p["conv"][1].reshape(1, 1, 1, -1)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        n = x.size // x.shape[-1]
        new = [0.9 * buffers[0] + 0.1 * mean, 0.9 * buffers[1] + 0.1 * variance * (n / (n - 1))]
        wide = lambda v: v.reshape(1, 1, 1, -1)
        x = (x - wide(mean)) * wide(jax.lax.rsqrt(variance + 1e-5) * p["norm"][0]) + wide(p["norm"][1])
        x = jax.nn.relu(x).reshape(x.shape[0], -1)
        mode = fm.Train(jax.random.fold_in(run, i))
        key = jax.random.fold_in(mode.root, _salt(salt))
        keep = jax.random.bernoulli(key, 0.75, x.shape)
        x = jnp.where(keep, x / 0.75, 0.0)
        return cross_entropy(dense(p["out"], x), y), new

    expected, moved = by_hand(start, loss, digits, optax.adam(1e-3), buffers)
    net = fitted(state, digits).model
    same(dict(conv=arrays(net.conv), norm=arrays(net.norm), out=arrays(net.out)), expected)
    same([net.norm.mean.value, net.norm.variance.value], moved)


def _salt(mode):
    from fulmen.core.mode import _mix

    return _mix(mode.salt, mode.verb)


class Head(fm.Model):
    layer: fm.models.Dense


@dispatch
def forward(head: Head, x):
    return head.layer(x)


@dispatch
def loss(head: Head, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(head(batch.x), batch.y)


class Pair(fm.System):
    one: Head
    two: Head


def test_two_parts(digits):
    state = started(
        Pair(Head(Dense(64, 10)), Head(Dense(64, 10))), digits, optimizer=dict(one=optax.adam(1e-3), two=optax.sgd(0.1))
    )
    start = [arrays(state.system.one.layer), arrays(state.system.two.layer)]
    expected = [
        by_hand(p, lambda p, e, k, x, y: (cross_entropy(dense(p, x), y), e), digits, o)[0]
        for p, o in zip(start, (optax.adam(1e-3), optax.sgd(0.1)), strict=True)
    ]
    system = fitted(state, digits)
    same([arrays(system.one.layer), arrays(system.two.layer)], expected)


class Duel(fm.Game):
    maker: Dense
    judge: Dense


@dispatch
def losses(duel: Duel, batch):
    made, real = duel.maker(batch.x), batch.x
    return dict(
        maker=jax.nn.softplus(-duel.judge(made)).mean(),
        judge=dict(real=jax.nn.softplus(-duel.judge(real)).mean(), made=jax.nn.softplus(duel.judge(made)).mean()),
    )


def test_two_players(digits):
    x = digits[0]
    hand = dict(maker=optax.adam(1e-3, b1=0.5), judge=optax.adam(4e-3, b1=0.5))
    state = started(Duel(Dense(64, 64), Dense(64, 1)), x, optimizer=hand)
    maker, judge = arrays(state.system.maker), arrays(state.system.judge)

    @jax.jit
    def step(maker, judge, a, b, x):
        def for_maker(maker):
            return jax.nn.softplus(-dense(judge, dense(maker, x))).mean()

        def for_judge(judge):
            real, made = dense(judge, x), dense(judge, dense(maker, x))
            return jax.nn.softplus(-real).mean() + jax.nn.softplus(made).mean()

        m, a = hand["maker"].update(jax.grad(for_maker)(maker), a)
        j, b = hand["judge"].update(jax.grad(for_judge)(judge), b)
        return optax.apply_updates(maker, m), optax.apply_updates(judge, j), a, b

    a, b = hand["maker"].init(maker), hand["judge"].init(judge)
    with jax.numpy_dtype_promotion("standard"):
        for raw in batches(x):
            maker, judge, a, b = step(maker, judge, a, b, raw)
    system = fitted(state, x)
    same([arrays(system.maker), arrays(system.judge)], [maker, judge])
