"""Evolution strategies: a custom training step, for a loss without a gradient.

    python examples/evolution.py

A policy for CartPole is trained by its return alone. `update` estimates the gradient from the returns of perturbed policies, and
`fm.apply_gradients` leaves the rest to the optimizer. Writes `evolution.png`. Salimans et al. 2017, arXiv:1703.03864.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, loss, update
from fulmen.environments import CartPole, begin, play


class Player(fm.System):
    """A policy in an environment; its loss is minus the mean return of some episodes."""

    policy: fm.Component
    environment: CartPole = CartPole()
    episodes: int = 4


@dispatch
def loss(player: Player, batch, mode):
    keys = jax.random.split(mode.key, player.episodes)

    def step(state, _):
        playing, over = state
        move = lambda playing, action, key: play(player.environment, playing, action, key)
        playing, reward, done, _ = jax.vmap(move)(playing, player.policy(playing.state).argmax(-1), keys)
        return (playing, over | done), jnp.where(over, 0, reward)

    start = jax.vmap(lambda key: begin(player.environment, key))(keys), jnp.zeros(player.episodes, bool)
    _, rewards = jax.lax.scan(step, start, length=player.environment.limit)
    return -rewards.sum(0).mean()


class Evolution(fm.Wrapper):
    """A component that is trained by the losses of perturbed copies, in pairs of opposite signs."""

    part: fm.Component
    pairs: int = 32
    scale: float = 0.1


@dispatch
def update(evolution: Evolution, state, batch, mode):
    flat, structure = jax.tree.flatten(state.system)
    trained = [leaf.role == "parameter" for leaf in fm.leaves(state.system)]

    def pair(key):
        """A direction, and the losses on both sides."""
        keys = jax.random.split(key, len(flat))
        noise = [jax.random.normal(k, v.shape) if t else None for k, v, t in zip(keys, flat, trained)]
        at = lambda sign: [v if n is None else v + sign * evolution.scale * n for v, n in zip(flat, noise)]
        # Both play the same episodes: the mode, and so the key, is the same.
        return noise, [fm.loss(structure.unflatten(at(sign)), batch, mode) for sign in (1.0, -1.0)]

    noise, (up, down) = jax.vmap(pair)(jax.random.split(mode.at("pairs").key, evolution.pairs))
    spread = jnp.std(jnp.concatenate([up, down])) + 1e-6
    slope = (up - down) / spread
    gradients = [None if n is None else jnp.tensordot(slope, n, 1) / evolution.pairs for n in noise]
    state = fm.apply_gradients(state, structure.unflatten(gradients))
    return state, {"return": fm.Mean(-jnp.concatenate([up, down])), "best": fm.Mean(-jnp.minimum(up, down).min())}


def main(steps=60, picture="evolution.png"):
    system = Evolution(Player(fm.models.MLP(4, 16, 2)))
    state = fm.setup(system, np.arange(steps), batch_size=1, optimizer=optax.adam, lr=0.05, seed=0)
    logs = [logs for _, logs in fm.steps(state, np.arange(steps), batch_size=1, epochs=1)]
    mean, best = ([float(log[name]) for log in logs] for name in ("return", "best"))
    print(f"mean return of the perturbed policies: {mean[0]:.0f} in the first step, {mean[-1]:.0f} in the last one")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(best, lw=1, label="best perturbed policy")
    axes.plot(mean, label="mean of all")
    axes.set(xlabel="step", ylabel="return", ylim=(0, 510), title="Evolution strategies on CartPole")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return mean


if __name__ == "__main__":
    main()
