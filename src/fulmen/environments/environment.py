"""`Environment`, and the verbs that it has: `reset`, `step`, `observe`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fulmen.core.component import Component
from fulmen.core.verbs import observe, reset, step
from fulmen.dispatching.registry import dispatch

__all__ = ["Environment", "Playing", "Transition", "begin", "play"]


class Environment(Component):
    """A game for one agent: its state is a tree of arrays, and goes from one step to the next in the compiled program.

    Its numbers are hyperparameters: data that may change without recompiling.

    **Extending.** Subclass it and write `reset`, `step` and, where the state is not what is seen, `observe`; for one agent,
    they are run under `vmap` for many.

    Attributes:
        actions: how many there are.
        limit: after how many steps an episode ends.
    """

    __example__ = "fm.environments.CartPole()"

    actions: int
    limit: int


class Transition(NamedTuple):
    """What a step leads to: the next state, the reward `()`, and whether the episode is over, `()`."""

    state: Any
    reward: jax.Array
    done: jax.Array


@dispatch
def observe(environment: Environment, state):
    return state


class Playing(NamedTuple):
    """An agent in the midst of an episode: the state, how many steps it has had, the rewards so far."""

    state: Any
    time: jax.Array
    total: jax.Array


def begin(environment: Environment, key: Any) -> Playing:
    """An episode's beginning."""
    return Playing(reset(environment, key), jnp.zeros((), jnp.int32), jnp.zeros(()))


def play(environment: Environment, playing: Playing, action: Any, key: Any) -> tuple[Playing, Any, Any, Any]:
    """A step, and where the episode is over, by its end or by the limit, the beginning of the next.

    Args:
        environment: an `Environment`.
        playing: where the agent is.
        action: `()`.
        key: a random key.

    Returns:
        `(playing, reward, done, total)`, the last the rewards of the episode up to here.

    >>> from fulmen.environments import CartPole, begin, play
    >>> pole = CartPole()
    >>> playing, reward, done, total = play(pole, begin(pole, jax.random.key(0)), 1, jax.random.key(1))
    >>> float(reward), bool(done), int(playing.time)
    (1.0, False, 1)
    """
    moved, fresh = jax.random.split(key)
    state, reward, done = step(environment, playing.state, action, moved)
    now = Playing(state, playing.time + 1, playing.total + reward)
    done = done | (now.time >= environment.limit)
    again = begin(environment, fresh)
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), again, now), reward, done, now.total
