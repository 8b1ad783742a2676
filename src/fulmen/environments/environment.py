"""`Environment`, what an agent acts in, and `CartPole`."""

import math
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
        `(playing, reward, done, total)`, where `total` is the sum of the episode's rewards. `done` is also true at the limit, where
        the episode is cut and its last state is worth as much as before.

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


class CartPole(Environment):
    """Balancing a pole on a cart that is pushed left or right, with a reward of 1 per step.

    Barto, Sutton and Anderson 1983, "Neuronlike adaptive elements that can solve difficult learning control problems", with
    Euler steps of 0.02 s. The state `(4,)` is the position (m) and velocity of the cart, and the angle (rad) and angular
    velocity of the pole. An episode ends beyond 2.4 m or 12°, or after `limit` steps.

    Args:
        actions: 2, left and right.
        limit: number of steps after which an episode ends.
        force: force of a push, in N.
        gravity: gravitational acceleration, in m/s².
        cart: the cart's mass, in kg.
        pole: the pole's mass, in kg.
        half: half of the pole's length, in m.

    >>> CartPole().actions
    2
    """

    actions: int = 2
    limit: int = 500
    force: float = 10.0
    gravity: float = 9.8
    cart: float = 1.0
    pole: float = 0.1
    half: float = 0.5


_TIME_STEP = 0.02
_LARGEST_X, _LARGEST_ANGLE = 2.4, 12 * math.pi / 180


@dispatch
def reset(environment: CartPole, key):
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)


@dispatch
def step(environment: CartPole, state, action, key):
    e = environment
    _, velocity, angle, angular_velocity = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = jnp.where(action == 1, 1.0, -1.0) * e.force
    mass = e.cart + e.pole
    shared = (push + e.pole * e.half * angular_velocity**2 * sine) / mass
    angular_acceleration = (e.gravity * sine - cosine * shared) / (e.half * (4 / 3 - e.pole * cosine**2 / mass))
    acceleration = shared - e.pole * e.half * angular_acceleration * cosine / mass
    rates = jnp.stack([velocity, acceleration, angular_velocity, angular_acceleration])
    new = state + _TIME_STEP * rates
    failed = (jnp.abs(new[0]) > _LARGEST_X) | (jnp.abs(new[2]) > _LARGEST_ANGLE)
    return Transition(new, jnp.ones(()), failed)
