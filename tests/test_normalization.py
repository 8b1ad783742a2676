"""BatchNorm and LayerNorm: agreement with PyTorch, running statistics, and what normalizing means."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import cast, close, filled, forward_jit, train

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, LayerNorm


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "parity" / "batchnorm.npz") as file:
        return dict(file)


class Directed(fm.Model):
    """Its loss is the output along a given direction, so that its gradient is the output's at that cotangent."""

    norm: BatchNorm


@dispatch
def forward(model: Directed, x):
    return model.norm(x)


@dispatch
def loss(model: Directed, batch: fm.Labeled):
    return (model(batch.x) * batch.y).sum()


differentiate = jax.jit(fm.differentiate)


@jax.jit
def output_and_input_gradient(model, batch, mode):
    y, backward = jax.vjp(lambda x: fm.forward(model, x, mode), batch.x)
    return y, backward(batch.y)[0]


@pytest.mark.parametrize("name", ["vectors", "images", "options"])
def test_batch_norm_agrees_with_pytorch(name, recorded, key):
    of = lambda field: recorded[f"{name}/{field}"]
    momentum, epsilon = of("options").tolist()
    norm = fm.init(BatchNorm(of("weight").shape[1], momentum, epsilon), key)
    for step in range(len(of("x"))):
        norm = fm.replace(norm, weight=jnp.asarray(of("weight")[step]), bias=jnp.asarray(of("bias")[step]))
        batch, mode = fm.Labeled(of("x")[step], of("direction")[step]), train(step)
        y, gradient = output_and_input_gradient(Directed(norm), batch, mode)
        close(y, of("y")[step], rtol=2e-5, atol=5e-6)
        close(gradient, of("grad_x")[step], rtol=1e-4, atol=5e-6)
        _, gradients, moved, _ = differentiate(Directed(norm), batch, mode)
        close(gradients.norm.weight, of("grad_weight")[step], rtol=2e-5, atol=2e-5)
        close(gradients.norm.bias, of("grad_bias")[step], rtol=2e-5, atol=1e-5)
        norm = moved.norm
        close(norm.mean.value, of("running_mean")[step], rtol=2e-6, atol=1e-6)
        close(norm.variance.value, of("running_variance")[step], rtol=2e-6, atol=1e-6)
    norm = fm.replace(norm, weight=jnp.asarray(of("eval_weight")), bias=jnp.asarray(of("eval_bias")))
    close(norm(of("eval_x")), of("eval_y"))


def test_evaluation_leaves_running_statistics(key):
    norm = fm.init(BatchNorm(3), key)
    batch = fm.Labeled(jax.random.normal(key, (8, 3)), jnp.ones((8, 3)))
    _, _, moved, _ = jax.jit(fm.differentiate)(Directed(norm), batch, fm.Eval())
    assert (moved.norm.mean.value == 0).all() and (moved.norm.variance.value == 1).all()
    close(norm(batch.x), np.asarray(batch.x) / math.sqrt(1 + 1e-5))


def test_batch_norm_through_remat_and_scan(key):
    """Four blocks alike, one after another: by hand, under `jax.checkpoint`, and as one block scanned over."""
    norms = [filled(BatchNorm(3, momentum=0.5), seed) for seed in range(4)]
    stack = jax.tree.map(lambda *v: jnp.stack([jnp.asarray(a) for a in v]), *norms)
    x = 2 + jax.random.normal(key, (8, 3))

    def by_hand(norms, x):
        for norm in norms:
            x = jnp.tanh(fm.forward(norm, x, train()))
        return x.sum()

    def scanned(stack, x):
        body = jax.checkpoint(lambda x, norm: (jnp.tanh(fm.forward(norm, x, train())), None))
        return jax.lax.scan(body, x, stack)[0].sum()

    with_slots = lambda norm: fm.replace(norm, mean=_open(norm.mean), variance=_open(norm.variance))
    one = jax.jit(jax.grad(by_hand))([with_slots(n) for n in norms], x)
    many = jax.jit(jax.grad(scanned))(jax.vmap(with_slots)(stack), x)
    for i, each in enumerate(one):
        for name in ("mean", "variance"):
            total, count = getattr(each, name).slot
            close(total, getattr(many, name).slot[0][i])
            assert (count == 1).all() and (getattr(many, name).slot[1][i] == 1).all()
        close(each.weight, many.weight[i])
    assert not np.allclose(np.asarray(one[0].mean.slot[0]), 0)


def _open(buffer):
    """A buffer as it is while a training step differentiates."""
    return fm.Buffer(buffer.value, (jnp.zeros_like(buffer.value), jnp.zeros_like(buffer.value)))


def test_members_side_by_side(key):
    """Under `vmap` over layers each has its own hyperparameters, arrays and statistics."""
    norms = [filled(BatchNorm(3, momentum=0.1 * i), i) for i in range(3)]
    stack = jax.tree.map(lambda *v: jnp.stack([jnp.asarray(a) for a in v]), *norms)
    x = jax.random.normal(key, (8, 3))
    side_by_side = jax.jit(jax.vmap(lambda norm: fm.forward(norm, x, train())))(stack)
    close(side_by_side, np.stack([forward_jit(norm, x, train()) for norm in norms]))


numbers = st.integers(0, 2**31 - 1)
shapes = st.sampled_from([(2, 3), (7, 1), (5, 4, 3), (2, 3, 3, 2)])
scales, shifts = st.floats(0.1, 1e3), st.floats(-100, 100)
EPSILON = 1e-8
few = settings(deadline=None, max_examples=25, derandomize=True)


@few
@given(numbers, shapes, scales, shifts)
def test_batch_norm_normalizes(seed, shape, scale, shift):
    """Each feature has mean 0 and variance 1, whatever its scale and place were."""
    x = scale * (shift + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    norm = fm.init(BatchNorm(shape[-1], epsilon=EPSILON), jax.random.key(0))
    y = np.asarray(forward_jit(norm, x, train())).reshape(-1, shape[-1])
    spread = x.reshape(-1, shape[-1]).std(0, dtype=np.float64)
    tolerance = 1e-4 + 1e-5 * np.abs(x).max() / spread.min()
    assert np.abs(y.mean(0)).max() < tolerance
    assert np.abs(y.std(0) - spread / np.hypot(spread, math.sqrt(EPSILON))).max() < tolerance


@few
@given(numbers, st.sampled_from([(1, 3), (2, 16), (4, 3, 8)]), scales, shifts)
def test_layer_norm_normalizes(seed, shape, scale, shift):
    """Each vector has mean 0 and variance 1, and depends on no other vector."""
    x = scale * (shift + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    norm = fm.init(LayerNorm(shape[-1], epsilon=EPSILON), jax.random.key(0))
    y, spread = np.asarray(forward_jit(norm, x)), x.std(-1, dtype=np.float64)
    tolerance = 1e-4 + 1e-5 * np.abs(x).max() / spread.min()
    assert np.abs(y.mean(-1)).max() < tolerance
    assert np.abs(y.std(-1) - spread / np.hypot(spread, math.sqrt(EPSILON))).max() < tolerance
    changed = np.concatenate([x[:-1], 2 + x[-1:] ** 2])
    close(forward_jit(norm, changed)[:-1], y[:-1], rtol=0, atol=0)


def test_scale_and_shift(key):
    x = jax.random.normal(key, (6, 4))
    for norm in (fm.init(LayerNorm(4), key), fm.init(BatchNorm(4), key)):
        plain = fm.forward(norm, x, train())
        weight, bias = jnp.arange(1.0, 5.0), jnp.arange(4.0)
        close(fm.forward(fm.replace(norm, weight=weight, bias=bias), x, train()), plain * weight[None] + bias[None])


def test_half_precision_is_normalized_in_float32():
    """A mean of 1000 bfloat16 numbers near 100, taken in bfloat16, would be off by far more than their spread."""
    x = (100 + jnp.arange(1000.0) % 2).astype(jnp.bfloat16)[:, None]
    norm = cast(fm.init(BatchNorm(1), jax.random.key(0)), jnp.bfloat16)
    y = np.asarray(fm.forward(norm, x, train()).astype(jnp.float32))
    assert set(y.ravel().tolist()) == {-1.0, 1.0}
