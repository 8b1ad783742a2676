"""`generate`: samples from a causal model of tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import System, Unlabeled, concrete
from fulmen.core.verbs import empty_cache, forward, validate
from fulmen.dispatching.registry import dispatch


@dispatch
def empty_cache(model: object, n, length):
    return None


def generate(
    model: Any,
    tokens: Any,
    n: int,
    key: Any,
    temperature: float = 1.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    cache: bool = True,
) -> jax.Array:
    """Continue sequences: each next token is drawn from `softmax(logits / temperature)`.

    Compiled as one loop. Only the last `model.length` tokens are inputs of the model.

    Args:
        model: from tokens `(batch, length)` to logits `(batch, length, vocabulary)`, causal; `length` is its longest input.
        tokens: integers `(batch, given)`, at least one per sequence.
        n: number of tokens to draw per sequence.
        key: a random key.
        temperature: 0 takes the most likely token.
        top_k: draw from the k most likely tokens only; None: from all.
        top_p: draw from the fewest tokens whose probabilities add up to at least p, in (0, 1]; None: from all. Holtzman et al. 2020,
            arXiv:1904.09751.
        stop: a token that ends a sequence, which is then filled with it; the loop ends when all sequences have ended. None: no
            such token.
        cache: whether to keep what the model computed for earlier tokens, if it has an `empty_cache`. The results are the same to
            rounding. Beyond the model's `length`, where the first tokens drop out, it is not used.

    Returns:
        `(batch, given + n)`: the given tokens, then those drawn.

    >>> model = fm.init(fm.models.Transformer(50, length=16, features=8, heads=2, layers=3), jax.random.key(0))
    >>> fm.models.generate(model, jnp.array([[3, 7]]), 5, jax.random.key(1), top_k=10).shape
    (1, 7)
    """
    if isinstance(model, System):
        raise TypeError(f"generate takes a model or a state, got the system {type(model).__name__}; write system.model.")
    if isinstance(key, int | np.integer):
        raise TypeError(f"generate: key must be a random key, got the number {key}; write jax.random.key({key}).")
    known = concrete(temperature)
    if known is not None and not known >= 0:
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}.")
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"generate takes tokens (batch, given), at least one per sequence, got {tokens.shape}.")
    if n < 0:
        raise ValueError(f"generate: n must be at least 0, got {n}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be a positive integer, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must be in (0, 1], got {top_p}.")
    window = min(getattr(model, "length", tokens.shape[1] + n), tokens.shape[1] + n)
    validate(model, Unlabeled(tokens[:, -window:]))
    numbers = [None if v is None else jnp.asarray(v, jnp.float32) for v in (temperature, top_p)]
    return _generate(model, tokens, key, *numbers, n=n, window=window, top_k=top_k, stop=stop, use_cache=cache)


@partial(jax.jit, static_argnames=("n", "window", "top_k", "stop", "use_cache"))
def _generate(
    model: Any,
    tokens: jax.Array,
    key: Any,
    temperature: Any,
    top_p: Any,
    *,
    n: int,
    window: int,
    top_k: Any,
    stop: Any,
    use_cache: bool,
) -> jax.Array:
    given = tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, n)), constant_values=0 if stop is None else stop)
    ended = jnp.zeros(len(tokens), bool)

    def write(i: jax.Array, logits: jax.Array, tokens: jax.Array, ended: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The tokens with the i-th new one, and which sequences have ended."""
        chosen = _drawn(jax.random.fold_in(key, i), logits, temperature, top_k, top_p).astype(tokens.dtype)
        if stop is not None:
            chosen = jnp.where(ended, jnp.asarray(stop, tokens.dtype), chosen)
            ended = chosen == stop
        return jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], given + i, 1), ended

    def from_window(i: jax.Array, carry: Any) -> Any:
        # The window has a fixed size and may include positions that are not drawn yet; a causal model ignores them.
        tokens, ended = carry
        start = jnp.maximum(given + i - window, 0)
        recent = jax.lax.dynamic_slice_in_dim(tokens, start, window, 1)
        logits = jax.lax.dynamic_index_in_dim(forward(model, recent), given + i - 1 - start, 1, keepdims=False)
        return write(i, logits, tokens, ended)

    def from_cache(i: jax.Array, carry: Any) -> Any:
        tokens, ended, cache = carry
        newest = jax.lax.dynamic_slice_in_dim(tokens, given + i - 1, 1, 1)
        logits, cache = forward(model, newest, cache)
        return *write(i, logits[:, 0], tokens, ended), cache

    def loop(first: int, last: int, step: Any, carry: Any) -> Any:
        goes_on = lambda state: (state[0] < last) & ~state[1][1].all()
        return jax.lax.while_loop(goes_on, lambda state: (state[0] + 1, step(*state)), (jnp.int32(first), carry))[1]

    # The i-th new token needs given + i inputs; more than the window can only be computed from the window's tokens.
    cached = min(n, window - given + 1)
    cache = empty_cache(model, len(tokens), window) if use_cache and cached > 0 else None
    if cache is None:
        return loop(0, n, from_window, (tokens, ended))[0]
    logits, cache = forward(model, tokens[:, :given], cache)
    carry = write(jnp.int32(0), logits[:, -1], tokens, ended)
    tokens, ended, _ = loop(1, cached, from_cache, (*carry, cache))
    return loop(cached, n, from_window, (tokens, ended))[0]


def _drawn(key: Any, logits: jax.Array, temperature: Any, top_k: int | None, top_p: Any) -> jax.Array:
    """A token for each sequence."""
    logits = logits.astype(jnp.float32)
    scaled = logits / jnp.where(temperature > 0, temperature, 1)
    if top_k is not None and top_k < logits.shape[-1]:
        scaled = _at_least(scaled, jax.lax.top_k(scaled, top_k)[0][:, -1:])
    if top_p is not None:
        ordered = jnp.sort(scaled, -1, descending=True)
        chances = jax.nn.softmax(ordered)
        before = jnp.cumsum(chances, -1) - chances  # of the more likely tokens; the first one is always kept
        scaled = _at_least(scaled, jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True))
    return jnp.where(temperature > 0, jax.random.categorical(key, scaled), logits.argmax(-1))


def _at_least(logits: jax.Array, lowest: jax.Array) -> jax.Array:
    return jnp.where(logits >= lowest, logits, -jnp.inf)
