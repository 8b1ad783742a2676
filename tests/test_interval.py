"""Interval bounds: they contain what every layer computes, rounding included, and equal interval arithmetic by hand."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Linear

import fulmen as fm
from fulmen import dispatch
from fulmen.models import (
    MLP,
    Attention,
    AvgPool,
    BasicBlock,
    BatchNorm,
    Chain,
    Conv,
    ConvNet,
    Dense,
    Dropout,
    Flatten,
    Function,
    GlobalAvgPool,
    GroupNorm,
    LayerNorm,
    MaxPool,
    Normalized,
    RMSNorm,
    Stacked,
)
from fulmen.robust.certified import margin_bounds
from fulmen.robust.certified.interval import interval_of
from fulmen.robust.certified.interval_layers import EXACT, INCREASING, LOWEST

IMAGE, VECTOR = (4, 4, 4), (12,)


class Square(fm.Model):
    """A user's layer."""


@dispatch
def forward(layer: Square, x):
    return x * x


class Halved(fm.Model):
    """A user's layer with bounds."""

    scale: jax.Array


@dispatch
def forward(layer: Halved, x):
    return x * layer.scale


@dispatch
def forward(layer: Halved, x: fm.Interval):
    return x.map(lambda v: forward(layer, v)).widened(1e-6)


class Doubled(Chain):
    """A chain of a user's whose outputs are not those of its layers."""


@dispatch
def forward(chain: Doubled, x: jax.Array):
    return 2 * chain.layers[0](x)


@dispatch
def forward(chain: Doubled, x: fm.Interval):
    return chain.layers[0](x).map(lambda v: 2 * v)


class Branches(fm.Model):
    one: Dense
    two: Dense


@dispatch
def forward(model: Branches, x):
    return model.one(x) + model.two(x)


LAYERS = {
    "Dense": (Dense(12, 5), VECTOR),
    "Dense without bias": (Dense(12, 5, use_bias=False), VECTOR),
    "Conv": (Conv(4, 3), IMAGE),
    "Conv by patches": (Conv(4, 30, 2, padding=1), IMAGE),
    "Conv, stride and padding": (Conv(4, 3, (3, 2), 2, ((0, 1), 2)), IMAGE),
    "Conv, groups and dilation": (Conv(4, 6, dilation=2, groups=2), IMAGE),
    "ConvTranspose": (fm.models.ConvTranspose(4, 3, 4, 2), IMAGE),
    "Upsample, linear": (fm.models.Upsample(2, "linear"), IMAGE),
    "MaxPool": (MaxPool(2), IMAGE),
    "MaxPool, overlapping": (MaxPool(3, 2, padding=1), IMAGE),
    "AvgPool": (AvgPool(2), IMAGE),
    "AvgPool, overlapping": (AvgPool(3, 1), IMAGE),
    "GlobalAvgPool": (GlobalAvgPool(), IMAGE),
    "BatchNorm": (BatchNorm(4), IMAGE),
    "LayerNorm": (LayerNorm(12), VECTOR),
    "RMSNorm": (RMSNorm(12), VECTOR),
    "GroupNorm": (GroupNorm(2, 4), IMAGE),
    "Dropout": (Dropout(0.5), VECTOR),
    "Flatten": (Flatten(), IMAGE),
    "Normalized": (Normalized(Dense(12, 3), 0.3, 0.25), VECTOR),
    "Two branches": (Branches(Dense(12, 3), Dense(12, 3)), VECTOR),
    "BasicBlock": (BasicBlock(4, 4), IMAGE),
    "BasicBlock, stride": (BasicBlock(4, 6, stride=2), IMAGE),
    "Stacked": (Stacked(Dense(12, 12), 3), VECTOR),
    "MLP": (MLP(12, 16, 16, 3, dropout=0.1), VECTOR),
    "ConvNet": (ConvNet(4, 3, (5, 6), (4, 4), 8, batch_norm=True), IMAGE),
    **{f.__name__: (Function(f), VECTOR) for f in (*EXACT, *INCREASING, *LOWEST)},
}


forward_jit = jax.jit(forward)


@functools.cache
def arrays_of(name):
    """The arrays of a layer, as shapes with their paths, and its structure."""
    return jax.tree_util.tree_flatten_with_path(jax.eval_shape(fm.init, LAYERS[name][0], jax.random.key(0)))


def drawn(name, layer, rng):
    """The layer with random arrays; variances are positive."""
    leaves, structure = arrays_of(name)
    given = iter(jax.tree.leaves(layer))

    def draw(path, v):
        values = rng.normal(size=v.shape).astype(np.float32)
        return np.abs(values) if "variance" in jax.tree_util.keystr(path) else values

    return structure.unflatten([draw(path, v) if v.shape else next(given) for path, v in leaves])


def points(lower, upper, rng):
    """Points of an interval: a third are corners, and in a third some coordinates are at a corner."""
    share = rng.random((10_000, *lower.shape), np.float32)
    corner, mixed = share.round(), rng.random(share.shape) < 0.5
    share[::3], share[1::3] = corner[::3], np.where(mixed, corner, share)[1::3]
    return np.clip(lower + share * (upper - lower), lower, upper).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 1.0, 100.0]), st.sampled_from([0.0, 1e-7, 0.01, 1.0, 50.0]))
@settings(max_examples=8, deadline=None)
def test_bounds_contain_the_outputs_of_all_points(name, seed, size, radius):
    (layer, shape), rng = LAYERS[name], np.random.default_rng(seed)
    layer = drawn(name, layer, rng)
    middle = (size * rng.normal(size=shape)).astype(np.float32)
    lower, upper = middle - np.float32(radius), middle + np.float32(radius)
    bounds, y = forward_jit(layer, fm.Interval(lower[None], upper[None])), forward_jit(layer, points(lower, upper, rng))
    y = np.asarray(y)
    assert (np.asarray(bounds.lower) <= y).all()
    assert (y <= np.asarray(bounds.upper)).all()


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_mlp(*sizes, seed=0):
    layers = [
        Dense(n, m, weight=numbers(n, m, seed=seed + i), bias=numbers(m, seed=50 + i))
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    ]
    return Chain(*[each for layer in layers for each in (layer, jax.nn.relu)][:-1])


def corners(lower, upper):
    sides = np.array(list(itertools.product([0, 1], repeat=lower.size)), bool)
    return np.where(sides, upper, lower).astype(np.float32)


def by_hand(model, lower, upper):
    """Interval bounds of a chain of `Dense` and ReLU, in float64."""
    lower, upper = lower.astype(np.float64), upper.astype(np.float64)
    for layer in model:
        if isinstance(layer, Dense):
            weight, bias = np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64)
            centre, radius = (lower + upper) / 2 @ weight + bias, (upper - lower) / 2 @ np.abs(weight)
            lower, upper = centre - radius, centre + radius
        else:
            lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
    return lower, upper


def test_bounds_of_an_affine_layer_are_the_extremes_at_the_corners():
    model, x = random_mlp(6, 5), numbers(6)
    lower, upper = x - 0.3, x + np.float32(0.2)
    found = forward_jit(model, fm.Interval(lower[None], upper[None]))
    y = corners(lower, upper).astype(np.float64) @ np.asarray(model[0].weight, np.float64) + np.asarray(model[0].bias)
    np.testing.assert_allclose(found.lower[0], y.min(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.upper[0], y.max(0), rtol=1e-4, atol=1e-4)
    assert (found.lower[0] <= y.min(0)).all() and (found.upper[0] >= y.max(0)).all()


def test_bounds_of_a_network_contain_the_outputs_at_all_corners_and_equal_those_by_hand():
    model, x = random_mlp(8, 16, 16, 3), numbers(8)
    lower, upper = x - 0.1, x + np.float32(0.1)
    found, y = forward_jit(model, fm.Interval(lower[None], upper[None])), forward_jit(model, corners(lower, upper))
    assert (found.lower <= y).all() and (y <= found.upper).all()
    for bound, exact in zip((found.lower, found.upper), by_hand(model, lower[None], upper[None])):
        np.testing.assert_allclose(bound, exact, rtol=1e-4, atol=5e-3)  # of numbers up to 100


def test_bounds_of_a_convolution_equal_those_by_hand():
    layer = Conv(4, 3, weight=numbers(3, 3, 4, 3), bias=numbers(3))
    lower, upper = numbers(2, *IMAGE), numbers(2, *IMAGE) + np.float32(0.5)
    found = forward_jit(layer, fm.Interval(lower, upper))
    positive = fm.replace(layer, weight=np.maximum(layer.weight, 0))
    negative = fm.replace(layer, weight=np.minimum(layer.weight, 0), bias=np.zeros(3, np.float32))
    np.testing.assert_allclose(
        found.lower, np.asarray(forward_jit(positive, lower)) + forward_jit(negative, upper), rtol=1e-4, atol=2e-3
    )
    np.testing.assert_allclose(
        found.upper, np.asarray(forward_jit(positive, upper)) + forward_jit(negative, lower), rtol=1e-4, atol=2e-3
    )


def test_bounds_include_the_rounding_of_any_order_of_summation():
    """Of one point, whose products cancel: the exact output, and sums in float32 in several orders."""
    x, weight = (1000 * numbers(512)).astype(np.float32), numbers(512, 1, seed=1)
    found = forward_jit(Dense(512, 1, weight=weight, bias=np.zeros(1, np.float32)), fm.Interval(x[None], x[None]))
    products = x.astype(np.float64) * weight[:, 0]
    orders = [np.argsort(products), np.argsort(-products), np.argsort(np.abs(products)), np.arange(512)]
    sums = [functools.reduce(lambda a, b: np.float32(a + b), (x * weight[:, 0])[order]) for order in orders]
    assert max(sums) > min(sums)  # they are not all the same
    assert found.lower.item() <= min(*sums, products.sum()) and max(*sums, products.sum()) <= found.upper.item()
    assert found.upper.item() - found.lower.item() < 0.01 * np.abs(products).sum()


def test_products_that_a_device_rounds_widen_the_bounds(monkeypatch):
    layer, x = Dense(12, 5, weight=numbers(12, 5), bias=numbers(5)), fm.Interval(numbers(1, 12), numbers(1, 12))
    width = lambda: widest(jax.jit(lambda layer, x: forward(layer, x))(layer, x))  # traced again for each backend
    widest = lambda bounds: float((np.asarray(bounds.upper) - np.asarray(bounds.lower)).max())
    usual = width()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert width() > 100 * usual
    with jax.default_matmul_precision("highest"):
        assert width() == usual


# Margins


def test_margin_bounds_hold_at_all_corners_and_are_tighter_than_differences_of_bounds():
    model, x, y = random_mlp(8, 16, 3), numbers(8), np.array([1])
    box = fm.Interval((x - 0.1)[None], (x + np.float32(0.1))[None])
    z = np.asarray(forward_jit(model, corners(x - 0.1, x + np.float32(0.1))))
    of_outputs = margin_bounds.invoke(object, object, object)
    both = jax.jit(lambda *arguments: (margin_bounds(*arguments), of_outputs(*arguments)))
    found, loose = map(np.asarray, both(model, box, y))
    assert (found <= (z[:, 1:2] - z).min(0)[None]).all()
    assert found[0, 1] == 0
    assert (found[0, ::2] > loose[0, ::2] + 0.1).all()


def test_margin_bounds_of_a_chain_with_its_own_forward_are_those_of_its_outputs():
    model, y = Doubled(random_mlp(4, 3)), np.array([0])
    x = np.zeros((1, 4), np.float32)
    z = np.asarray(forward_jit(model, x))
    np.testing.assert_allclose(jax.jit(margin_bounds)(model, fm.Interval(x, x), y), z[:, :1] - z, rtol=1e-3, atol=1e-3)


# A user's layers, and bad input

X = fm.Interval(np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32))


def test_a_users_layer_needs_one_method():
    found = forward_jit(Chain(Halved(np.float32(0.5)), jax.nn.relu), X)
    assert found.lower.max() <= 0 and found.upper.min() >= 0.5 and found.upper.max() < 0.501


@pytest.mark.parametrize(
    "layer, name",
    [
        (Square(), "square: Square, x: fm.Interval"),
        (Chain(Square()), "square: Square, x: fm.Interval"),
        (Linear(4, 2, jnp.ones((4, 2)), jnp.ones(2)), "linear: Linear, x: fm.Interval"),
        (Function(jnp.sin), "`sin`"),
        (eqx.nn.Linear(4, 2, key=jax.random.key(0)), "linear: Linear, x: fm.Interval"),
    ],
)
def test_a_layer_without_a_method_is_an_error_with_the_method_to_write(layer, name):
    with pytest.raises(fm.MissingMethodError, match=name):
        forward(layer, X)


def test_attention_has_no_bounds():
    layer = fm.init(Attention(4, 2), jax.random.key(0))
    with pytest.raises(fm.MissingMethodError, match=r"attention: Attention, x: fm\.Interval"):
        forward(layer, fm.Interval(jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))))


class Sized(Dense):
    """A subclass with another function."""


@dispatch
def forward(layer: Sized, x):
    return x


def test_the_bounds_of_a_layer_are_not_used_for_a_subclass_with_its_own_forward():
    with pytest.raises(fm.AmbiguousMethodError, match=r"sized: Sized, x: fm.Interval"):
        forward(Sized(4, 4), X)


@pytest.mark.parametrize("layer", [Dropout(0.5), fm.init(BatchNorm(4), jax.random.key(0))])
def test_layers_that_train_otherwise_have_no_bounds_in_training(layer):
    with pytest.raises(ValueError, match=r"no interval bounds in training.*fm\.Eval"):
        forward(layer, X, fm.Train(jax.random.key(0)))


@pytest.mark.parametrize(
    "lower, upper, error, message",
    [
        ([1.0, 3.0], [2.0, 2.0], ValueError, r"lower must not exceed upper, got 3.0 > 2.0 at index \(1,\)"),
        (jnp.zeros(2), jnp.ones(3), ValueError, "the same shape"),
        (jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32), TypeError, "float32"),
        (jnp.zeros(2, jnp.float16), jnp.ones(2, jnp.float16), TypeError, "float32"),
    ],
)
def test_bounds_must_be_ordered_and_of_a_type_whose_rounding_is_known(lower, upper, error, message):
    with pytest.raises(error, match=message):
        fm.Interval(jnp.asarray(lower), jnp.asarray(upper))


def test_an_interval_is_not_an_array():
    with pytest.raises(TypeError, match="not an array"):
        jnp.asarray(X)
    with pytest.raises(TypeError, match="not an array"):
        X + 1


def test_the_interval_of_a_region_contains_the_region():
    x = numbers(5, 7)
    for region in (fm.LinfBall(0.1), fm.LinfBall(1e-9), fm.LinfBall(0.1) & fm.Box(-0.5, 0.5)):
        found = jax.jit(interval_of)(region, x)
        low, high = np.float64(x) - float(region.eps if isinstance(region, fm.LinfBall) else 0.1), np.float64(x) + 0.1
        if isinstance(region, fm.LinfBall):
            high = np.float64(x) + region.eps
        else:
            low, high = np.clip(low, -0.5, 0.5), np.clip(high, -0.5, 0.5)
        assert (found.lower <= low).all() and (high <= found.upper).all()
        np.testing.assert_allclose(found.lower, low, atol=1e-6)
