"""Layers: `Dense`, `Conv`, `Dropout`, `Flatten`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Model, Train, hyper, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import (
    aligned,
    pair,
    promoted,
    require_arrays,
    require_images,
    require_inexact,
    require_last_axis,
)


class Dense(Model):
    """A linear map of the last axis: `(…, in_features)` to `(…, out_features)`.

    `init` draws the weight from a truncated normal distribution of variance 1 / in_features (LeCun, Bottou, Orr and Müller
    1998, "Efficient BackProp") and sets the bias to 0.

    Args:
        in_features, out_features: sizes of the last axis of the input and of the output.
        use_bias: whether to add a bias.
        weight, bias: `(in_features, out_features)` and `(out_features,)`; None before `init`.

    >>> layer = fm.init(fm.models.Dense(64, 10), jax.random.key(0))
    >>> layer(jnp.ones((32, 64))).shape
    (32, 10)
    """

    in_features: int = static(minimum=1)
    out_features: int = static(minimum=1)
    use_bias: bool = True
    weight: jax.Array | None = None
    bias: jax.Array | None = None


@dispatch
def init(layer: Dense, key):
    return _initialized(layer, key, (layer.in_features, layer.out_features))


@dispatch
def forward(layer: Dense, x):
    name = f"Dense({layer.in_features}, {layer.out_features})"
    x = jnp.asarray(x)
    weight, bias = _weights(layer)
    require_last_axis(name, x, layer.in_features)
    return _add_bias(jnp.dot(*promoted(name, x, weight)), bias)


class Conv(Model):
    """A convolution over height and width: `(n, height, width, in_channels)` to `(n, …, …, out_channels)`.

    The kernel is not flipped (a cross-correlation). `init` draws the weight as for `Dense`, of variance
    1 / (in_channels · kernel height · kernel width).

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: an integer, or height and width.
        stride: an integer, or one each for height and width.
        padding: `"SAME"` (with stride 1 the output has the size of the input), `"VALID"` (none), an integer for all sides,
            or for height and width each an integer or a pair (before, after).
        use_bias: whether to add a bias.
        weight, bias: `(kernel height, kernel width, in_channels, out_channels)` and `(out_channels,)`; None before `init`.

    >>> layer = fm.init(fm.models.Conv(1, 32, stride=2), jax.random.key(0))
    >>> layer(jnp.ones((5, 8, 8, 1))).shape
    (5, 4, 4, 32)
    """

    in_channels: int = static(minimum=1)
    out_channels: int = static(minimum=1)
    kernel_size: int | tuple[int, int] = static(minimum=1, default=3)
    stride: int | tuple[int, int] = static(minimum=1, default=1)
    padding: str | int | tuple[int | tuple[int, int], ...] = "SAME"
    use_bias: bool = True
    weight: jax.Array | None = None
    bias: jax.Array | None = None


@dispatch
def validate(layer: Conv):
    _pads(layer, (1, 1))


@dispatch
def init(layer: Conv, key):
    return _initialized(layer, key, (*pair(layer.kernel_size), layer.in_channels, layer.out_channels))


@dispatch
def forward(layer: Conv, x):
    name = f"Conv({layer.in_channels}, {layer.out_channels})"
    x = jnp.asarray(x)
    weight, bias = _weights(layer)
    require_images(name, x, layer.in_channels)
    kernel, sizes = pair(layer.kernel_size), x.shape[1:3]
    pads = _pads(layer, sizes)
    if any(size + sum(pad) < k for size, pad, k in zip(sizes, pads, kernel, strict=True)):
        raise ValueError(
            f"{name} with padding {layer.padding!r} has a kernel of {kernel}, larger than the images, {x.shape}."
        )
    x, weight = promoted(name, x, weight)
    convolved = _by_patches if _are_small(weight) else _by_convolution
    return _add_bias(convolved(x, weight, pair(layer.stride), pads), bias)


def _by_convolution(x: jax.Array, weight: jax.Array, stride: tuple[int, int], pads: list[tuple[int, int]]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, weight, stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_patches(x: jax.Array, weight: jax.Array, stride: tuple[int, int], pads: list[tuple[int, int]]) -> jax.Array:
    """The convolution as one matrix product of all patches and the kernel."""
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    n, *sizes, channels = x.shape
    kernel, out = weight.shape[:2], weight.shape[3]
    counts = [(size - k) // step + 1 for size, k, step in zip(sizes, kernel, stride, strict=True)]

    def shifted(i: int, j: int) -> jax.Array:
        last = [at + (count - 1) * step + 1 for at, count, step in zip((i, j), counts, stride, strict=True)]
        return jax.lax.slice(x, (0, i, j, 0), (n, *last, channels), (1, *stride, 1))

    patches = jnp.concatenate([shifted(i, j) for i in range(kernel[0]) for j in range(kernel[1])], -1)
    return jnp.dot(patches.reshape(-1, patches.shape[-1]), weight.reshape(-1, out)).reshape(n, *counts, out)


def _are_small(weight: jax.Array) -> bool:
    """Whether patches are small compared with the outputs, as in the first layer of a network for images.

    On the CPU their product with the kernel then takes .4 to .9 of the time of XLA's convolution, its gradients .3 to .8.
    """
    *patch, out = weight.shape
    return jax.default_backend() == "cpu" and math.prod(patch) <= 2 * out


def _pads(layer: Conv, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding (before, after) for height and width."""
    if isinstance(layer.padding, str):
        if layer.padding in ("SAME", "VALID"):
            return list(jax.lax.padtype_to_pads(sizes, pair(layer.kernel_size), pair(layer.stride), layer.padding))
    else:
        pads = [pair(side) for side in pair(layer.padding)]
        if [len(pad) for pad in pads] == [2, 2] and all(isinstance(n, int) and n >= 0 for pad in pads for n in pad):
            return pads
    raise ValueError(
        f"Conv.padding must be 'SAME', 'VALID', an integer of at least 0, or for height and width each an integer or a pair, "
        f"such as ((1, 1), (2, 2)), got {layer.padding!r}."
    )


def _initialized(layer: Dense | Conv, key: jax.Array, shape: tuple[int, ...]) -> Any:
    weight = jax.nn.initializers.lecun_normal()(key, shape)
    return remake(layer, {"weight": weight, "bias": jnp.zeros(shape[-1]) if layer.use_bias else None})


def _weights(layer: Dense | Conv) -> list[Any]:
    return require_arrays(layer, "weight", "bias") if layer.use_bias else [*require_arrays(layer, "weight"), None]


def _add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    return y if bias is None else y + aligned(bias.astype(y.dtype), y.ndim)


class Dropout(Model):
    """In training, sets each number to 0 with probability `rate` and divides the others by 1 − rate.

    Outside training it is the identity. Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov 2014, "Dropout: a
    simple way to prevent neural networks from overfitting". The mask follows from the mode's key and the layer's path.

    Args:
        rate: in [0, 1): a hyperparameter.

    >>> drop = fm.models.Dropout(0.5)
    >>> drop(jnp.ones(3))
    Array([1., 1., 1.], dtype=float32)
    >>> sorted(set(fm.forward(drop, jnp.ones(100), fm.Train(jax.random.key(0))).tolist()))
    [0.0, 2.0]
    """

    rate: float = hyper(minimum=0, below=1)


@dispatch
def forward(layer: Dropout, x):
    return x


@dispatch
def forward(layer: Dropout, x, mode: Train):
    x = jnp.asarray(x)
    require_inexact("Dropout", x)
    keep = 1 - layer.rate
    kept = jax.random.bernoulli(mode.key, keep, x.shape)
    return jnp.where(kept, x * jnp.asarray(1 / keep).astype(x.dtype), jnp.zeros((), x.dtype))


class Flatten(Model):
    """Reshapes each example to a vector: `(n, …)` to `(n, features)`.

    >>> fm.models.Flatten()(jnp.ones((5, 4, 4, 2))).shape
    (5, 32)
    """


@dispatch
def forward(layer: Flatten, x):
    x = jnp.asarray(x)
    if x.ndim == 0:
        raise ValueError("Flatten takes (n, …), with examples along the first axis, got a single number.")
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
