"""The reference layers: shapes, drawing, types, and what they do in training and in evaluation."""

import copy
import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import close, filled, forward_jit, train

import fulmen as fm
from fulmen import dispatch
from fulmen.models import (
    MLP,
    AvgPool,
    BatchNorm,
    Chain,
    Conv,
    ConvNet,
    Dense,
    Dropout,
    Flatten,
    Function,
    GlobalAvgPool,
    LayerNorm,
    MaxPool,
)


class Block(fm.Model):
    layer: fm.Component


@dispatch
def forward(block: Block, x):
    return block.layer(x)


IMAGES = (3, 8, 8, 2)
CASES = {
    "dense": (Dense(6, 4), (3, 6), (3, 4), 28),
    "dense of sequences": (Dense(6, 4, use_bias=False), (3, 5, 6), (3, 5, 4), 24),
    "dense of one vector": (Dense(6, 4), (6,), (4,), 28),
    "conv": (Conv(2, 4), IMAGES, (3, 8, 8, 4), 76),
    "conv, stride": (Conv(2, 4, stride=2, use_bias=False), IMAGES, (3, 4, 4, 4), 72),
    "conv, valid": (Conv(2, 4, kernel_size=(3, 1), padding="VALID"), IMAGES, (3, 6, 8, 4), 28),
    "conv, integer padding": (Conv(2, 4, padding=2), IMAGES, (3, 10, 10, 4), 76),
    "conv, padding per axis": (Conv(2, 4, padding=(0, 1)), IMAGES, (3, 6, 8, 4), 76),
    "conv, padding per side": (Conv(2, 4, padding=((0, 1), (2, 0))), IMAGES, (3, 7, 8, 4), 76),
    "dropout": (Dropout(0.5), (3, 6), (3, 6), 0),
    "batch norm": (BatchNorm(2), IMAGES, IMAGES, 4),
    "layer norm": (LayerNorm(2), IMAGES, IMAGES, 4),
    "max pool": (MaxPool(2), IMAGES, (3, 4, 4, 2), 0),
    "max pool, a rest": (MaxPool(3), IMAGES, (3, 2, 2, 2), 0),
    "max pool, overlapping": (MaxPool(3, stride=2), IMAGES, (3, 3, 3, 2), 0),
    "average pool": (AvgPool((2, 4)), IMAGES, (3, 4, 2, 2), 0),
    "average pool, overlapping": (AvgPool(3, stride=(1, 2)), IMAGES, (3, 6, 3, 2), 0),
    "global average pool": (GlobalAvgPool(), IMAGES, (3, 2), 0),
    "flatten": (Flatten(), IMAGES, (3, 128), 0),
    "function": (Function(jnp.tanh), (3, 6), (3, 6), 0),
    "chain": (Chain(Flatten(), Dense(128, 4), jax.nn.relu, Dense(4, 3)), IMAGES, (3, 3), 531),
    "empty chain": (Chain(), (3, 6), (3, 6), 0),
    "mlp": (MLP(6, 5, 4, 3), (3, 6), (3, 3), 35 + 24 + 15),
    "mlp, dropout": (MLP(6, 5, 3, activation=jnp.tanh, dropout=0.5), (3, 6), (3, 3), 35 + 18),
    "linear mlp": (MLP(6, 3), (3, 6), (3, 3), 21),
    "convnet": (ConvNet(2, 3, widths=(2, 4), hidden=5), IMAGES, (3, 3), 38 + 76 + 325 + 18),
    "convnet, all": (
        ConvNet(2, 3, widths=(2, 4, 4), hidden=5, batch_norm=True, dropout=0.5),
        IMAGES,
        (3, 3),
        36 + 4 + 72 + 8 + 144 + 8 + 85 + 18,
    ),
}
cases = pytest.mark.parametrize("name", list(CASES))


def case(name, dtype=jnp.float32):
    """The layer with its arrays, an input, and what is expected: the output's shape, the number of parameters."""
    _, shape, expected, count = CASES[name]
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    drawn = jax.tree.map(lambda v: jnp.asarray(np.asarray(v, dtype)) if hasattr(v, "dtype") else v, draw(name))
    return drawn, jnp.asarray(x), expected, count


draw = functools.cache(lambda name: filled(CASES[name][0]))


@cases
def test_shape_and_count(name):
    layer, x, expected, count = case(name)
    fm.validate(layer)
    assert jax.eval_shape(fm.forward, layer, x).shape == expected
    assert fm.count_parameters(layer) == count


@cases
def test_same_after_a_round_trip(name):
    layer = case(name)[0]
    leaves, structure = jax.tree.flatten(layer)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure and type(again) is type(layer)
    assert repr(again) == repr(layer)


SPAN = [
    "dense",
    "conv, padding per side",
    "batch norm",
    "layer norm",
    "max pool",
    "average pool, overlapping",
    "mlp, dropout",
]


@pytest.mark.parametrize("name", SPAN)
def test_same_under_jit(name):
    layer, x, _, _ = case(name)
    close(forward_jit(layer, x, train()), fm.forward(layer, x, train()))


@cases
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_keeps_the_type(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        layer, x, expected, _ = case(name, jnp.dtype(dtype))
        for mode in (fm.Eval(), train()):
            y = jax.eval_shape(fm.forward, layer, x, mode)
            assert (y.shape, y.dtype) == (expected, jnp.dtype(dtype))
        gradient = jax.eval_shape(jax.grad(lambda x: layer(x).sum()), x)
        assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)


def test_float64_is_computed_in_float64():
    cast = lambda tree, dtype: jax.tree.map(lambda v: jnp.asarray(v, dtype), tree)
    net = Chain(*(draw(name) for name in ("conv", "max pool", "flatten")), filled(LayerNorm(64)))
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=IMAGES)
        double, single = (np.asarray(forward_jit(cast(net, t), jnp.asarray(x, t))) for t in (jnp.float64, jnp.float32))
    assert 1e-9 < np.abs(double - single).max() < 1e-4


# Drawing


@pytest.mark.parametrize("layer, fan_in", [(Dense(256, 128), 256), (Conv(32, 64, kernel_size=(3, 5)), 32 * 15)])
def test_weights_are_lecun_normal(layer, fan_in, key):
    drawn = fm.init(layer, key)
    weight = np.asarray(drawn.weight)
    assert abs(weight.mean()) < 4 / math.sqrt(fan_in * weight.size)
    assert weight.std() * math.sqrt(fan_in) == pytest.approx(1, abs=0.02)
    assert np.abs(weight).max() * math.sqrt(fan_in) < 2.3  # cut off at two standard deviations of the uncut one
    assert (np.asarray(drawn.bias) == 0).all()


def test_norms_are_initialized_to_the_identity(key):
    for norm in (fm.init(BatchNorm(3), key), fm.init(LayerNorm(3), key)):
        assert norm.weight.tolist() == [1, 1, 1] and norm.bias.tolist() == [0, 0, 0]
    norm = fm.init(BatchNorm(3), key)
    assert norm.mean.value.tolist() == [0, 0, 0] and norm.variance.value.tolist() == [1, 1, 1]
    assert {leaf.path: leaf.role for leaf in fm.leaves(norm)} == {
        "momentum": "hyperparameter",
        "epsilon": "hyperparameter",
        "weight": "parameter",
        "bias": "parameter",
        "mean": "buffer",
        "variance": "buffer",
    }


def test_initialization_depends_on_key_and_path(key):
    net = Chain(Dense(4, 4), Dense(4, 4))
    drawn, again, other = fm.init(net, key), fm.init(net, key), fm.init(net, jax.random.key(1))
    assert (drawn[0].weight == again[0].weight).all() and (drawn[1].weight == again[1].weight).all()
    assert (drawn[0].weight != drawn[1].weight).all()
    assert (drawn[0].weight != other[0].weight).all()
    longer = fm.init(Chain(*net, Dense(4, 4)), key)
    assert (longer[0].weight == drawn[0].weight).all()


def test_no_two_fields_share_initial_values():
    leaves = [leaf for leaf in jax.tree.leaves(draw("convnet, all")) if isinstance(leaf, jax.Array)]
    assert len({id(leaf) for leaf in leaves}) == len(leaves)


# Dense, Conv and pooling against NumPy


def test_dense_is_a_linear_map():
    layer, x, _, _ = case("dense of sequences")
    close(layer(x), np.asarray(x) @ np.asarray(layer.weight))
    biased = fm.replace(filled(Dense(6, 4)), bias=jnp.arange(4.0))
    close(biased(x), np.asarray(x) @ np.asarray(biased.weight) + np.arange(4))


@pytest.mark.parametrize("channels", [3, 8], ids=["large patches", "small patches"])
@pytest.mark.parametrize("pads, stride", [(((1, 0), (2, 1)), (1, 2)), ("VALID", 1), ("SAME", 2)])
def test_conv_is_a_cross_correlation(pads, stride, channels):
    layer = filled(Conv(2, channels, kernel_size=(2, 3), stride=stride, padding=pads))
    layer = fm.replace(layer, bias=jnp.arange(float(channels)))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6, 2)))
    # SAME with stride 2: 5 rows give 3, which need (3 − 1) · 2 + 2 = 6, so one more, at the end; 6 columns need 7.
    pads = {"VALID": ((0, 0), (0, 0)), "SAME": ((0, 1), (0, 1))}.get(pads, pads) if isinstance(pads, str) else pads
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    down, right = stride if isinstance(stride, tuple) else (stride, stride)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), (1, 2))[:, ::down, ::right]
    close(forward_jit(layer, x), np.einsum("nhwcij,ijco->nhwo", windows, np.asarray(layer.weight)) + np.arange(channels))


@pytest.mark.parametrize("window, stride", [(3, None), ((2, 3), (1, 2)), (2, 3)])
@pytest.mark.parametrize("layer, reduce", [(MaxPool, np.max), (AvgPool, np.mean)])
def test_pooling(layer, reduce, window, stride):
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 7, 8, 3)))
    size = window if isinstance(window, tuple) else (window, window)
    down, right = size if stride is None else stride if isinstance(stride, tuple) else (stride, stride)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::down, ::right]
    pool = layer(window, stride)
    y, gradient = jax.jit(jax.value_and_grad(lambda x: (pool(x).sum(), pool(x)), has_aux=True))(x)
    close(y[1], reduce(windows, axis=(-2, -1)))
    close(gradient.sum(), y[1].size, rtol=1e-4)  # the weights of each window add up to one


def test_pooling_of_integers():
    x = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    assert MaxPool(2)(x).ravel().tolist() == [5, 7, 13, 15]
    assert MaxPool(2, 1)(x).dtype == jnp.uint8 and MaxPool(2, 1)(x).ravel()[0] == 5
    with pytest.raises(TypeError, match=r"AvgPool takes floating-point numbers, got uint8"):
        AvgPool(2)(x)


# Dropout


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate, key):
    y = np.asarray(fm.forward(Dropout(rate), jnp.ones(20000), fm.Train(key)))
    kept = y != 0
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * math.sqrt(rate * (1 - rate) / y.size) + 1e-12)
    close(y[kept], 1 / (1 - rate))
    x = jnp.arange(5.0)
    assert Dropout(rate)(x) is x
    assert fm.forward(Dropout(rate), x, fm.Eval(key)) is x


def test_dropout_masks_follow_key_and_path():
    net = Chain(Block(Block(Dropout(0.5))), Dropout(0.5))
    x = jnp.ones((4, 64))
    deep = lambda mode: np.asarray(fm.bind(net, mode)[0](x))
    late = lambda mode: np.asarray(fm.bind(net, mode)[1](x))
    assert (deep(train()) == deep(train())).all()
    assert (deep(train()) != deep(train(1))).any()
    assert (deep(train()) != late(train())).any()
    assert (deep(fm.Eval()) == 1).all()
    assert (np.asarray(jax.jit(lambda m: fm.bind(net, m)[0](x))(train())) == deep(train())).all()
    assert (np.asarray(jax.checkpoint(lambda n, x: n[0](x))(fm.bind(net, train()), x)) == deep(train())).all()


def test_a_rate_of_zero_as_an_integer(key):
    x = jnp.ones((3, 4))
    np.testing.assert_array_equal(fm.forward(fm.models.Dropout(0), x, fm.Train(key)), x)


def test_a_rate_changes_without_compiling():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(1)
        return fm.forward(layer, x, train())

    shares = [float((run(Dropout(rate), jnp.ones(5000)) == 0).mean()) for rate in (0.2, 0.7)]
    assert len(traces) == 1 and shares == pytest.approx([0.2, 0.7], abs=0.03)


# Chain, MLP, ConvNet


def test_chain_is_a_sequence():
    net = Chain(Dense(6, 4), jax.nn.relu, Dropout(0.5), Dense(4, 3))
    assert len(net) == 4 and isinstance(net[1], Function) and net[-1].out_features == 3
    assert [type(layer) for layer in net] == [Dense, Function, Dropout, Dense]
    assert isinstance(net[:2], Chain) and len(net[:2]) == 2
    drawn, x = filled(net), jnp.ones((2, 6))
    close(drawn[2:](drawn[:2](x)), drawn(x))
    assert [leaf.path for leaf in fm.leaves(drawn) if leaf.role == "parameter"] == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.3.weight",
        "layers.3.bias",
    ]


def test_equal_chains_are_one_program():
    assert jax.tree.structure(MLP(6, 4, 3)) == jax.tree.structure(MLP(6, 4, 3))
    assert jax.tree.structure(MLP(6, 4, 3)) != jax.tree.structure(MLP(6, 4, 3, activation=jnp.tanh))


def test_models_are_what_they_say():
    assert [type(layer).__name__ for layer in MLP(6, 5, 4, 3, dropout=0.1)] == [
        *("Dense", "Function", "Dropout", "Dense", "Function", "Dropout", "Dense")
    ]
    assert not any(isinstance(layer, Dropout) for layer in (*MLP(6, 5, 3), *ConvNet()))
    pools = lambda *widths: [type(layer).__name__ for layer in ConvNet(widths=widths) if isinstance(layer, Conv | MaxPool)]
    assert pools(4, 8) == ["Conv", "Conv", "MaxPool"]
    assert pools(4, 8, 8) == ["Conv", "Conv", "MaxPool", "Conv", "MaxPool"]
    net = ConvNet(3, 5, widths=(2, 2), image_size=(6, 10))
    assert jax.eval_shape(lambda key, x: fm.init(net, key)(x), jax.random.key(0), jnp.ones((2, 6, 10, 3))).shape == (2, 5)


@pytest.mark.parametrize("name", ["dense", "batch norm", "max pool, overlapping", "mlp, dropout", "convnet, all"])
@pytest.mark.parametrize("again", [lambda v: pickle.loads(pickle.dumps(v)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_are_equal(name, again):
    layer, x, _, _ = case(name)
    for each in (layer, CASES[name][0], fm.bind(layer, train())):
        assert jax.tree.structure(again(each)) == jax.tree.structure(each)
    np.testing.assert_array_equal(np.asarray(forward_jit(again(layer), x)), np.asarray(forward_jit(layer, x)))


def test_a_lambda_does_not_pickle():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(Chain(lambda x: x))
