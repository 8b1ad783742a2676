"""`Normalized`: a model that normalizes its inputs."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import Component, Model, hyper
from fulmen.core.prediction import at_least_float32
from fulmen.core.verbs import forward, layer_order
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import aligned


class Normalized(Model):
    """A model of `(x − mean) / std`: the normalization is a part of the model, so data and attacks are in the units of x.

    A region such as `fm.LinfBall(8 / 255) & fm.Box(0, 1)` then means pixels of the data, not normalized ones.

    Args:
        model: the model; its inputs are float32, or of the type of x if that is floating-point.
        mean, std: numbers, or arrays of the shape of the last axes of x, such as `(channels,)`; `std` is positive. They are
            hyperparameters, which are not trained.

    >>> net = fm.models.Normalized(fm.models.Flatten(), mean=jnp.array([0.5, 1.0]), std=0.25)
    >>> net(jnp.array([[0.5, 2.0]]))
    Array([[0., 4.]], dtype=float32)
    """

    ignores_scale: ClassVar[bool] = True

    model: Component
    mean: jax.Array | float = hyper(default=0.0)
    std: jax.Array | float = hyper(above=0, default=1.0)


@dispatch
def forward(net: Normalized, x):
    x = jnp.asarray(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    wide = at_least_float32(x.astype(dtype))
    mean, std = (broadcast(net, name, wide) for name in ("mean", "std"))
    return forward(net.model, ((wide - mean) / std).astype(dtype))


def broadcast(net: Normalized, name: str, x: jax.Array) -> jax.Array:
    """The mean or the deviation, to be used with the inputs `x`."""
    value = jnp.asarray(getattr(net, name))
    if value.ndim >= x.ndim or any(a not in (1, b) for a, b in zip(value.shape[::-1], x.shape[::-1])):
        raise ValueError(
            f"Normalized.{name} must be a number or have the shape of the last axes of x, {x.shape[1:]}, got {value.shape}."
        )
    return aligned(value, x.ndim).astype(x.dtype)


@dispatch
def layer_order(net: Normalized):
    return ["model"]
