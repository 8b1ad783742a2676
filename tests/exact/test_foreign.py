"""`fit` gives bit for bit what Equinox's and Flax NNX's own loops give on the same batches, statistics and dropout and all."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fulmen as fm
from fulmen.core.component import fold_name

EPOCHS, BATCH = 2, 32


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(0)
    return rng.random((192, 8, 8, 1), np.float32), rng.integers(0, 10, 192).astype(np.int32)


def batches(data):
    return [*fm.batches(data, batch_size=BATCH, seed=0, epochs=EPOCHS)]


def same(ours, theirs):
    ours, theirs = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (ours, theirs))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def cross_entropy(z, y):
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()


def fitted(model, data):
    """The model after `fit`, as it was before, and the keys that its random layers had, one for each step."""
    state = fm.setup(fm.Classifier(model), data, optimizer=optax.adam, lr=1e-3, batch_size=BATCH, epochs=EPOCHS)
    bound = lambda i: fm.bind(state.system, fm.Train(jax.random.fold_in(state.key, i))).model.mode
    keys = [bound(i).within("forward").key for i in range(len(batches(data)))]
    before = jax.tree.map(lambda v: jnp.copy(v) if eqx.is_array(v) else v, state.system.model)
    return fm.fit(state, data, epochs=EPOCHS, batch_size=BATCH, progress=False)[0].system.model, before, keys


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=one)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.25)
        self.out = eqx.nn.Linear(256, 10, key=two)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.conv(x.transpose(2, 0, 1)), state)
        return self.out(self.drop(jax.nn.relu(x).ravel(), key=key)), state


def test_equinox(digits):
    ours, start, keys = fitted(EquinoxNet(jax.random.key(0)), digits)
    model, state = eqx.nn.make_with_state(lambda: start)()
    optimizer = optax.adam(1e-3)

    def loss(model, state, key, x, y):
        each = jax.vmap(
            lambda x, state, key: model(x, state, key=key), in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch"
        )
        z, state = each(x, state, jax.random.split(key, len(x)))
        return cross_entropy(z, y), state

    @eqx.filter_jit
    def step(model, state, moments, key, x, y):
        (_, state), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model, state, key, x, y)
        updates, moments = optimizer.update(gradient, moments)
        return eqx.apply_updates(model, updates), state, moments

    moments = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    with jax.numpy_dtype_promotion("standard"):
        for key, (x, y) in zip(keys, batches(digits), strict=True):
            model, state, moments = step(model, state, moments, key, x, y)
    same(eqx.nn.make_with_state(lambda: ours)(), (model, state))


class FlaxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.out = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1)
        return self.out(self.drop(x))


def test_nnx(digits):
    ours, model, keys = fitted(FlaxNet(nnx.Rngs(0)), digits)
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        gradient = nnx.grad(lambda model: cross_entropy(model(x), y))(model)
        optimizer.update(model, gradient)

    with jax.numpy_dtype_promotion("standard"):
        for key, (x, y) in zip(keys, batches(digits), strict=True):
            model.drop.rngs.key.set_value(fold_name(key, "drop.rngs"))
            model.drop.rngs.count.set_value(jnp.uint32(0))
            step(model, optimizer, x, y)
    state = lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
    same(state(ours), state(model))
