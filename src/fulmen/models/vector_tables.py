"""Layers with a table of vectors: `Embedding`, a vector for each token, and `Quantizer`, the nearest vector."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Buffer, Model, Train, concrete, hyper, record, remake, static
from fulmen.core.verbs import forward, init
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import require_arrays, require_last_axis


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


class Quantizer(Model):
    """Replaces each vector by the nearest one of a codebook: `(…, features)` to the same shape.

    The gradient is that of the identity (straight-through). The codebook is not a parameter: it is the running mean of the
    vectors assigned to each code in training, `total / count`, where both are exponential moving averages, and counts are
    smoothed so that none is 0. Van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937, appendix A.1.

    Args:
        codes: number of vectors in the codebook.
        features: size of each.
        decay: the factor of the old averages in each step, in [0, 1].
        epsilon: added to each count, above 0.
        count: average number of vectors assigned to each code, a `Buffer` of `(codes,)`; initially 1.
        total: average of their sum, a `Buffer` of `(codes, features)`; initially normal.

    >>> layer = fm.init(fm.models.Quantizer(codes=16, features=2), jax.random.key(0))
    >>> z = jnp.array([[0.1, 0.2], [1.0, -1.0]])
    >>> bool((layer(z) == layer.codebook[layer.nearest(z)]).all())
    True
    """

    __example__ = "fm.models.Quantizer(512, 64)"

    codes: int = static(minimum=1)
    features: int = static(minimum=1)
    decay: float = hyper(minimum=0, maximum=1, default=0.99)
    epsilon: float = hyper(above=0, default=1e-5)
    count: Buffer | None = None
    total: Buffer | None = None

    @property
    def codebook(self) -> jax.Array:
        """The vectors, `(codes, features)`."""
        count, total = (buffer.value for buffer in require_arrays(self, "count", "total"))
        n, epsilon = count.sum(), jnp.asarray(self.epsilon).astype(count.dtype)
        return total / ((count + epsilon) / (n + self.codes * epsilon) * n)[:, None]

    def nearest(self, z: jax.Array) -> jax.Array:
        """The index of the nearest code for each vector, `(…, features)` to `(…)`."""
        require_last_axis(f"Quantizer({self.codes}, {self.features})", z, self.features)
        codebook = self.codebook.astype(z.dtype)
        # ‖z − e‖² without ‖z‖², which does not depend on the code.
        return ((codebook**2).sum(1).reshape((1,) * (z.ndim - 1) + (-1,)) - 2 * z @ codebook.T).argmin(-1)


@dispatch
def init(layer: Quantizer, key):
    total = jax.random.normal(key, (layer.codes, layer.features))
    return remake(layer, {"count": Buffer(jnp.ones(layer.codes)), "total": Buffer(total)})


@dispatch
def forward(layer: Quantizer, z):
    return _straight_through(layer, z, layer.nearest(z))


@dispatch
def forward(layer: Quantizer, z, mode: Train):
    code = layer.nearest(z)
    chosen = jax.nn.one_hot(code.reshape(-1), layer.codes, dtype=z.dtype)
    count, total = require_arrays(layer, "count", "total")
    y = record(_straight_through(layer, z, code), count, _moving_average(layer, count, chosen.sum(0)))
    return record(y, total, _moving_average(layer, total, chosen.T @ z.reshape(-1, layer.features)))


def _straight_through(layer: Quantizer, z: jax.Array, code: jax.Array) -> jax.Array:
    return z + jax.lax.stop_gradient(layer.codebook[code].astype(z.dtype) - z)


def _moving_average(layer: Quantizer, average: Buffer, new: jax.Array) -> jax.Array:
    decay = jnp.asarray(layer.decay).astype(average.value.dtype)
    return decay * average.value + (1 - decay) * new.astype(average.value.dtype)
