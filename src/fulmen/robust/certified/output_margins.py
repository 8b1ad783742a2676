"""Lower bounds of margins: how far the label's logit stays above every other one in an interval of inputs."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.verbs import forward, margin_bounds
from fulmen.dispatching.registry import dispatch
from fulmen.models.chain import Chain
from fulmen.models.layers import Dense
from fulmen.robust.certified.interval import Interval, rounding_error
from fulmen.robust.certified.interval_layers import centred


@dispatch
def margin_bounds(model: object, x, labels):
    found = forward(model, x)
    own = jnp.take_along_axis(found.lower, labels[:, None], 1)
    return jnp.where(_is_label(labels, found.shape[1]), 0, own - found.upper)


@dispatch
def margin_bounds(chain: Chain, x, labels):
    if not chain.layers or _has_other_forward(chain, x, Chain()):
        return margin_bounds.invoke(object, object, object)(chain, x, labels)
    *layers, last = chain.layers
    for layer in layers:
        x = forward(layer, x)
    return margin_bounds(last, x, labels)


@dispatch
def margin_bounds(layer: Dense, x, labels):
    """The bounds of the layer merged with the differences: tighter than the differences of the layer's bounds."""
    if x.ndim != 2 or _has_other_forward(layer, x, Dense(1, 1)):
        return margin_bounds.invoke(object, object, object)(layer, x, labels)
    centre, radius = centred(x)
    logits, weight = forward(layer, centre), layer.weight.astype(x.dtype)  # type: ignore[union-attr]
    steepness = jnp.abs(weight.T[labels][:, :, None] - weight[None])
    lower = jnp.take_along_axis(logits, labels[:, None], 1) - logits - (radius[:, :, None] * steepness).sum(1)
    size = x.magnitude.max(1, keepdims=True) * jnp.abs(weight).sum(0)[None]
    size = size if layer.bias is None else size + jnp.abs(layer.bias)[None]
    size = size + jnp.take_along_axis(size, labels[:, None], 1)
    lower = lower - jax.lax.stop_gradient(rounding_error(layer.in_features, x.dtype) * size)
    return jnp.where(_is_label(labels, logits.shape[1]), 0, lower)


def _has_other_forward(model: Any, x: Interval, like: Any) -> bool:
    """Whether a subclass of the model's type has its own method, whose outputs are not those of the layers."""
    return any(forward.method(model, v) is not forward.method(like, v) for v in (x, x.lower))


def _is_label(labels: Any, classes: int) -> jax.Array:
    return jax.nn.one_hot(labels, classes, dtype=bool)
