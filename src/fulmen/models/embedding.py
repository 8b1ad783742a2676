"""`Embedding`: a vector for each token."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Model, concrete, remake, static
from fulmen.core.verbs import forward, init
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import require_arrays


class Embedding(Model):
    """A vector for each token: integers `(…)` to `(…, features)`.

    `init` draws the weight from a normal distribution of variance 1 / features. A token out of range raises outside `jit`;
    in compiled code, where values are unknown, its vector is NaN.

    Args:
        count: number of tokens; they are 0, …, count − 1.
        features: size of each vector.
        weight: `(count, features)`; None before `init`.

    >>> layer = fm.init(fm.models.Embedding(50, 8), jax.random.key(0))
    >>> layer(jnp.array([[3, 7, 3]])).shape
    (1, 3, 8)
    """

    count: int = static(minimum=1)
    features: int = static(minimum=1)
    weight: jax.Array | None = None


@dispatch
def init(layer: Embedding, key):
    weight = jax.random.normal(key, (layer.count, layer.features)) / layer.features**0.5
    return remake(layer, {"weight": weight})


@dispatch
def forward(layer: Embedding, tokens):
    (weight,) = require_arrays(layer, "weight")
    tokens = jnp.asarray(tokens)
    require_tokens(f"Embedding({layer.count}, {layer.features})", tokens, layer.count)
    return weight.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def require_tokens(name: str, tokens: Any, count: int) -> None:
    """Raise unless `tokens` are integers and, where their values are known, from 0 to `count` − 1."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"{name} takes integer tokens, got {tokens.dtype}: write tokens.astype('int32').")
    values = concrete(tokens)
    if values is not None and values.size and (values.min() < 0 or values.max() >= count):
        wrong = values.min() if values.min() < 0 else values.max()
        raise ValueError(f"{name} takes tokens from 0 to {count - 1}, got {wrong}.")
