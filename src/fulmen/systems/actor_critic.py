"""`ActorCritic`: an actor that learns to act in an environment, and a critic that says what is to be expected."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.batch import Batch
from fulmen.core.component import Buffer, Component, Game, fold_name
from fulmen.core.fields import hyper, static
from fulmen.core.mergeable import Mean
from fulmen.core.mode import Mode
from fulmen.core.tree import remake, short
from fulmen.core.verbs import after_update, augment, forward, init, losses, metrics, observe, validate
from fulmen.dispatching.registry import dispatch
from fulmen.environments.environment import Environment, Playing, begin, play

__all__ = ["ActorCritic", "Rollout"]


class Rollout(Batch):
    """What agents did: a row for each agent, times along the second axis.

    Args:
        observation: `(n, t, …)`.
        action: `(n, t)` integers.
        reward: `(n, t)`.
        done: `(n, t)`, whether the episode was over then.
        total: `(n, t)`, the rewards of the episode so far.
        last: `(n, …)`, what is seen after the last step.
        playing: where the agents are then.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    total: jax.Array
    last: jax.Array
    playing: Playing


class ActorCritic(Game):
    """An actor and a critic that learn from what the actor does, which is played in the compiled step.

    Each step goes on for `horizon` steps of the environment with as many agents as the batch has rows. The actor's entry is
    −log π(a|s) A, less a bonus for entropy, with the advantage A of Schulman et al. 2016, arXiv:1506.02438; the critic's is its
    squared error against the value that A implies (advantage actor–critic, Mnih et al. 2016, arXiv:1602.01783). The end of an
    episode by its limit of steps counts as an end.

    Data says how much is played: a row is an agent's part in one step, and its number is mixed into what is drawn. An epoch of
    100 steps of 16 agents is `np.arange(1600)` with `batch_size=16`. On other batches than those of a training step, as in
    `evaluate`, each row is an agent that plays from a beginning until the limit. The metric `return` is the mean of the rewards
    of all episodes that ended.

    Args:
        actor: from observations `(n, …)` to logits `(n, actions)`.
        critic: from observations to values, `(n,)` or `(n, 1)`.
        environment: what they act in.
        agents: how many play at once: the batch size.
        horizon: steps of the environment in a training step.
        discount: γ, what a reward a step later is worth.
        trace: λ of the advantage, between 0 (one step) and 1 (all that was seen).
        entropy: what a nat of entropy is worth.
        playing: where the agents are, which `setup` begins.

    >>> from fulmen.environments import CartPole
    >>> system = fm.systems.ActorCritic(fm.models.MLP(4, 8, 2), fm.models.MLP(4, 8, 1), CartPole(), agents=2, horizon=4)
    >>> state, history = fm.fit(system, jnp.arange(4), batch_size=2, optimizer=optax.adam, lr=1e-3, epochs=1, progress=False)
    >>> sorted(name for name in history if name.startswith("loss/"))
    ['loss/actor', 'loss/critic']
    """

    actor: Component
    critic: Component
    environment: Environment
    agents: int = static(minimum=1, default=16, kw_only=True)
    horizon: int = static(minimum=1, default=16, kw_only=True)
    discount: float = hyper(minimum=0, default=0.99, kw_only=True)
    trace: float = hyper(minimum=0, default=0.95, kw_only=True)
    entropy: float = hyper(minimum=0, default=0.01, kw_only=True)
    playing: Buffer | None = dataclasses.field(default=None, kw_only=True)


@dispatch
def init(system: ActorCritic, key):
    drawn = init.invoke(Component, object)(system, key)
    keys = jax.random.split(fold_name(key, "playing"), system.agents)
    playing: Any = jax.vmap(lambda key: begin(system.environment, key))(keys)
    return remake(drawn, {"playing": Buffer(playing)})


def rollout(system: Any, playing: Any, keys: Any, length: int) -> Rollout:
    """Let the actor act.

    Args:
        system: an `ActorCritic`.
        playing: where each of n agents is.
        keys: `(n,)`, random keys.
        length: steps of the environment.
    """
    environment = system.environment

    def move(playing: Any, time: Any) -> Any:
        seen = jax.vmap(lambda state: observe(environment, state))(playing.state)
        now = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, time)))(keys)
        action = jax.vmap(jax.random.categorical)(now[:, 0], forward(system.actor, seen))
        playing, *after = jax.vmap(lambda *v: play(environment, *v))(playing, action, now[:, 1])
        return playing, (seen, action, *after)

    playing, found = jax.lax.scan(move, playing, jnp.arange(length))
    last = jax.vmap(lambda state: observe(environment, state))(playing.state)
    observation, action, reward, done, total = (jnp.swapaxes(v, 0, 1) for v in found)
    return Rollout(observation, action, reward, done, total, last, playing)


def keys_of(batch: Any, key: Any) -> Any:
    """A random key for each row."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(batch.x))


@dispatch
def augment(system: ActorCritic, batch, mode):
    if len(batch) != system.agents:
        raise ValueError(
            f"ActorCritic has {system.agents} agents, and a batch of {len(batch)} came: give batch_size={system.agents}, and as "
            f"many rows as make whole batches, np.arange({100 * system.agents})."
        )
    assert system.playing is not None
    return rollout(system, system.playing.value, keys_of(batch, mode.key), system.horizon)


@dispatch
def after_update(system: ActorCritic, batch: Rollout, mode):
    new = after_update.invoke(Component, Batch, object)(system, batch, mode)
    return remake(new, {"playing": remake(new.playing, {"value": batch.playing})})


@dispatch
def losses(system: ActorCritic, batch: Rollout):
    shape = batch.action.shape
    flat = batch.observation.reshape(-1, *batch.observation.shape[2:])
    values, last = forward(system.critic, flat).reshape(shape), forward(system.critic, batch.last).reshape(-1)
    ahead = jax.lax.stop_gradient(advantages(batch, values, last, system.discount, system.trace))
    target = jax.lax.stop_gradient(values) + ahead
    chances = jax.nn.log_softmax(forward(system.actor, flat)).reshape(*shape, -1)
    chosen = jnp.take_along_axis(chances, batch.action[..., None], 2)[..., 0]
    entropy = -jnp.sum(jnp.exp(chances) * chances, 2)
    return dict(actor=(-chosen * ahead - system.entropy * entropy).mean(1), critic=((values - target) ** 2).mean(1))


def advantages(batch: Rollout, values: Any, last: Any, discount: Any, trace: Any) -> jax.Array:
    """How much better than expected it went from each time on, `(n, t)`: Σ (γλ)^k δ, Schulman et al. 2016, arXiv:1506.02438."""
    following = jnp.concatenate([values[:, 1:], last[:, None]], 1)
    goes_on = 1 - batch.done.astype(values.dtype)
    surprise = batch.reward + discount * goes_on * following - values

    def back(later: Any, now: Any) -> Any:
        found = now[0] + discount * trace * now[1] * later
        return found, found

    return jax.lax.scan(back, jnp.zeros_like(last), (surprise.T, goes_on.T), reverse=True)[1].T


@dispatch
def metrics(system: ActorCritic, batch: Rollout):
    return {"return": Mean(batch.total, batch.done)}


# Where nothing has been played yet, as in an evaluation, whole episodes are


def episodes(system: Any, batch: Any, key: Any) -> Rollout:
    keys = keys_of(batch, key)
    started = jax.vmap(lambda key: begin(system.environment, jax.random.fold_in(key, system.environment.limit)))(keys)
    return rollout(system, started, keys, system.environment.limit)


@dispatch
def losses(system: ActorCritic, batch, mode: Mode):
    return losses(system, episodes(system, batch, mode.root))


@dispatch
def metrics(system: ActorCritic, batch, mode: Mode):
    played = episodes(system, batch, mode.root)
    first = played.done & (jnp.cumsum(played.done, 1) == 1)  # what begins later may be cut short
    return {"return": Mean(played.total, first)}


@dispatch
def forward(system: ActorCritic, observation):
    return forward(system.actor, observation)


@dispatch
def validate(system: ActorCritic, batch):
    x = getattr(batch, "x", None)
    if x is None or x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"the data of an ActorCritic is a number for each row, such as np.arange({100 * system.agents}), and "
            f"{short(x)} came: what it learns from, it plays itself."
        )
