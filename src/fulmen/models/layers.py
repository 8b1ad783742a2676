"""Layers: `Dense`, `Dropout`, `Flatten`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fulmen.core import Model, Train, hyper, remake, static
from fulmen.core.structure import fast_compilation
from fulmen.core.verbs import forward, init
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import aligned, promoted, require_arrays, require_inexact, require_last_axis


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
    return initialized(layer, key, (layer.in_features, layer.out_features))


@dispatch
def forward(layer: Dense, x):
    name = f"Dense({layer.in_features}, {layer.out_features})"
    x = jnp.asarray(x)
    weight, bias = weights(layer)
    require_last_axis(name, x, layer.in_features)
    if weight.shape != (layer.in_features, layer.out_features):
        raise ValueError(
            f"{name}, weight must have the shape (in_features, out_features), {layer.in_features, layer.out_features}, got {weight.shape}."
        )
    return add_bias(jnp.dot(*promoted(name, x, weight)), bias)


def initialized(layer: Any, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """The layer with a weight of this shape, of variance 1 / the product of all axes but the last, and a bias of 0."""
    traced = isinstance(jax.random.key_data(key), Tracer)  # so is that of any key in compiled code
    weight, bias = _draw_program(traced)(key, shape, layer.use_bias)
    return remake(layer, {"weight": weight, "bias": bias})


def _drawn(key: jax.Array, shape: tuple[int, ...], use_bias: bool) -> tuple[jax.Array, jax.Array | None]:
    return jax.nn.initializers.lecun_normal()(key, shape), jnp.zeros(shape[-1]) if use_bias else None


@functools.cache
def _draw_program(traced: bool) -> Any:
    """One program instead of several, also for the layers of a `vmap`, and one that runs once."""
    # JAX takes options of the compiler only where a program is not a part of another.
    return jax.jit(_drawn, static_argnums=(1, 2), compiler_options=None if traced else fast_compilation())


def weights(layer: Any) -> list[Any]:
    """The weight and the bias of a layer; the bias is None if it has none."""
    return require_arrays(layer, "weight", "bias") if layer.use_bias else [*require_arrays(layer, "weight"), None]


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
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
    keep = 1.0 - layer.rate
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
