"""Deep Q-learning on CartPole: the environment and the replay memory are part of the compiled step.

    python examples/dqn.py

In each step eight agents act once, what they see goes into the memory, and the network learns from a random batch of it. Writes
`dqn.png`: the return of the episodes that ended. Double Q-learning, van Hasselt et al. 2016, arXiv:1509.06461.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fulmen as fm
from fulmen import after_update, augment, dispatch, init, losses, metrics
from fulmen.environments import CartPole, begin, play


class Replay(fm.Batch):
    """Transitions from the memory, `(n, …)`; and what follows the step of the agents."""

    seen: dict[str, jax.Array]
    memory: dict[str, jax.Array]
    playing: tuple
    total: jax.Array
    done: jax.Array


class DQN(fm.System):
    q: fm.EMA  # its average is the target network
    environment: CartPole = CartPole()
    agents: int = 8
    size: int = 50_000  # of the memory
    discount: float = 0.99
    memory: fm.Buffer | None = None
    playing: fm.Buffer | None = None


@dispatch
def init(system: DQN, key):
    playing = jax.vmap(lambda key: begin(system.environment, key))(jax.random.split(key, system.agents))
    shapes = dict(now=(4,), next=(4,), action=(), fell=())
    memory = {name: jnp.zeros((system.size, *shape), int if name == "action" else float) for name, shape in shapes.items()}
    return fm.replace(system, q=init(system.q, key), memory=fm.Buffer(memory), playing=fm.Buffer(playing))


@dispatch
def augment(system: DQN, batch, mode):
    explore, choose, move, draw = jax.random.split(mode.key, 4)
    playing, n = system.playing.value, system.agents
    best = system.q.component(playing.state).argmax(-1)
    chance = jnp.maximum(0.05, 1 - mode.step / 4000)
    action = jnp.where(jax.random.bernoulli(explore, chance, (n,)), jax.random.randint(choose, (n,), 0, 2), best)
    step = lambda playing, action, key: play(system.environment, playing, action, key)
    after, _, done, total = jax.vmap(step)(playing, action, jax.random.split(move, n))
    fell = done & (total < system.environment.limit)  # and did not reach the limit
    new = dict(now=playing.state, next=after.state, action=action, fell=fell.astype(float))
    rows = (mode.step * n + jnp.arange(n)) % system.size
    memory = {name: values.at[rows].set(new[name]) for name, values in system.memory.value.items()}
    rows = jax.random.randint(draw, (128,), 0, jnp.minimum((mode.step + 1) * n, system.size))
    return Replay({name: values[rows] for name, values in memory.items()}, memory, after, total, done)


@dispatch
def losses(system: DQN, batch: Replay):
    of = lambda values, action: jnp.take_along_axis(values, action[:, None], 1)[:, 0]
    now, best = system.q.component(batch.seen["now"]), system.q.component(batch.seen["next"]).argmax(-1)
    later = of(system.q.average(batch.seen["next"]), best)
    # A fall costs 1: such values are learned faster than sums of rewards, which are as large as the episodes are long.
    target = jnp.where(batch.seen["fell"] > 0, -1.0, system.discount * later)
    return dict(td=optax.huber_loss(of(now, batch.seen["action"]), jax.lax.stop_gradient(target)))


@dispatch
def metrics(system: DQN, batch: Replay):
    return {"return": fm.Mean(batch.total, batch.done)}


@dispatch
def after_update(system: DQN, batch: Replay, mode):
    q = after_update(system.q, batch, mode.at("q"))
    return fm.replace(system, {"q": q, "memory.value": batch.memory, "playing.value": batch.playing})


@jax.jit
def greedy_return(system, key):
    """The mean return of 64 episodes without exploration."""

    def step(state, _):
        playing, over, total = state
        move = lambda playing, action: play(system.environment, playing, action, key)
        playing, reward, done, _ = jax.vmap(move)(playing, system.q.component(playing.state).argmax(-1))
        return (playing, over | done, total + jnp.where(over, 0, reward)), None

    start = jax.vmap(lambda key: begin(system.environment, key))(jax.random.split(key, 64))
    last, _ = jax.lax.scan(step, (start, jnp.zeros(64, bool), jnp.zeros(64)), length=system.environment.limit)
    return last[2].mean()


def main(epochs=40, steps=400, picture="dqn.png"):
    # An episode ends at an angle of 0.2 and a position of 2.4: the network gets all four numbers in the same range.
    net = fm.Normalized(fm.models.MLP(4, 128, 128, 2), mean=0.0, std=jnp.array([1.0, 1.0, 0.1, 1.0]))
    system = DQN(fm.EMA(net, decay=0.99))
    rows = np.arange(8 * steps)  # one for each agent and step of an epoch; the numbers themselves are not used
    state, history = fm.fit(system, rows, batch_size=8, optimizer=optax.adam, lr=fm.cosine(1e-3), epochs=epochs, seed=0)
    found = float(greedy_return(state.system, jax.random.key(1)))
    print(f"return without exploration: {found:.0f} of 500")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(np.arange(1, epochs + 1) * len(rows) / 1000, history["return"])
    axes.set(xlabel="thousand steps of the environment", ylabel="mean return", ylim=(0, 510), title="DQN on CartPole")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return found


if __name__ == "__main__":
    main()
