"""`CartPole`: a pole on a cart, to be kept upright."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fulmen.core.verbs import reset, step
from fulmen.dispatching.registry import dispatch
from fulmen.environments.environment import Environment, Transition

__all__ = ["CartPole"]


class CartPole(Environment):
    """A pole hinged on a cart that is pushed left or right, 1 for every step in which it has not fallen.

    Barto, Sutton and Anderson 1983, "Neuronlike adaptive elements that can solve difficult learning control problems", with
    Euler steps of 0.02 s. What is seen is the cart's place (m) and velocity, the pole's angle (rad) and its velocity. An
    episode is over beyond 2.4 m or 12°, or after `limit` steps.

    Args:
        actions: 2, left and right.
        limit: after how many steps an episode ends.
        force: of a push, in N.
        gravity: in m/s².
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


_TIME = 0.02
_EDGE, _ANGLE = 2.4, 12 * math.pi / 180


@dispatch
def reset(environment: CartPole, key):
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)


@dispatch
def step(environment: CartPole, state, action, key):
    e = environment
    x, velocity, angle, turning = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    push = jnp.where(action == 1, 1.0, -1.0) * e.force
    mass = e.cart + e.pole
    shared = (push + e.pole * e.half * turning**2 * sine) / mass
    spin = (e.gravity * sine - cosine * shared) / (e.half * (4 / 3 - e.pole * cosine**2 / mass))
    pull = shared - e.pole * e.half * spin * cosine / mass
    new = jnp.stack([x + _TIME * velocity, velocity + _TIME * pull, angle + _TIME * turning, turning + _TIME * spin])
    fallen = (jnp.abs(new[0]) > _EDGE) | (jnp.abs(new[2]) > _ANGLE)
    return Transition(new, jnp.ones(()), fallen)
