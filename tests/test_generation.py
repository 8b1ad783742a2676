"""`generate`: with and without a cache, from the most likely tokens, and up to a token that ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import cast, close, filled, forward_jit

import fulmen as fm
from fulmen import dispatch
from fulmen.models import Transformer, empty_cache, generate

KEY = jax.random.key(0)


@functools.cache
def model(rotary=False):
    net = filled(Transformer(11, length=12, features=8, heads=2, layers=2, rotary=rotary))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape).astype(v.dtype)) if np.ndim(v) > 1 else v, net)


@pytest.mark.parametrize("rotary", [False, True])
def test_the_cache_changes_nothing_but_rounding(rotary):
    net, tokens = model(rotary), jax.random.randint(KEY, (3, 12), 0, 11)
    expected, cache = forward_jit(net, tokens), empty_cache(net, 3, 12)
    for rows in (slice(0, 4), slice(4, 8)):
        now, cache = forward_jit(net, tokens[:, rows], cache)
        close(now, expected[:, rows], rtol=1e-4, atol=1e-4)
    assert int(cache.count) == 8


def test_generation_with_a_cache_draws_the_same_tokens():
    tokens = jax.random.randint(KEY, (3, 4), 0, 11)
    # Past the longest input, 12, the first tokens drop out.
    with_cache, without = (generate(model(), tokens, 12, KEY, stop=2, cache=use) for use in (True, False))
    assert (with_cache == without).all() and with_cache.shape == (3, 16)


def test_a_prompt_longer_than_the_model_is_cut():
    tokens = jax.random.randint(KEY, (1, 15), 0, 11)
    drawn = generate(model(), tokens, 1, KEY, temperature=0.0)
    assert drawn[0, -1] == forward_jit(model(), tokens[:, -12:])[0, -1].argmax()


def test_a_cache_in_half_precision():
    net = cast(model(), jnp.bfloat16)
    assert generate(net, jnp.array([[3, 7]]), 3, KEY).shape == (1, 5)


class Shifted(Transformer):
    """A subclass that computes something else."""


@dispatch
def forward(net: Shifted, tokens):
    return forward.invoke(Transformer, object)(net, (tokens + 1) % 11)


def test_a_subclass_has_no_cache_unless_it_defines_one():
    assert empty_cache(model(), 1, 4) is not None and empty_cache(Shifted(**vars(model())), 1, 4) is None


class Table(fm.Model):
    """Logits that depend on nothing."""

    logits: jax.Array


@dispatch
def forward(table: Table, tokens):
    return jnp.broadcast_to(table.logits, (*tokens.shape, len(table.logits)))


TABLE = Table(jnp.log(jnp.array([0.05, 0.4, 0.3, 0.25])))


@pytest.mark.parametrize(
    "options, possible",
    [
        (dict(), {0, 1, 2, 3}),
        (dict(top_k=2), {1, 2}),
        (dict(top_k=9), {0, 1, 2, 3}),
        (dict(top_p=0.01), {1}),
        (dict(top_p=0.5), {1, 2}),
        (dict(top_p=0.5, top_k=1), {1}),
        (dict(top_p=1.0), {0, 1, 2, 3}),
        (dict(temperature=0.0, top_p=0.9), {1}),
        (dict(temperature=100.0, top_p=0.45), {1, 2}),  # nearly uniform: two tokens add up to half
    ],
    ids=str,
)
def test_only_likely_tokens_are_drawn(options, possible):
    drawn = generate(TABLE, jnp.zeros((200, 1), int), 1, KEY, **options)
    assert set(np.asarray(drawn)[:, 1].tolist()) == possible


def test_a_sequence_ends_with_the_stop_token():
    free, ended = (np.asarray(generate(TABLE, jnp.ones((20, 1), int), 8, KEY, stop=stop)) for stop in (None, 2))
    for before, after in zip(free, ended, strict=True):
        end = [*before[1:], 2].index(2) + 1
        assert (after[:end] == before[:end]).all() and (after[end:] == 2).all()
    assert (free != ended).any()


@pytest.mark.parametrize(
    "options, error",
    [(dict(top_k=0), "top_k must be a positive integer, got 0"), (dict(top_p=0.0), r"top_p must be in \(0, 1\]")],
)
def test_wrong_options(options, error):
    with pytest.raises(ValueError, match=error):
        generate(TABLE, jnp.zeros((1, 1), int), 1, KEY, **options)
