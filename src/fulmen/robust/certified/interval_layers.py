"""Interval bounds of the layers: linear maps, pooling, activations, residual blocks, and what changes nothing or only the shape."""

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
from fulmen.models.layers import Dense, Dropout, Flatten
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
    inner, shortcut = forward(block.inner, x), forward(block.shortcut, x)
    found = Interval(inner.lower + shortcut.lower, inner.upper + shortcut.upper)
    slack = float(jnp.finfo(found.dtype).eps) * (inner.magnitude + shortcut.magnitude)
    return found.widened(slack).map(jax.nn.relu)


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
