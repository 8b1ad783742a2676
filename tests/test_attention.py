"""`Attention`, `rotary`, `Embedding`, `GroupNorm`, `RMSNorm`: agreement with PyTorch, what they mean, bad input."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import cast, close, filled, forward_jit
from recorded import agrees, recorded

import fulmen as fm
from fulmen.models import Attention, Embedding, GroupNorm, RMSNorm, attention, rotary

QKV = {
    "qkv.weight": "attention.in_proj_weight",
    "qkv.bias": "attention.in_proj_bias",
    "out.weight": "attention.out_proj.weight",
    "out.bias": "attention.out_proj.bias",
}
SHAPE = (2, 5, 8)


def inputs(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_group_norm_agrees_with_pytorch():
    agrees("group_norm", GroupNorm(2, 6, epsilon=1e-4), {"weight": "weight", "bias": "bias"})


def test_rms_norm_agrees_with_pytorch():
    agrees("rms_norm", RMSNorm(6, epsilon=1e-5), {"weight": "weight"})


def test_attention_agrees_with_pytorch():
    agrees("attention", Attention(8, 2, causal=True), QKV)


def test_masked_attention_agrees_with_pytorch():
    agrees("masked_attention", Attention(8, 2, causal=True), QKV, extra=[recorded("masked_attention/seen")])


@pytest.mark.parametrize("norm", [GroupNorm(2, 4), RMSNorm(4)], ids=lambda n: type(n).__name__)
def test_norms(norm, key):
    norm = fm.init(norm, key)
    x = 3 + 2 * inputs((5, 6, 4))
    y = np.asarray(forward_jit(norm, x))
    grouped = (y**2).reshape(5, 6, 2, 2).mean((1, 3)) if isinstance(norm, GroupNorm) else (y**2).mean(-1)
    close(grouped, np.ones_like(grouped), rtol=1e-3)
    close(forward_jit(norm, 100 * x), y, rtol=1e-3, atol=1e-3)  # the scale of the input does not matter
    changed = np.concatenate([x[:-1], 2 + x[-1:] ** 2])
    np.testing.assert_array_equal(forward_jit(norm, changed)[:-1], y[:-1])  # nor do other examples
    small = cast(norm, jnp.bfloat16)
    assert fm.forward(small, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


class Device:
    """What JAX says of a device."""

    def __init__(self, platform="gpu", version="cuda 12090", compute_capability="9.0"):
        self.platform, self.compute_capability = platform, compute_capability
        self.client = SimpleNamespace(platform_version=version)


H200 = Device()


@pytest.mark.parametrize(
    ("expected", "device", "dtype", "length", "size", "masked"),
    [
        (True, H200, jnp.bfloat16, 1024, 64, False),
        (True, Device(compute_capability="8.0"), jnp.float16, 8, 128, True),
        (False, H200, jnp.float32, 1024, 64, False),
        (False, H200, jnp.bfloat16, 1024, 60, False),
        (False, H200, jnp.bfloat16, 1024, 136, False),
        (False, H200, jnp.bfloat16, 1023, 64, True),
        (False, Device(compute_capability="7.5"), jnp.bfloat16, 1024, 64, False),
        (False, Device(version="rocm 60300"), jnp.bfloat16, 1024, 64, False),
        (False, Device("tpu"), jnp.bfloat16, 1024, 64, False),
        (False, None, jnp.bfloat16, 1024, 64, False),  # this machine
    ],
)
def test_cudnn_computes_attention_where_it_can(monkeypatch, expected, device, dtype, length, size, masked):
    if device is not None:
        monkeypatch.setattr(attention, "_device", lambda: device)
    assert attention.cudnn_computes(jnp.dtype(dtype), length, size, masked) is expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention_calls_cudnn_with_what_it_takes(monkeypatch, masked):
    calls = []

    def record(query, key, value, *, mask, is_causal, implementation=None):
        calls.append((implementation, query.dtype, None if mask is None else mask.shape, is_causal))
        return value

    monkeypatch.setattr(attention, "_device", lambda: H200)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    layer = filled(Attention(16, 2, causal=True))
    half = cast(layer, jnp.bfloat16)
    for one, dtype in ((half, jnp.bfloat16), (layer, jnp.float32)):
        x = jnp.ones((3, 4, 16), dtype)
        fm.forward(one, x, jnp.ones((3, 4), bool)) if masked else fm.forward(one, x)
    expected = [("cudnn", jnp.bfloat16, (3, 1, 4, 4), True), (None, jnp.float32, (3, 1, 1, 4), True)]
    assert calls == [(name, dtype, shape if masked else None, causal) for name, dtype, shape, causal in expected]


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_is_close_to_float32_and_needs_no_promotion(causal):
    layer, x, mask = filled(Attention(8, 2, causal=causal)), inputs(), np.arange(5)[None] < np.array([[3], [5]])
    half = cast(layer, jnp.bfloat16)
    y = forward_jit(half, jnp.asarray(x, jnp.bfloat16), mask)
    assert y.dtype == jnp.bfloat16
    close(y.astype(jnp.float32), forward_jit(layer, x, mask), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "rotary": True}], ids=str)
def test_who_sees_whom(options):
    """The derivative of each output position by each input position."""
    layer = filled(Attention(8, 2, **options))
    seen = jax.jit(jax.jacobian(lambda x: layer(x[None])[0].sum(-1)))(inputs()[0])
    reached = np.abs(seen).sum(-1) > 1e-7
    assert (reached == (np.tril(np.ones((5, 5), bool)) if options else True)).all()


def test_masked_positions_are_ignored():
    layer, x = filled(Attention(8, 2)), inputs()
    mask = np.arange(5)[None] < np.array([[3], [5]])
    changed = x.copy()
    changed[0, 3:] = 7
    before, after = (forward_jit(layer, v, mask) for v in (x, changed))
    close(before[0, :3], after[0, :3], rtol=0, atol=0)
    close(before[1], forward_jit(layer, x)[1])
    close(before[:1, :3], forward_jit(layer, x[:1, :3]))


def test_attention_without_positions_is_permutation_equivariant():
    layer, x = filled(Attention(8, 2)), inputs()
    order = np.array([3, 1, 4, 0, 2])
    close(forward_jit(layer, x[:, order]), forward_jit(layer, x)[:, order])
    turning = filled(Attention(8, 2, rotary=True))
    assert np.abs(forward_jit(turning, x[:, order]) - forward_jit(turning, x)[:, order]).max() > 1e-4


def test_rotary():
    q, k = (jnp.asarray(inputs((1, 1, 3, 8), seed)) for seed in (0, 1))
    turned = lambda x, place: rotary(x, jnp.array([place]))
    product = lambda i, j: (turned(q, i) * turned(k, j)).sum(-1)
    close(rotary(q), q)  # the first place is not turned
    close(jnp.linalg.norm(turned(q, 9), axis=-1), jnp.linalg.norm(q, axis=-1))
    close(product(9, 4), product(25, 20), rtol=1e-4, atol=1e-5)
    assert np.abs(product(9, 4) - product(4, 9)).max() > 1e-2
    # By definition: pairs as complex numbers, times a unit number.
    by_hand = (np.asarray(q)[..., :4] + 1j * np.asarray(q)[..., 4:]) * np.exp(1j * 9 * 10_000.0 ** (-np.arange(4) / 4))
    close(turned(q, 9), np.concatenate([by_hand.real, by_hand.imag], -1), rtol=1e-4)


def test_embedding(key):
    layer = fm.init(Embedding(500, 64), key)
    tokens = np.array([[3, 499, 3]])
    np.testing.assert_array_equal(forward_jit(layer, tokens), np.asarray(layer.weight)[tokens])
    assert abs(float(layer.weight.std()) * 8 - 1) < 0.05
    gradient = jax.jit(jax.grad(lambda layer: layer(tokens).sum()))(layer).weight
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(tokens.ravel(), minlength=500))


@pytest.mark.parametrize("token", [-1, 7, 100])
def test_tokens_out_of_range(token, key):
    layer = fm.init(Embedding(7, 2), key)
    with pytest.raises(ValueError, match=rf"Embedding\(7, 2\) takes tokens from 0 to 6, got {token}\."):
        layer(np.array([0, token]))
    compiled = np.asarray(forward_jit(layer, np.array([0, token])))  # nobody can see it there: no vector at all
    assert np.isnan(compiled[1]).all()
    assert np.isfinite(compiled[0]).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Attention(8, 3), r"Attention\.heads must divide features, got 3 heads for 8 features"),
        (Attention(6, 2, rotary=True), "heads of an even size, got 6 features for 2 heads: 3 each"),
        (GroupNorm(3, 4), r"GroupNorm\.groups must divide features, got 3 groups of 4 features"),
        (GroupNorm(0, 4), r"GroupNorm\.groups must be at least 1, got 0"),
        (RMSNorm(4, epsilon=0.0), r"RMSNorm\.epsilon must be above 0"),
        (Embedding(0, 4), r"Embedding\.count must be at least 1, got 0"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_field_values_out_of_range(layer, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(layer)


@pytest.mark.parametrize(
    ("layer", "inputs", "error", "message"),
    [
        (Attention(8, 2), [np.ones((5, 8), np.float32)], ValueError, r"takes \(n, length, 8\), got \(5, 8\)"),
        (Attention(8, 3), [np.ones(SHAPE, np.float32)], ValueError, "heads must divide"),
        (Attention(8, 2), [np.ones(SHAPE, np.int32)], TypeError, "takes floating-point numbers"),
        (Attention(8, 2), [np.ones(SHAPE, np.float32), np.ones((2, 5))], ValueError, r"boolean mask \(n, length\)"),
        (GroupNorm(2, 4), [np.ones(4, np.float32)], ValueError, r"GroupNorm takes \(n, …, 4\), got \(4,\)"),
        (RMSNorm(4), [np.ones((2, 3), np.float32)], ValueError, r"RMSNorm\(4\) takes \(…, 4\), got \(2, 3\)"),
        (Embedding(4, 4), [np.ones((2, 3), np.float32)], TypeError, "takes integer tokens, got float32"),
    ],
    ids=range(7),
)
def test_invalid_inputs(layer, inputs, error, message):
    with pytest.raises(error, match=message):
        filled(layer)(*inputs)


def test_rotary_needs_an_even_size():
    with pytest.raises(ValueError, match=r"the last axis must be even, got shape \(1, 1, 1, 3\)"):
        rotary(jnp.ones((1, 1, 1, 3)))
