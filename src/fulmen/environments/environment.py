"""`Environment`, and episodes in one: `begin` and `play`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fulmen.core import Component
from fulmen.core.verbs import observe, reset, step
from fulmen.dispatching.registry import dispatch


class Environment(Component):
    """An environment for one agent, whose state is a tree of arrays; its numbers are hyperparameters.

    **Extending.** Subclass it and write `reset`, `step` and, if the agent does not see the whole state, `observe`, for one
    agent; they run under `vmap` for many.

    Attributes:
        actions: number of actions.
        limit: number of steps after which an episode ends.
    """

    __example__ = "fm.environments.CartPole()"

    actions: int
    limit: int


class Transition(NamedTuple):
    """The result of a step: the next state, the reward `()`, and whether the episode is over, `()`."""

    state: Any
    reward: jax.Array
    done: jax.Array


@dispatch
def observe(environment: Environment, state):
    return state


class Playing(NamedTuple):
    """An episode in progress: the state, the number of steps, and the sum of rewards so far."""

    state: Any
    time: jax.Array
    total: jax.Array


def begin(environment: Environment, key: Any) -> Playing:
    """Start an episode, from a random key."""
    return Playing(reset(environment, key), jnp.zeros((), jnp.int32), jnp.zeros(()))


def play(environment: Environment, playing: Playing, action: Any, key: Any) -> tuple[Playing, Any, Any, Any]:
    """Take a step; if it ends the episode, or reaches the limit, start the next one.

    Args:
        environment: an `Environment`.
        playing: the episode.
        action: an integer, `()`.
        key: a random key.

    Returns:
        `(playing, reward, done, total)`, where `total` is the sum of the episode's rewards.

    >>> from fulmen.environments import CartPole, begin, play
    >>> pole = CartPole()
    >>> playing, reward, done, total = play(pole, begin(pole, jax.random.key(0)), 1, jax.random.key(1))
    >>> float(reward), bool(done), int(playing.time)
    (1.0, False, 1)
    """
    step_key, reset_key = jax.random.split(key)
    state, reward, done = step(environment, playing.state, action, step_key)
    now = Playing(state, playing.time + 1, playing.total + reward)
    done = done | (now.time >= environment.limit)
    next_episode = begin(environment, reset_key)
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), next_episode, now), reward, done, now.total
