"""`generate`: samples from a model of sequences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Unlabeled
from fulmen.core.verbs import forward, validate


def generate(model: Any, tokens: Any, n: int, key: Any, temperature: float = 1.0) -> jax.Array:
    """Continue sequences: each next token is drawn from `softmax(logits / temperature)`.

    Compiled as one loop. Only the last `model.length` tokens are inputs of the model.

    Args:
        model: from tokens `(batch, length)` to logits `(batch, length, vocabulary)`, causal; `length` is its longest input.
        tokens: integers `(batch, given)`, at least one per sequence.
        n: number of tokens to draw per sequence.
        key: a random key.
        temperature: 0 takes the most likely token.

    Returns:
        `(batch, given + n)`: the given tokens, then those drawn.

    >>> model = fm.init(fm.models.Transformer(50, length=16, features=8, heads=2, layers=3), jax.random.key(0))
    >>> fm.models.generate(model, jnp.array([[3, 7]]), 5, jax.random.key(1)).shape
    (1, 7)
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"generate takes tokens (batch, given), at least one per sequence, got {tokens.shape}.")
    if n < 0:
        raise ValueError(f"generate: n must be at least 0, got {n}.")
    window = min(getattr(model, "length", tokens.shape[1] + n), tokens.shape[1] + n)
    validate(model, Unlabeled(tokens[:, -window:]))
    return _generate(model, tokens, key, jnp.asarray(temperature, jnp.float32), n, window)


@partial(jax.jit, static_argnames=("n", "window"))
def _generate(model: Any, tokens: jax.Array, key: Any, temperature: jax.Array, n: int, window: int) -> jax.Array:
    given = tokens.shape[1]

    def draw(i: jax.Array, tokens: jax.Array) -> jax.Array:
        # The window has a fixed size and may include positions that are not drawn yet; a causal model ignores them.
        start = jnp.maximum(given + i - window, 0)
        recent = jax.lax.dynamic_slice_in_dim(tokens, start, window, 1)
        logits = jax.lax.dynamic_index_in_dim(forward(model, recent), given + i - 1 - start, 1, keepdims=False)
        divisor = jnp.where(temperature > 0, temperature, 1).astype(logits.dtype)
        sample = jax.random.categorical(jax.random.fold_in(key, i), logits / divisor)
        chosen = jnp.where(temperature > 0, sample, logits.argmax(-1))
        return jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None].astype(tokens.dtype), given + i, 1)

    return jax.lax.fori_loop(0, n, draw, jnp.pad(tokens, ((0, 0), (0, n))))
