"""`CartPole`: balancing a pole on a cart."""

import math

import jax
import jax.numpy as jnp

from fulmen.core.verbs import reset, step
from fulmen.dispatching.registry import dispatch
from fulmen.environments.environment import Environment, Transition


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
