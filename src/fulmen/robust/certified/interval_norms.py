"""Interval bounds of normalizations, in evaluation."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Train
from fulmen.core.verbs import forward
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import aligned
from fulmen.models.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from fulmen.robust.certified.interval import Interval, no_bounds_in_training, rounding_error


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
    than √n, where n is the number of terms.

    Args:
        x: the inputs.
        axes: the axes.
        epsilon: added to the variance.
        centre: whether the mean is subtracted.
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
