"""`Remat`: the same numbers as without it, computed again for the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import filled, forward_jit

import fulmen as fm
from fulmen.models import BatchNorm, Chain, Dense, Dropout, Stacked, Transformer

DATA = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 3
POLICIES = {"nothing kept": None, "products kept": jax.checkpoint_policies.dots_saveable}


def block():
    return Chain(Dense(6, 6), BatchNorm(6), jnp.tanh, Dropout(0.3), Dense(6, 6))


@functools.cache
def trained(way):
    part = block() if way == "plain" else fm.Remat(block(), POLICIES[way])
    # `plain` in a wrapper as well, so that the paths and with them the random numbers are the same.
    part = Chain(part if way != "plain" else Wrapped(part))
    state = fm.setup(fm.Classifier(Chain(part, Dense(6, 3))), DATA, optimizer=optax.sgd(0.1))
    state, first = fm.train_step(state, DATA)
    state, second = fm.train_step(state, DATA)
    return state, [float(first["loss"]), float(second["loss"])]


class Wrapped(fm.Wrapper):
    part: fm.Component


@pytest.mark.parametrize("way", POLICIES)
def test_training_equals_that_without_it(way):
    state, losses = trained(way)
    expected, expected_losses = trained("plain")
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state.system), jax.tree.leaves(expected.system), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def products(way):
    """The matrix products in a gradient's program."""
    part = fm.init(fm.Remat(Chain(Dense(6, 6), jnp.tanh, Dense(6, 6)), POLICIES[way]), jax.random.key(0))
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: (part(x) ** 2).sum()))(jnp.ones((8, 6)))
    return str(jaxpr).count("dot_general")


def test_the_policy_says_what_is_computed_again():
    assert products("nothing kept") > products("products kept")


def test_a_stack_takes_blocks_of_it(key):
    plain, remat = (fm.init(Stacked(part, 2), key) for part in (Wrapped(block()), fm.Remat(block())))
    x = jnp.asarray(DATA[0])
    np.testing.assert_allclose(remat(x), plain(x), rtol=1e-6)


def test_a_vocabulary_can_be_rounded_up_for_the_device():
    model = filled(Transformer(10, length=4, features=8, heads=2, layers=1, vocabulary_multiple=16))
    assert model.tokens.weight.shape == (16, 8)
    assert forward_jit(model, jnp.zeros((2, 4), int)).shape == (2, 4, 10)
    with pytest.raises(ValueError, match=r"vocabulary 10.* takes tokens from 0 to 9, got 12"):
        model(jnp.full((2, 4), 12))
