"""The reference layers: shapes, drawing, types, what they do in training and in evaluation, and bad input."""

import copy
import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def close(a, b, **tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def train(seed=0):
    return fm.Train(jax.random.key(seed))


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
    drawn = jax.tree.map(lambda v: jnp.asarray(v, dtype) if hasattr(v, "dtype") else v, draw(name))
    return drawn, jnp.asarray(x), expected, count


def filled(layer, seed=0):
    """The layer with some positive numbers where `init` would draw: drawing compiles a program per shape."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(jax.eval_shape(fm.init, layer, jax.random.key(0)))
    numbers = iter(jax.tree.leaves(layer))  # a description has no other leaves: its rates and the like
    fill = lambda v: jnp.asarray(rng.random(v.shape) / math.sqrt(math.prod(v.shape)) + 0.1, v.dtype)
    return structure.unflatten([fill(v) if v.shape else next(numbers) for v in leaves])


draw = functools.cache(lambda name: filled(CASES[name][0]))


forward_jit = jax.jit(fm.forward)


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


def test_norms_begin_as_they_should(key):
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


def test_drawing_depends_on_key_and_path(key):
    net = Chain(Dense(4, 4), Dense(4, 4))
    drawn, again, other = fm.init(net, key), fm.init(net, key), fm.init(net, jax.random.key(1))
    assert (drawn[0].weight == again[0].weight).all() and (drawn[1].weight == again[1].weight).all()
    assert (drawn[0].weight != drawn[1].weight).all()
    assert (drawn[0].weight != other[0].weight).all()
    longer = fm.init(Chain(*net, Dense(4, 4)), key)
    assert (longer[0].weight == drawn[0].weight).all()


def test_no_array_is_drawn_for_two_fields():
    leaves = [leaf for leaf in jax.tree.leaves(draw("convnet, all")) if isinstance(leaf, jax.Array)]
    assert len({id(leaf) for leaf in leaves}) == len(leaves)


# Dense, Conv and pooling against NumPy


def test_dense_is_a_linear_map():
    layer, x, _, _ = case("dense of sequences")
    close(layer(x), np.asarray(x) @ np.asarray(layer.weight))
    biased = fm.replace(filled(Dense(6, 4)), bias=jnp.arange(4.0))
    close(biased(x), np.asarray(x) @ np.asarray(biased.weight) + np.arange(4))


@pytest.mark.parametrize("pads, stride", [(((1, 0), (2, 1)), (1, 2)), ("VALID", 1), ("SAME", 2)])
def test_conv_is_a_cross_correlation(pads, stride):
    layer = filled(Conv(2, 3, kernel_size=(2, 3), stride=stride, padding=pads))
    layer = fm.replace(layer, bias=jnp.arange(3.0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6, 2)))
    # SAME with stride 2: 5 rows give 3, which need (3 − 1) · 2 + 2 = 6, so one more, at the end; 6 columns need 7.
    pads = {"VALID": ((0, 0), (0, 0)), "SAME": ((0, 1), (0, 1))}.get(pads, pads) if isinstance(pads, str) else pads
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    down, right = stride if isinstance(stride, tuple) else (stride, stride)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), (1, 2))[:, ::down, ::right]
    close(layer(x), np.einsum("nhwcij,ijco->nhwo", windows, np.asarray(layer.weight)) + np.arange(3))


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
    with pytest.raises(TypeError, match=r"AvgPool takes floating-point numbers, and uint8"):
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


def test_a_rate_changes_without_compiling():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(1)
        return fm.forward(layer, x, train())

    shares = [float((run(Dropout(rate), jnp.ones(5000)) == 0).mean()) for rate in (0.2, 0.7)]
    assert len(traces) == 1 and shares == pytest.approx([0.2, 0.7], abs=0.03)


# Normalization


@pytest.fixture(scope="module")
def recorded():
    from pathlib import Path

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
    _, _, moved, _ = fm.differentiate(Directed(norm), batch, fm.Eval())
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
            assert count == 1 == getattr(many, name).slot[1][i]
        close(each.weight, many.weight[i])
    assert not np.allclose(np.asarray(one[0].mean.slot[0]), 0)


def _open(buffer):
    """A buffer as it is while a training step differentiates."""
    return fm.Buffer(buffer.value, (jnp.zeros_like(buffer.value), jnp.zeros(())))


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


def test_small_numbers_are_normalized_in_32_bits():
    """A mean of 1000 bfloat16 numbers near 100, taken in bfloat16, would be off by far more than their spread."""
    x = (100 + jnp.arange(1000.0) % 2).astype(jnp.bfloat16)[:, None]
    norm = jax.tree.map(
        lambda v: v.astype(jnp.bfloat16) if hasattr(v, "dtype") else v, fm.init(BatchNorm(1), jax.random.key(0))
    )
    y = np.asarray(fm.forward(norm, x, train()).astype(jnp.float32))
    assert set(y.ravel().tolist()) == {-1.0, 1.0}


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


# Bad input

INPUTS = {
    "wrong size": (Dense(64, 10), (32, 60), r"^Dense\(64, 10\) takes \(…, 64\), and \(32, 60\) came\.$"),
    "a number": (Dense(64, 10), (), r"Dense\(64, 10\) takes \(…, 64\), and \(\) came"),
    "images for Dense": (Dense(64, 10), (32, 8, 8), r"\(32, 8, 8\) came; fm\.models\.Flatten\(\)"),
    "inside a chain": (MLP(6, 4, 3), (2, 5), r"Dense\(6, 4\) takes \(…, 6\), and \(2, 5\) came"),
    "no channel axis": (
        Conv(1, 4),
        (32, 8, 8),
        r"Conv\(1, 4\) takes images .*, 1\), and \(32, 8, 8\) came.*x\[\.\.\., None\]",
    ),
    "no channel axis, three": (Conv(3, 4), (32, 8, 8), r"channel axis is missing.*x\[\.\.\., None\]"),
    "no batch axis": (Conv(3, 4), (8, 8, 3), r"batch axis, x\[None\]"),
    "flat images": (Conv(1, 4), (32, 64), r"x\.reshape\(-1, height, width, 1\)"),
    "channels first": (Conv(3, 4), (2, 3, 8, 8), r"channels come last, jnp\.moveaxis\(x, 1, -1\)"),
    "other channels": (
        Conv(3, 4),
        (2, 8, 8, 4),
        r"Conv\(3, 4\) takes images \(n, height, width, 3\), and \(2, 8, 8, 4\) came\.$",
    ),
    "small images": (
        Conv(1, 4, 3, padding="VALID"),
        (2, 2, 8, 1),
        r"kernel of \(3, 3\), larger than the images of \(2, 2, 8, 1\)",
    ),
    "pooling a vector": (MaxPool(2), (2, 8), r"MaxPool\(2\) takes images \(n, height, width, channels\), and \(2, 8\) came"),
    "pooling little": (AvgPool(3), (2, 2, 8, 1), r"AvgPool\(3\) takes images of at least 3 × 3, and \(2, 2, 8, 1\) came"),
    "pooling all": (GlobalAvgPool(), (2, 8, 8), r"channel axis is missing"),
    "flattening nothing": (Flatten(), (), r"Flatten takes \(n, …\)"),
    "batch norm": (BatchNorm(4), (2, 3), r"BatchNorm\(4\) takes \(…, 4\), and \(2, 3\) came"),
    "layer norm": (LayerNorm(4), (2, 3), r"LayerNorm\(4\) takes \(…, 4\), and \(2, 3\) came"),
}


@pytest.mark.parametrize("name", list(INPUTS))
def test_input_of_the_wrong_shape(name):
    layer, shape, message = INPUTS[name]
    with pytest.raises(ValueError, match=message):
        filled(layer)(np.ones(shape, np.float32))


def test_batch_norm_of_one_example(key):
    norm = fm.init(BatchNorm(4), key)
    assert norm(jnp.ones((1, 4))).shape == (1, 4)
    with pytest.raises(ValueError, match=r"at least two values of each feature in training, and \(1, 4\) came.*drop_last"):
        fm.forward(norm, jnp.ones((1, 4)), fm.Train(key))


@pytest.mark.parametrize("layer", [Dense(6, 4), Conv(1, 2), BatchNorm(6), LayerNorm(6)])
def test_arrays_that_are_not_there(layer):
    x = jnp.ones((2, 6, 6, 1) if isinstance(layer, Conv) else (2, 6))
    for mode in (fm.Eval(), train()):
        with pytest.raises(ValueError, match=rf"this {type(layer).__name__} has no \w+ yet.*fm\.init"):
            fm.forward(layer, x, mode)


@pytest.mark.parametrize("layer", [Dense(6, 4), Conv(1, 2), BatchNorm(6), LayerNorm(6)])
def test_input_of_another_type(layer, key):
    x = jnp.ones((2, 6, 6, 1) if isinstance(layer, Conv) else (2, 6), jnp.uint8)
    message = r"has weights of float32, and an input of uint8 came: x\.astype\('float32'\)"
    with pytest.raises(TypeError, match=message):
        filled(layer)(x)
    with jax.numpy_dtype_promotion("standard"):
        assert jax.eval_shape(filled(layer), x).dtype == jnp.float32
    with pytest.raises(TypeError, match=r"Dropout takes floating-point numbers, and uint8 came"):
        fm.forward(Dropout(0.5), x, fm.Train(key))


VALUES = [
    (Dense(0, 4), r"Dense\.in_features must be an integer of at least 1, and 0 came"),
    (Dense(4, -1), r"Dense\.out_features .* -1 came"),
    (Dense(4.0, 1), r"Dense\.in_features .* 4\.0 came"),
    (Conv(0, 4), r"Conv\.in_channels"),
    (Conv(1, 4, kernel_size=0), r"Conv\.kernel_size .* 0 came"),
    (Conv(1, 4, kernel_size=(3, 3, 3)), r"Conv\.kernel_size must be an integer or a pair such as \(3, 3\)"),
    (Conv(1, 4, stride=(1, 0)), r"Conv\.stride .* \(1, 0\) came"),
    (Conv(1, 4, padding="same"), r"Conv\.padding must be 'SAME', 'VALID'.*'same' came"),
    (Conv(1, 4, padding=-1), r"Conv\.padding .* -1 came"),
    (Conv(1, 4, padding=(1, 2, 3)), r"Conv\.padding .* \(1, 2, 3\) came"),
    (Dropout(1.0), r"Dropout\.rate must be at least 0 and below 1, and 1\.0 came"),
    (Dropout(-0.1), r"Dropout\.rate .* -0\.1 came"),
    (Dropout(float("nan")), r"Dropout\.rate .* nan came"),
    (Dropout(jnp.array([0.1, 1.5])), r"Dropout\.rate"),
    (BatchNorm(0), r"BatchNorm\.features"),
    (BatchNorm(4, momentum=1.1), r"BatchNorm\.momentum must be between 0 and 1, and 1\.1 came"),
    (BatchNorm(4, epsilon=0.0), r"BatchNorm\.epsilon must be above 0"),
    (LayerNorm(4, epsilon=-1.0), r"LayerNorm\.epsilon must be above 0"),
    (LayerNorm(0), r"LayerNorm\.features"),
    (MaxPool(0), r"MaxPool\.window"),
    (AvgPool(2, stride=0), r"AvgPool\.stride"),
]


@pytest.mark.parametrize("layer, message", VALUES, ids=lambda v: v if isinstance(v, str) else "")
def test_values_that_make_no_sense(layer, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(layer)


def test_values_at_the_border_are_fine():
    for layer in (
        Dropout(0.0),
        BatchNorm(1, momentum=0.0),
        BatchNorm(1, momentum=1.0),
        Dropout(jnp.array([0.0, 0.9])),
        Dense(1, 1),
    ):
        fm.validate(layer)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Chain(Dense), TypeError, r"a class came as the one of index 0: write Dense\(…\)"),
        (lambda: Chain([Dense(1, 1)]), TypeError, r"by position.*a list came: Chain\(\*layers\)"),
        (
            lambda: Chain(Dense(1, 1), 3),
            TypeError,
            r"Chain takes models and functions, and a int came as the layer of index 1",
        ),
        (lambda: MLP(6), ValueError, r"at least the sizes of its input and its output.*\(6,\) came"),
        (lambda: MLP([6, 3]), TypeError, r"integers by position, MLP\(64, 128, 10\)"),
        (lambda: ConvNet(image_size=1), ValueError, r"ConvNet\.image_size 1 is too small"),
        (lambda: ConvNet(widths=()), ValueError, r"ConvNet\.widths"),
    ],
)
def test_models_that_cannot_be_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
