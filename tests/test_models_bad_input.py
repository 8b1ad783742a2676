"""Fields and inputs that a layer cannot take: each error speaks of the layer, and says what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import filled, train

import fulmen as fm
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
    GlobalAvgPool,
    LayerNorm,
    MaxPool,
)

INPUTS = {
    "wrong size": (Dense(64, 10), (32, 60), r"^Dense\(64, 10\) takes \(…, 64\), got \(32, 60\)\.$"),
    "a number": (Dense(64, 10), (), r"Dense\(64, 10\) takes \(…, 64\), got \(\)"),
    "images for Dense": (Dense(64, 10), (32, 8, 8), r"got \(32, 8, 8\); fm\.models\.Flatten\(\)"),
    "inside a chain": (MLP(6, 4, 3), (2, 5), r"Dense\(6, 4\) takes \(…, 6\), got \(2, 5\)"),
    "no channel axis": (
        Conv(1, 4),
        (32, 8, 8),
        r"Conv\(1, 4\) takes images .*, 1\), got \(32, 8, 8\).*x\[\.\.\., None\]",
    ),
    "no channel axis, three": (Conv(3, 4), (32, 8, 8), r"channel axis is missing.*x\[\.\.\., None\]"),
    "no batch axis": (Conv(3, 4), (8, 8, 3), r"batch axis, x\[None\]"),
    "flat images": (Conv(1, 4), (32, 64), r"x\.reshape\(-1, height, width, 1\)"),
    "channels first": (Conv(3, 4), (2, 3, 8, 8), r"channels must be the last axis, jnp\.moveaxis\(x, 1, -1\)"),
    "other channels": (
        Conv(3, 4),
        (2, 8, 8, 4),
        r"Conv\(3, 4\) takes images \(n, height, width, 3\), got \(2, 8, 8, 4\)\.$",
    ),
    "small images": (
        Conv(1, 4, 3, padding="VALID"),
        (2, 2, 8, 1),
        r"kernel of \(3, 3\), larger than the inputs, \(2, 2, 8, 1\)",
    ),
    "pooling a vector": (MaxPool(2), (2, 8), r"MaxPool\(2\) takes images \(n, height, width, channels\), got \(2, 8\)"),
    "pooling little": (AvgPool(3), (2, 2, 8, 1), r"AvgPool\(3\) takes images of at least 3 × 3, got \(2, 2, 8, 1\)"),
    "pooling all": (GlobalAvgPool(), (2, 8, 8), r"channel axis is missing"),
    "flattening nothing": (Flatten(), (), r"Flatten takes \(n, …\)"),
    "batch norm": (BatchNorm(4), (2, 3), r"BatchNorm\(4\) takes \(…, 4\), got \(2, 3\)"),
    "layer norm": (LayerNorm(4), (2, 3), r"LayerNorm\(4\) takes \(…, 4\), got \(2, 3\)"),
}


@pytest.mark.parametrize("name", list(INPUTS))
def test_input_of_the_wrong_shape(name):
    layer, shape, message = INPUTS[name]
    with pytest.raises(ValueError, match=message):
        filled(layer)(np.ones(shape, np.float32))


def test_batch_norm_of_one_example(key):
    norm = fm.init(BatchNorm(4), key)
    assert norm(jnp.ones((1, 4))).shape == (1, 4)
    with pytest.raises(ValueError, match=r"at least two values per feature in training, got shape \(1, 4\).*drop_last"):
        fm.forward(norm, jnp.ones((1, 4)), fm.Train(key))


@pytest.mark.parametrize("layer", [Dense(6, 4), Conv(1, 2), BatchNorm(6), LayerNorm(6)])
def test_missing_arrays(layer):
    x = jnp.ones((2, 6, 6, 1) if isinstance(layer, Conv) else (2, 6))
    for mode in (fm.Eval(), train()):
        with pytest.raises(ValueError, match=rf"this {type(layer).__name__} has no \w+ yet.*fm\.init"):
            fm.forward(layer, x, mode)


@pytest.mark.parametrize("layer", [Dense(6, 4), Conv(1, 2), BatchNorm(6), LayerNorm(6)])
def test_input_of_the_wrong_type(layer, key):
    x = jnp.ones((2, 6, 6, 1) if isinstance(layer, Conv) else (2, 6), jnp.uint8)
    message = r"has weights of float32, got an input of uint8: write x\.astype\('float32'\)"
    with pytest.raises(TypeError, match=message):
        filled(layer)(x)
    with jax.numpy_dtype_promotion("standard"):
        assert jax.eval_shape(filled(layer), x).dtype == jnp.float32
    with pytest.raises(TypeError, match=r"Dropout takes floating-point numbers, got uint8"):
        fm.forward(Dropout(0.5), x, fm.Train(key))


VALUES = [
    (Dense(0, 4), r"Dense\.in_features must be at least 1, got 0"),
    (Dense(4, -1), r"Dense\.out_features .* got -1"),
    (Conv(0, 4), r"Conv\.in_channels"),
    (Conv(1, 4, kernel_size=0), r"Conv\.kernel_size .* got 0"),
    (Conv(1, 4, stride=(1, 0)), r"Conv\.stride must be at least 1, got 0"),
    (Conv(1, 4, padding="same"), r"Conv\.padding must be 'SAME', 'VALID'.*got 'same'"),
    (Conv(1, 4, padding=-1), r"Conv\.padding .* got -1"),
    (Conv(1, 4, padding=(1, 2, 3)), r"Conv\.padding .* got \(1, 2, 3\)"),
    (Dropout(1.0), r"Dropout\.rate must be at least 0 and below 1, got 1"),
    (Dropout(-0.1), r"Dropout\.rate .* got -0\.1"),
    (Dropout(float("nan")), r"Dropout\.rate .* got nan"),
    (Dropout(jnp.array([0.1, 1.5])), r"Dropout\.rate .* got 1.5 in"),
    (BatchNorm(0), r"BatchNorm\.features"),
    (BatchNorm(4, momentum=1.1), r"BatchNorm\.momentum must be between 0 and 1, got 1\.1"),
    (BatchNorm(4, epsilon=0.0), r"BatchNorm\.epsilon must be above 0"),
    (LayerNorm(4, epsilon=-1.0), r"LayerNorm\.epsilon must be above 0"),
    (LayerNorm(0), r"LayerNorm\.features"),
    (MaxPool(0), r"MaxPool\.window"),
    (AvgPool(2, stride=0), r"AvgPool\.stride"),
    (MaxPool(2, padding=2), r"MaxPool\.padding must be less than the window"),
]


@pytest.mark.parametrize("layer, message", VALUES, ids=lambda v: v if isinstance(v, str) else "")
def test_field_values_out_of_range(layer, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(layer)


@pytest.mark.parametrize(
    "layer, message",
    [
        (Dense(4.0, 1), r"Dense\.in_features must be an integer, got 4\.0"),
        (Dense(4, True), r"Dense\.out_features must be an integer, got True"),
        (Conv(1, 4, use_bias="no"), r"Conv\.use_bias must be True or False, got 'no'"),
        (Dropout("0.1"), r"Dropout\.rate must be a number, got '0\.1'"),
    ],
)
def test_field_values_of_the_wrong_type(layer, message):
    with pytest.raises(TypeError, match=message):
        fm.validate(layer)


def test_values_at_the_limits_are_valid():
    for layer in (
        Dropout(0.0),
        BatchNorm(1, momentum=0.0),
        BatchNorm(1, momentum=1.0),
        Dropout(jnp.array([0.0, 0.9])),
        Dense(1, 1),
        ConvNet(1, np.arange(3).max() + 1),
    ):
        fm.validate(layer)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Chain(Dense), TypeError, r"got a class at index 0: write Dense\(…\)"),
        (lambda: Chain([Dense(1, 1)]), TypeError, r"by position.*got a list: write Chain\(\*layers\)"),
        (
            lambda: Chain(Dense(1, 1), 3),
            TypeError,
            r"Chain takes models and functions, got 3 at index 1",
        ),
        (lambda: MLP(6), ValueError, r"at least the sizes of its input and its output.*got \(6,\)"),
        (lambda: MLP([6, 3]), TypeError, r"integers by position, such as MLP\(64, 128, 10\).*write MLP\(6, 3\)"),
        (lambda: ConvNet(image_size=1), ValueError, r"ConvNet\.image_size 1 is too small"),
        (lambda: ConvNet(widths=()), ValueError, r"ConvNet\.widths"),
        (
            lambda: ConvNet(1, (16, 32), 10),
            TypeError,
            r"ConvNet\(1, 10, \(32, 64\)\).*got classes \(16, 32\) and widths 10",
        ),
    ],
)
def test_invalid_constructor_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
