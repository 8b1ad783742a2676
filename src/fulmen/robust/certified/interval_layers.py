"""Interval bounds of the layers: linear maps, pooling, residual blocks, activations, and normalizations in evaluation."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Train, remake
from fulmen.core.verbs import forward
from fulmen.dispatching.registry import dispatch
from fulmen.models.chain import Function
from fulmen.models.convolution import Conv, ConvTranspose, Upsample
from fulmen.models.input_checks import aligned, pair
from fulmen.models.input_normalization import Normalized, broadcast
from fulmen.models.layers import Dense, Dropout, Flatten
from fulmen.models.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from fulmen.models.pooling import AvgPool, GlobalAvgPool, MaxPool
from fulmen.models.resnet import BasicBlock, Bottleneck
from fulmen.robust.certified.interval import Interval, MissingBoundsError, no_bounds_in_training, rounding_error


def centred(x: Interval) -> tuple[jax.Array, jax.Array]:
    """The centre of an interval, and a radius that reaches both bounds in spite of rounding."""
    centre = 0.5 * x.lower + 0.5 * x.upper
    reach = jnp.maximum(x.upper - centre, centre - x.lower)
    return centre, reach * (1 + 2 * float(jnp.finfo(x.dtype).eps))


@dispatch
def forward(layer: Dense | Conv | ConvTranspose, x: Interval):
    centre, radius = centred(x)
    middle = forward(layer, centre)
    absolute = jnp.abs(layer.weight)  # type: ignore[arg-type]
    spread = forward(remake(layer, {"weight": absolute, "bias": None, "use_bias": False}), radius)
    axes = tuple(range(1 - absolute.ndim, 0))  # those that the layer sums over
    sums = jax.lax.stop_gradient(absolute.sum(range(absolute.ndim - 1)))
    size = x.magnitude.max(axes, keepdims=True) * aligned(sums, middle.ndim)
    if layer.bias is not None:
        size = size + aligned(jnp.abs(layer.bias), middle.ndim)
    slack = rounding_error(absolute.size // absolute.shape[-1], middle.dtype) * size
    return Interval(middle - spread, middle + spread).widened(slack)


@dispatch
def forward(layer: MaxPool | Flatten, x: Interval):
    return x.map(lambda v: forward(layer, v))


@dispatch
def forward(layer: Upsample, x: Interval):
    found = x.map(lambda v: forward(layer, v))
    if layer.method == "nearest":
        return found
    terms = 2 ** (x.ndim - 2)  # with weights of at most 1, which are rounded too
    return found.widened(2 * rounding_error(terms, x.dtype) * forward(layer, x.magnitude))


@dispatch
def forward(layer: AvgPool, x: Interval):
    return _bounds_of_means(layer, x, math.prod(pair(layer.window)))


@dispatch
def forward(layer: GlobalAvgPool, x: Interval):
    return _bounds_of_means(layer, x, math.prod(x.shape[1:3]))


def _bounds_of_means(layer: Any, x: Interval, terms: int) -> Interval:
    found = x.map(lambda v: forward(layer, v))
    # The mean of the magnitudes, not the magnitude of the means: terms may cancel.
    return found.widened(rounding_error(terms, x.dtype) * forward(layer, x.magnitude))


@dispatch
def forward(layer: Dropout, x: Interval, mode: Train):
    raise no_bounds_in_training(layer)


@dispatch
def forward(block: BasicBlock | Bottleneck, x: Interval):
    return (forward(block.inner, x) + forward(block.shortcut, x)).map(jax.nn.relu)


@dispatch
def forward(net: Normalized, x: Interval):
    mean, std = (broadcast(net, name, x.lower) for name in ("mean", "std"))
    found = x.map(lambda v: (v - mean) / std)
    size = (x.magnitude + jnp.abs(mean)) / std
    return forward(net.model, found.widened(rounding_error(2, x.dtype) * size))


# Activations

EXACT = (jax.nn.relu, jax.nn.relu6, jax.nn.hard_tanh, jax.nn.leaky_relu, jax.nn.identity)
"""Functions that do not decrease, and whose computed values do not either."""

INCREASING = (
    jax.nn.celu,
    jax.nn.elu,
    jax.nn.log_sigmoid,
    jax.nn.selu,
    jax.nn.sigmoid,
    jax.nn.softplus,
    jnp.tanh,
    jax.nn.tanh,
)
"""Functions that do not decrease, computed with rounding errors. Their absolute values are at most 2 + 2 |x|."""

LOWEST = {jax.nn.gelu: -0.7524614220710162, jax.nn.silu: -1.278464542761074}
"""Functions that decrease up to this argument and increase after it."""


@dispatch
def forward(layer: Function, x: Interval):
    function: Callable[..., Any] = layer.function
    if function in EXACT:
        return x.map(function)
    slack = 32 * float(jnp.finfo(x.dtype).eps) * (1 + x.magnitude)
    if function in INCREASING:
        return x.map(function).widened(slack)
    if function not in LOWEST:
        name = getattr(function, "__name__", repr(function))
        raise MissingBoundsError(
            f"`forward(Function, Interval)`: the bounds of the function `{name}` are not known. Make it a layer of its own type, "
            f"with two methods:\n\n    class Mine(fm.Model): …\n\n    @dispatch\n    def forward(mine: Mine, x): return {name}(x)\n\n"
            "    @dispatch\n    def forward(mine: Mine, x: fm.Interval): …"
        )
    lowest = LOWEST[function]
    ends = function(x.lower), function(x.upper)
    lower = function(jnp.clip(jnp.full_like(x.lower, lowest), x.lower, x.upper))
    return Interval(lower, jnp.maximum(*ends)).widened(slack)


# Normalizations


@dispatch
def forward(layer: BatchNorm, x: Interval):
    ends = forward(layer, x.lower), forward(layer, x.upper)  # a scale may be negative
    arrays: Any = (layer.mean.value, layer.variance.value, layer.weight, layer.bias)  # type: ignore[union-attr]
    mean, variance, weight, bias = (jnp.abs(aligned(v.astype(x.dtype), x.ndim)) for v in arrays)
    size = (x.magnitude + mean) * weight * jax.lax.rsqrt(variance + jnp.asarray(layer.epsilon).astype(x.dtype)) + bias
    slack = 16 * float(jnp.finfo(x.dtype).eps) * size
    return Interval(jnp.minimum(*ends), jnp.maximum(*ends)).widened(slack)


@dispatch
def forward(layer: BatchNorm, x: Interval, mode: Train):
    raise no_bounds_in_training(layer)


@dispatch
def forward(layer: LayerNorm, x: Interval):
    return _scaled(layer, _standardized(x, (-1,), layer.epsilon, True))


@dispatch
def forward(layer: RMSNorm, x: Interval):
    return _scaled(layer, _standardized(x, (-1,), layer.epsilon, False))


@dispatch
def forward(layer: GroupNorm, x: Interval):
    groups = x.map(lambda v: v.reshape(v.shape[0], -1, layer.groups, layer.features // layer.groups))
    return _scaled(layer, _standardized(groups, (1, 3), layer.epsilon, True).map(lambda v: v.reshape(x.shape)))


def _standardized(x: Interval, axes: tuple[int, ...], epsilon: Any, centre: bool) -> Interval:
    """Bounds of each number minus the mean over some axes, divided by the standard deviation.

    Numerator and denominator are bounded separately, which is loose: their dependence is used only in that no number is larger
    than √n, where n is the number of terms. Unless `centre`, no mean is subtracted.
    """
    n = math.prod(x.shape[axis] for axis in axes)
    error, epsilon = rounding_error(n, x.dtype), jnp.asarray(epsilon).astype(x.dtype)
    if centre:
        own = (x.upper - x.lower) / n  # a number's own share of the mean does not vary separately
        low, high = x.lower.mean(axes, keepdims=True), x.upper.mean(axes, keepdims=True)
        centred = Interval(x.lower - high + own, x.upper - low - own)
        x = centred.widened(error * x.magnitude.max(axes, keepdims=True))
    ends = x.lower * x.lower, x.upper * x.upper
    least = jnp.where((x.lower <= 0) & (x.upper >= 0), 0, jnp.minimum(*ends)).mean(axes, keepdims=True)
    most = jnp.maximum(*ends).mean(axes, keepdims=True)
    largest = jax.lax.rsqrt(least * (1 - error) + epsilon) * (1 + error)
    smallest = jax.lax.rsqrt(most * (1 + error) + epsilon) * (1 - error)
    limit = n**0.5 * (1 + error)
    lower = jnp.where(x.lower < 0, x.lower * largest, x.lower * smallest)
    upper = jnp.where(x.upper > 0, x.upper * largest, x.upper * smallest)
    found = Interval(jnp.clip(lower, -limit, limit), jnp.clip(upper, -limit, limit))
    return found.widened(error * found.magnitude)


def _scaled(layer: Any, x: Interval) -> Interval:
    """The interval times the layer's weight, plus its bias if it has one."""
    weight = aligned(layer.weight.astype(x.dtype), x.ndim)
    bias = aligned(layer.bias.astype(x.dtype), x.ndim) if hasattr(layer, "bias") else jnp.zeros((1,) * x.ndim, x.dtype)
    ends = x.lower * weight + bias, x.upper * weight + bias
    slack = 8 * float(jnp.finfo(x.dtype).eps) * (x.magnitude * jnp.abs(weight) + jnp.abs(bias))
    return Interval(jnp.minimum(*ends), jnp.maximum(*ends)).widened(slack)
