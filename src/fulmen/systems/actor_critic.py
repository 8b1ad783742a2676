"""`ActorCritic`: an actor that learns to act in an environment, and a critic that estimates the value of states."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Batch, Buffer, Component, Game, Mean, Mode, fold_name, hyper, remake, short, static
from fulmen.core.verbs import after_update, augment, forward, init, losses, metrics, observe, validate
from fulmen.dispatching.registry import dispatch
from fulmen.environments.environment import Environment, Playing, begin, play


class Rollout(Batch):
    """Trajectories of `n` agents over `t` steps.

    Args:
        observation: `(n, t, …)`.
        action: `(n, t)` integers.
        reward: `(n, t)`.
        done: `(n, t)` booleans, whether the episode ended with the step.
        total: `(n, t)`, the sum of the episode's rewards up to the step.
        last: `(n, …)`, the observation after the last step.
        playing: the state of the agents after the last step.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    total: jax.Array
    last: jax.Array
    playing: Playing


class ActorCritic(Game):
    """Advantage actor–critic: the actor acts in the environment inside the compiled step, and both learn from its trajectories.

    Each training step runs `horizon` steps of the environment with `agents` agents. The actor's loss is −log π(a|s) A minus an
    entropy bonus, with the generalised advantage A of Schulman et al. 2016, arXiv:1506.02438; the critic's is the squared error
    against the value that A implies (Mnih et al. 2016, arXiv:1602.01783). An episode that reaches the environment's limit counts
    as ended.

    Data is integers `(n,)`: a row is one agent in one training step, and its number is folded into the agent's random key. An
    epoch of 100 steps of 16 agents is `np.arange(1600)` with `batch_size=16`. In an evaluation each row is an agent that plays
    one episode. The metric `return` is the mean total reward of the episodes that ended.

    Args:
        actor: from observations `(n, …)` to logits `(n, actions)`.
        critic: from observations to values, `(n,)` or `(n, 1)`.
        environment: the environment.
        agents: the number of agents, which is the batch size.
        horizon: steps of the environment per training step.
        discount: γ, the factor per step on later rewards.
        trace: λ of the advantage, from 0 (one step) to 1 (the whole trajectory).
        entropy: the weight of the entropy bonus, per nat.
        playing: the state of the agents, which `setup` initialises.

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
    fresh = init.invoke(Component, object)(system, key)
    keys = jax.random.split(fold_name(key, "playing"), system.agents)
    playing: Any = jax.vmap(lambda key: begin(system.environment, key))(keys)
    return remake(fresh, {"playing": Buffer(playing)})


def rollout(system: Any, playing: Any, keys: Any, length: int) -> Rollout:
    """The trajectories of `n` agents that follow the actor of an `ActorCritic` for `length` steps, with `(n,)` random keys."""
    environment = system.environment

    def move(playing: Any, time: Any) -> Any:
        observation = jax.vmap(lambda state: observe(environment, state))(playing.state)
        now = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, time)))(keys)
        action = jax.vmap(jax.random.categorical)(now[:, 0], forward(system.actor, observation))
        playing, *after = jax.vmap(lambda *v: play(environment, *v))(playing, action, now[:, 1])
        return playing, (observation, action, *after)

    playing, found = jax.lax.scan(move, playing, jnp.arange(length))
    last = jax.vmap(lambda state: observe(environment, state))(playing.state)
    observation, action, reward, done, total = (jnp.swapaxes(v, 0, 1) for v in found)
    return Rollout(observation, action, reward, done, total, last, playing)


def keys_of(batch: Any, key: Any) -> Any:
    """A random key for each row."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(batch.x))


@dispatch
def augment(system: ActorCritic, batch, mode):
    if mode.batch is not None:
        raise ValueError("microbatches: an ActorCritic plays with all its agents at once; write microbatches=1.")
    if len(batch) != system.agents:
        raise ValueError(
            f"the batch size of an ActorCritic must be its number of agents, {system.agents}, got {len(batch)}. Write "
            f"batch_size={system.agents}, with data that makes whole batches: np.arange({100 * system.agents})."
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
    """Generalised advantage estimates, `(n, t)`: Σ (γλ)^k δ, Schulman et al. 2016, arXiv:1506.02438."""
    following = jnp.concatenate([values[:, 1:], last[:, None]], 1)
    continues = 1 - batch.done.astype(values.dtype)
    errors = batch.reward + discount * continues * following - values

    def back(later: Any, now: Any) -> Any:
        found = now[0] + discount * trace * now[1] * later
        return found, found

    return jax.lax.scan(back, jnp.zeros_like(last), (errors.T, continues.T), reverse=True)[1].T


@dispatch
def metrics(system: ActorCritic, batch: Rollout):
    return {"return": Mean(batch.total, batch.done)}


# Evaluation


def episodes(system: Any, batch: Any, key: Any) -> Rollout:
    """The trajectories of one agent per row from the start of an episode to the environment's limit."""
    keys = keys_of(batch, key)
    started = jax.vmap(lambda key: begin(system.environment, jax.random.fold_in(key, system.environment.limit)))(keys)
    return rollout(system, started, keys, system.environment.limit)


@dispatch
def losses(system: ActorCritic, batch, mode: Mode):
    return losses(system, episodes(system, batch, mode.root))


@dispatch
def metrics(system: ActorCritic, batch, mode: Mode):
    played = episodes(system, batch, mode.root)
    first = played.done & (jnp.cumsum(played.done, 1) == 1)  # later episodes may be cut off by the limit
    return {"return": Mean(played.total, first)}


@dispatch
def forward(system: ActorCritic, observation):
    return forward(system.actor, observation)


@dispatch
def validate(system: ActorCritic, batch):
    x = getattr(batch, "x", None)
    if x is None or x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"data of an ActorCritic must be one integer per row, such as np.arange({100 * system.agents}), got {short(x)}; "
            "its observations are made in the training step."
        )
