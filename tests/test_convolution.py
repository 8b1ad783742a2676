"""Convolutions in one to three dimensions, transposed ones and upsampling, against NumPy and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import close, filled

import fulmen as fm
from fulmen.models import Conv, ConvTranspose, Upsample


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def correlated(x, weight, stride, dilation, groups):
    """The cross-correlation of padded inputs."""
    n = x.ndim - 2
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape, dilation, strict=False)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, range(1, n + 1))  # (n, *sizes, channels, *reach)
    windows = windows[(slice(None), *(slice(None, None, s) for s in stride))]
    windows = windows[(..., *(slice(None, None, d) for d in dilation))]
    inputs, outputs = np.split(windows, groups, n + 1), np.split(weight, groups, -1)
    axes = [*range(n + 2, 2 * n + 2), n + 1]
    return np.concatenate([np.tensordot(a, b, (axes, range(n + 1))) for a, b in zip(inputs, outputs, strict=True)], -1)


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((9,), dict(kernel_size=3, stride=2, dilation=2)),
        ((9,), dict(kernel_size=(2,), groups=2)),
        ((7, 8), dict(kernel_size=(2, 3), dilation=(2, 1), stride=(1, 2))),
        ((7, 8), dict(kernel_size=3, groups=4, dilation=2)),
        ((4, 5, 6), dict(kernel_size=(1, 2, 3), stride=(2, 1, 1))),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [4, 64], ids=["by XLA", "by patches"])
def test_conv_is_a_cross_correlation(sizes, options, channels):
    n, padding = len(sizes), tuple((i, 1) for i in range(len(sizes)))
    layer = Conv(4, channels, padding=padding, dimensions=n, **options)
    fm.validate(layer)
    weight = numbers(*jax.eval_shape(fm.init, layer, jax.random.key(0)).weight.shape)
    layer = fm.replace(layer, weight=jnp.asarray(weight), bias=jnp.arange(float(channels)))
    x = numbers(2, *sizes, 4)
    per_axis = lambda v: v if isinstance(v, tuple) else (v,) * n
    stride, dilation = per_axis(options.get("stride", 1)), per_axis(options.get("dilation", 1))
    expected = correlated(np.pad(x, ((0, 0), *padding, (0, 0))), weight, stride, dilation, options.get("groups", 1))
    close(layer(x), expected + np.arange(channels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
@pytest.mark.parametrize("dimensions, kernel, stride", [(1, 4, 2), (2, (3, 2), (1, 2)), (3, 2, 2)])
def test_conv_transpose_is_the_gradient_of_conv(dimensions, kernel, stride, padding):
    layer = ConvTranspose(3, 5, kernel, stride, padding, use_bias=False, dimensions=dimensions)
    fm.validate(layer)
    weight = numbers(*jax.eval_shape(fm.init, layer, jax.random.key(0)).weight.shape)
    x = jnp.asarray(numbers(2, *(3, 4, 2)[:dimensions], 3))
    y = fm.replace(layer, weight=jnp.asarray(weight))(x)
    there = Conv(5, 3, kernel, stride, padding, use_bias=False, dimensions=dimensions)
    there = fm.replace(there, weight=jnp.asarray(np.swapaxes(weight, -1, -2)))
    close(y, jax.linear_transpose(there, jax.ShapeDtypeStruct(y.shape, y.dtype))(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 3), (2, 2), (3, 2)])
def test_a_transposed_convolution_without_padding_has_the_same_size_however_it_is_written(kernel, stride, key):
    layer = fm.init(ConvTranspose(2, 3, kernel, stride, padding="VALID", dimensions=1), key)
    x = jax.random.normal(key, (2, 5, 2))
    assert layer(x).shape == (2, 4 * stride + kernel, 3)
    np.testing.assert_allclose(layer(x), fm.replace(layer, padding=0)(x), rtol=1e-5, atol=1e-6)


def test_conv_transpose_keeps_the_variance(key):
    layer = fm.init(ConvTranspose(64, 32, 4, 2), key)
    y = layer(jax.random.normal(key, (8, 8, 8, 64)))
    assert y.shape == (8, 16, 16, 32) and float(y.std()) == pytest.approx(1, abs=0.15)


def test_conv_with_groups_is_initialized_by_its_inputs(key):
    weight = fm.init(Conv(64, 64, groups=64), key).weight
    assert weight.shape == (3, 3, 1, 64)
    assert float(weight.std()) * math.sqrt(9) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 3, 4, 2), (1, 2, 2, 2, 1)], ids=str)
def test_upsample_repeats_or_interpolates(shape):
    x = numbers(*shape)
    expected = x
    for axis in range(1, x.ndim - 1):
        expected = expected.repeat(3, axis)
    close(Upsample(3)(x), expected)
    smooth = np.asarray(Upsample(3, "linear")(x))
    middle = (slice(None), *(slice(1, None, 3),) * (x.ndim - 2))
    close(smooth[middle], x)  # the centres keep their values
    assert smooth.min() >= x.min() - 1e-6 and smooth.max() <= x.max() + 1e-6


@pytest.mark.parametrize(
    "layer, error",
    [
        (Conv(1, 4, kernel_size=(3, 3, 3)), r"Conv\.kernel_size must be an integer or 2 of them.*dimensions=3"),
        (Conv(1, 4, dilation=(1,)), r"Conv\.dilation must be an integer or 2 of them.*dimensions=1"),
        (Conv(3, 4, groups=2), r"Conv\.groups must divide .* got 2 groups for 3 and 4"),
        (Conv(1, 4, padding=((1, 1),), dimensions=3), r"Conv\.padding .* 3 dimensions"),
        (Conv(1, 4, dimensions=4), r"Conv\.dimensions"),
        (ConvTranspose(1, 4, 3, padding=3), r"ConvTranspose\.padding .* from 0 to 2"),
        (ConvTranspose(1, 4, (2, 2, 2)), r"ConvTranspose\.kernel_size must be an integer or 2"),
        (Upsample(2, "cubic"), r"Upsample\.method"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(layer, error):
    with pytest.raises(ValueError, match=error):
        fm.validate(layer)


@pytest.mark.parametrize("layer", [Conv(4, 2, dimensions=1), ConvTranspose(4, 2, dimensions=1)])
def test_inputs_of_other_dimensions_are_refused(layer):
    with pytest.raises(ValueError, match=r"takes \(n, length, 4\), got \(2, 5, 5, 4\)"):
        filled(layer)(jnp.ones((2, 5, 5, 4)))
