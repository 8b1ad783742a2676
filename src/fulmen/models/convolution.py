"""Convolutions in one, two and three dimensions: `Conv`, `ConvTranspose`; and `Upsample`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Model, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import pair, promoted, require_grid, require_inexact
from fulmen.models.layers import add_bias, initialized, weights


class Convolution(Model):
    """A kernel that moves along the axes between the first and the last."""

    in_channels: int = static(minimum=1)
    out_channels: int = static(minimum=1)
    kernel_size: int | tuple[int, ...] = static(minimum=1, default=3)
    stride: int | tuple[int, ...] = static(minimum=1, default=1)
    padding: str | int = "SAME"
    use_bias: bool = True
    weight: jax.Array | None = None
    bias: jax.Array | None = None
    dimensions: int = static(minimum=1, maximum=3, default=2, kw_only=True)


class Conv(Convolution):
    """A convolution over the axes between the first and the last: `(n, height, width, in_channels)` to `(n, …, …, out_channels)`.

    With `dimensions=1` it is for sequences `(n, length, channels)`, with 3 for volumes. The kernel is not flipped (a
    cross-correlation). `init` draws the weight as for `Dense`, of variance 1 / (in_channels / groups · kernel size).

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: an integer, or one for each dimension.
        stride: an integer, or one for each dimension.
        padding: `"SAME"` (with stride 1 the output has the size of the input), `"VALID"` (none), an integer for all sides,
            or for each dimension an integer or a pair (before, after).
        use_bias: whether to add a bias.
        weight, bias: `(kernel height, kernel width, in_channels / groups, out_channels)` and `(out_channels,)`; None before
            `init`.
        dilation: the distance between neighbouring inputs of a kernel, an integer or one for each dimension.
        groups: the channels are split into so many groups, and each output depends on one of them; `in_channels` makes the
            convolution depthwise.
        dimensions: the number of axes that the kernel moves along.

    >>> layer = fm.init(fm.models.Conv(1, 32, stride=2), jax.random.key(0))
    >>> layer(jnp.ones((5, 8, 8, 1))).shape
    (5, 4, 4, 32)
    >>> sequences = fm.init(fm.models.Conv(4, 8, dimensions=1, dilation=2), jax.random.key(0))
    >>> sequences(jnp.ones((5, 100, 4))).shape
    (5, 100, 8)
    """

    padding: str | int | tuple[int | tuple[int, int], ...] = "SAME"  # type: ignore[assignment]  # wider than the base class's
    dilation: int | tuple[int, ...] = static(minimum=1, default=1, kw_only=True)
    groups: int = static(minimum=1, default=1, kw_only=True)


class ConvTranspose(Convolution):
    """A transposed convolution, which enlarges: `(n, height, width, in_channels)` to `(n, …, …, out_channels)`.

    Each input adds its multiple of the kernel to the output, `stride` apart: the gradient of a `Conv` with respect to its
    input (Zeiler et al. 2010, "Deconvolutional networks"). `init` draws the weight with the variance
    stride / (in_channels · kernel size), since each output has so many terms on average.

    Args:
        in_channels, out_channels, stride, use_bias, dimensions: as in `Conv`.
        kernel_size: an integer, or one for each dimension. A multiple of the stride avoids a checkerboard pattern.
        padding: `"SAME"` (the output is `stride` times as large), `"VALID"` (all that the kernels reach, `(size - 1) · stride +
            kernel_size`), or an integer, which is cut off on all sides of that, as in PyTorch.
        weight, bias: `(kernel height, kernel width, in_channels, out_channels)` and `(out_channels,)`; None before `init`.

    >>> layer = fm.init(fm.models.ConvTranspose(8, 4, kernel_size=4, stride=2), jax.random.key(0))
    >>> layer(jnp.ones((5, 8, 8, 8))).shape
    (5, 16, 16, 4)
    """


class Upsample(Model):
    """Enlarges images, sequences or volumes, `(n, height, width, channels)` to `(n, factor · height, factor · width, channels)`.

    Args:
        factor: an integer; all axes between the first and the last get `factor` times as long.
        method: `"nearest"` repeats each value, `"linear"` interpolates between the centres of the values.

    >>> fm.models.Upsample(2)(jnp.arange(2.0).reshape(1, 2, 1)).ravel()
    Array([0., 0., 1., 1.], dtype=float32)
    """

    factor: int = static(minimum=1, default=2)
    method: str = static(choices=("nearest", "linear"), default="nearest")


@dispatch
def validate(layer: Conv):
    _require_lengths(layer, "kernel_size", "stride", "dilation")
    _pads(layer, (1,) * layer.dimensions)
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise ValueError(
            f"Conv.groups must divide in_channels and out_channels, got {layer.groups} groups for {layer.in_channels} and "
            f"{layer.out_channels} channels."
        )


@dispatch
def validate(layer: ConvTranspose):
    _require_lengths(layer, "kernel_size", "stride")
    _transposed_pads(layer)


def _require_lengths(layer: Convolution, *names: str) -> None:
    for name in names:
        value, n = getattr(layer, name), layer.dimensions
        if isinstance(value, tuple) and len(value) != n:
            hint = f"; for {len(value)} dimensions write dimensions={len(value)}." if len(value) in (1, 2, 3) else "."
            raise ValueError(f"{type(layer).__name__}.{name} must be an integer or {n} of them, got {value}{hint}")


@dispatch
def init(layer: Conv, key):
    kernel = _per_axis(layer, layer.kernel_size)
    return initialized(layer, key, (*kernel, layer.in_channels // layer.groups, layer.out_channels))


@dispatch
def init(layer: ConvTranspose, key):
    kernel, stride = _per_axis(layer, layer.kernel_size), _per_axis(layer, layer.stride)
    drawn = initialized(layer, key, (*kernel, layer.in_channels, layer.out_channels))
    return remake(drawn, {"weight": drawn.weight * math.prod(stride) ** 0.5})


def _checked(layer: Convolution, x: Any) -> tuple[str, jax.Array, Any, Any]:
    """The layer in words, its inputs, its weight and its bias."""
    name, x = f"{type(layer).__name__}({layer.in_channels}, {layer.out_channels})", jnp.asarray(x)
    weight, bias = weights(layer)
    require_grid(name, x, layer.in_channels, layer.dimensions)
    return name, x, weight, bias


@dispatch
def forward(layer: Conv, x):
    name, x, weight, bias = _checked(layer, x)
    kernel, stride, dilation = (_per_axis(layer, v) for v in (layer.kernel_size, layer.stride, layer.dilation))
    pads = _pads(layer, x.shape[1:-1])
    reach = _reach(kernel, dilation)
    if any(size + sum(pad) < k for size, pad, k in zip(x.shape[1:-1], pads, reach, strict=True)):
        raise ValueError(
            f"{name} with padding {layer.padding!r} has a kernel of {reach}, larger than the inputs, {x.shape}."
        )
    x, weight = promoted(name, x, weight)
    if layer.groups == 1 and _are_small(weight):
        return add_bias(_by_patches(x, weight, stride, pads, dilation), bias)
    numbers = _numbers(layer)
    y = jax.lax.conv_general_dilated(
        x, weight, stride, pads, rhs_dilation=dilation, dimension_numbers=numbers, feature_group_count=layer.groups
    )
    return add_bias(y, bias)


@dispatch
def forward(layer: ConvTranspose, x):
    name, x, weight, bias = _checked(layer, x)
    x, weight = promoted(name, x, weight)
    stride, pads = _per_axis(layer, layer.stride), _transposed_pads(layer)
    if weight.shape[: layer.dimensions] == stride and isinstance(layer.padding, str):
        return add_bias(_side_by_side(x, weight), bias)
    flipped = jnp.flip(weight, range(layer.dimensions))
    y = jax.lax.conv_transpose(x, flipped, stride, pads, dimension_numbers=_numbers(layer))
    return add_bias(y, bias)


@dispatch
def forward(layer: Upsample, x):
    x = jnp.asarray(x)
    if x.ndim < 3:
        raise ValueError(
            f"Upsample takes images (n, height, width, channels) or sequences (n, length, channels), got {x.shape}."
        )
    if layer.method == "nearest":
        for axis in range(1, x.ndim - 1):
            x = jnp.repeat(x, layer.factor, axis)
        return x
    require_inexact("Upsample", x)
    larger = (x.shape[0], *(layer.factor * size for size in x.shape[1:-1]), x.shape[-1])
    return jax.image.resize(x, larger, "linear").astype(x.dtype)


def _side_by_side(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The transposed convolution of a kernel as large as the stride: the multiples do not overlap.

    On the CPU its gradients then take a fifth of the time of XLA's convolution.
    """
    n = x.ndim - 2
    kernel, out = weight.shape[:n], weight.shape[-1]
    multiples = jnp.tensordot(x, weight, (-1, -2))  # (n, *sizes, *kernel, out)
    axes = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 1 + 2 * n]
    sizes = [size * k for size, k in zip(x.shape[1:-1], kernel, strict=True)]
    return multiples.transpose(axes).reshape(x.shape[0], *sizes, out)


def _per_axis(layer: Convolution, value: Any) -> tuple[Any, ...]:
    """One value for each dimension."""
    return value if isinstance(value, tuple) else (value,) * layer.dimensions


def _reach(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a dilated kernel."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def _numbers(layer: Convolution) -> tuple[str, str, str]:
    """The dimension numbers of `jax.lax`: batch axis first, channels last."""
    axes = "DHW"[3 - layer.dimensions :]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _by_patches(x: jax.Array, weight: jax.Array, stride: Any, pads: list[tuple[int, int]], dilation: Any) -> jax.Array:
    """The convolution as one matrix product of all patches and the kernel."""
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    kernel, out = weight.shape[:-2], weight.shape[-1]
    # One axis after another: a loop over all positions in the kernel at once takes twice as long to compile.
    for axis, (reach, size, step, distance) in enumerate(
        zip(_reach(kernel, dilation), kernel, stride, dilation, strict=True), 1
    ):
        last = x.shape[axis] - reach
        shifted = [jax.lax.slice_in_dim(x, at, at + last + 1, step, axis) for at in range(0, size * distance, distance)]
        x = jnp.stack(shifted, -2)
    patches = x.reshape(-1, weight[..., 0].size)
    return jnp.dot(patches, weight.reshape(-1, out)).reshape(*x.shape[: 1 + len(kernel)], out)


def _are_small(weight: jax.Array) -> bool:
    """Whether patches are small compared with the outputs, as in the first layer of a network for images.

    On the CPU their product with the kernel then takes .4 to .9 of the time of XLA's convolution, its gradients .3 to .8.
    """
    *patch, out = weight.shape
    return jax.default_backend() == "cpu" and math.prod(patch) <= 2 * out


def _pads(layer: Conv, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding (before, after) for each dimension."""
    if isinstance(layer.padding, str):
        if layer.padding in ("SAME", "VALID"):
            reach = _reach(*(_per_axis(layer, v) for v in (layer.kernel_size, layer.dilation)))
            return list(jax.lax.padtype_to_pads(sizes, reach, _per_axis(layer, layer.stride), layer.padding))
    else:
        pads = [pair(side) for side in _per_axis(layer, layer.padding)]
        sized = len(pads) == layer.dimensions and all(len(pad) == 2 for pad in pads)
        if sized and all(isinstance(n, int) and n >= 0 for pad in pads for n in pad):
            return pads  # type: ignore[return-value]
    raise ValueError(
        f"Conv.padding must be 'SAME', 'VALID', an integer of at least 0, or for each of the {layer.dimensions} dimensions an "
        f"integer or a pair, such as {((1, 1), (2, 2), (0, 0))[: layer.dimensions]}, got {layer.padding!r}."
    )


def _transposed_pads(layer: ConvTranspose) -> Any:
    if layer.padding == "SAME":
        return layer.padding
    kernel = _per_axis(layer, layer.kernel_size)
    if layer.padding == "VALID":  # JAX's makes the outputs larger where the kernel is smaller than the stride
        return [(k - 1,) * 2 for k in kernel]
    if isinstance(layer.padding, int) and 0 <= layer.padding < min(kernel):
        return [(k - 1 - layer.padding,) * 2 for k in kernel]
    raise ValueError(
        f"ConvTranspose.padding must be 'SAME', 'VALID' or an integer from 0 to {min(kernel) - 1}, less than the kernel's size, "
        f"got {layer.padding!r}."
    )
