"""`Gymnax`: an environment of gymnax, or any other with the same methods."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import hyper, static
from fulmen.core.verbs import observe, reset, step
from fulmen.dispatching.registry import dispatch
from fulmen.environments.environment import Environment, Transition


class Gymnax(Environment):
    """An environment of gymnax with discrete actions: `Gymnax(*gymnax.make("Acrobot-v1"))`.

    Args:
        environment: an object with `reset_env(key, params)`, which returns `(observation, state)`, `step_env(key, state, action,
            params)`, which returns `(observation, state, reward, done, info)`, and the number `num_actions`. It is static: make it
            once, since each object compiles its own program.
        params: its parameters, hyperparameters of the system.
        limit: number of steps after which an episode ends; None is `params.max_steps_in_episode`.
    """

    environment: Any = static()
    params: Any = hyper()

    def __init__(self, environment: Any, params: Any, limit: int | None = None) -> None:
        self.environment, self.params = environment, params
        self.actions = int(environment.num_actions)
        self.limit = int(params.max_steps_in_episode if limit is None else limit)


@dispatch
def reset(environment: Gymnax, key):
    return _arrays(environment.environment.reset_env(key, environment.params))


@dispatch
def step(environment: Gymnax, state, action, key):
    observation, after, reward, done, _ = environment.environment.step_env(key, state[1], action, environment.params)
    return Transition(_arrays((observation, after)), jnp.asarray(reward, jnp.float32), jnp.asarray(done, bool))


@dispatch
def observe(environment: Gymnax, state):
    return state[0]


def _arrays(state: Any) -> Any:
    """A state has arrays only: it is carried through loops."""
    return jax.tree.map(jnp.asarray, tuple(state))
