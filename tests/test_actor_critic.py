"""`ActorCritic` and environments: dynamics, advantages by hand, learning, what is carried from step to step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear

import fulmen as fm
from fulmen import dispatch
from fulmen.environments import CartPole, Environment, Transition, begin, play
from fulmen.systems.actor_critic import advantages


class Signs(Environment):
    """A sign is shown; the action that fits it is worth 1. Every third step ends an episode."""

    actions: int = 2
    limit: int = 3


@dispatch
def reset(environment: Signs, key):
    return jax.random.rademacher(key, (1,), jnp.float32)


@dispatch
def step(environment: Signs, state, action, key):
    return Transition(
        jax.random.rademacher(key, (1,), jnp.float32), jnp.where((action == 1) == (state[0] > 0), 1.0, 0.0), jnp.bool_(False)
    )


class Value(fm.Model):
    layer: Linear


@dispatch
def forward(value: Value, x):
    return value.layer(x)[:, 0]


def system(**options):
    return fm.systems.ActorCritic(Linear(1, 2), Value(Linear(1, 1)), Signs(), **{"agents": 8, "horizon": 4, **options})


def test_it_learns_a_simple_environment():
    state, history = fm.fit(
        system(), np.arange(8 * 50), batch_size=8, optimizer=optax.adam, lr=0.05, epochs=3, progress=False
    )
    assert history["return"][0] < 2.9 < history["return"][-1]  # of 3
    assert fm.evaluate(state, np.arange(8))["return"] > 2.7
    assert fm.predict(state, np.float32([[-1.0], [1.0]])).argmax(1).tolist() == [0, 1]


def test_agents_continue_from_their_state():
    state = fm.setup(system(), np.arange(16), batch_size=8, optimizer=optax.sgd(0.1))
    times = [np.asarray(state.system.playing.value.time)]
    for _ in range(2):
        state, logs = fm.train_step(state, np.arange(8))
        times.append(np.asarray(state.system.playing.value.time))
    assert [t.tolist() for t in times] == [[0] * 8, [1] * 8, [2] * 8]  # four steps of episodes of three
    assert float(logs["return"]) <= 3.0


def test_advantages_by_hand():
    rng = np.random.default_rng(0)
    reward, values, last = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5), (2, 5), (2,)))
    done = rng.random((2, 5)) < 0.3
    nothing = jnp.zeros((2, 5))
    batch = fm.systems.Rollout(
        nothing, nothing, jnp.asarray(reward), jnp.asarray(done), nothing, nothing, begin(Signs(), jax.random.key(0))
    )
    found = advantages(batch, jnp.asarray(values), jnp.asarray(last), 0.9, 0.8)
    for i in range(2):
        for t in range(5):
            expected, factor = 0.0, 1.0
            for k in range(t, 5):
                after = 0.0 if done[i, k] else last[i] if k == 4 else values[i, k + 1]
                expected += factor * (reward[i, k] + 0.9 * after - values[i, k])
                if done[i, k]:
                    break
                factor *= 0.9 * 0.8
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-5)


def test_each_player_is_differentiated_for_its_own_entry():
    drawn = fm.init(system(), jax.random.key(0))
    mode = fm.Train(jax.random.key(1))
    batch = fm.augment(drawn, fm.Unlabeled(jnp.arange(8)), mode)
    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, batch).sum(), allow_int=True))(drawn)
    alone = jax.jit(jax.grad(lambda s: fm.losses(s, batch)["actor"].mean(), allow_int=True))(drawn)
    np.testing.assert_allclose(slopes.actor.weight, alone.actor.weight, rtol=1e-5)
    assert not np.any(alone.critic.layer.weight) and np.any(slopes.critic.layer.weight)


def test_cart_pole():
    pole, key = CartPole(), jax.random.key(0)
    state = jnp.array([0.0, 0.0, 0.05, 0.0])
    after = fm.environments.step(pole, state, jnp.int32(1), key)
    # By the equations of the paper: the force 10 N on 1.1 kg, the pole's acceleration from the torque.
    shared = 10.0 / 1.1
    spin = (9.8 * np.sin(0.05) - np.cos(0.05) * shared) / (0.5 * (4 / 3 - 0.1 * np.cos(0.05) ** 2 / 1.1))
    np.testing.assert_allclose(
        after.state, [0.0, 0.02 * (shared - 0.05 * spin * np.cos(0.05) / 1.1), 0.05, 0.02 * spin], atol=1e-5
    )
    assert (float(after.reward), bool(after.done)) == (1.0, False)
    fallen = fm.environments.step(pole, jnp.array([0.0, 0.0, 0.3, 0.0]), jnp.int32(0), key)
    assert bool(fallen.done)


def test_an_episode_ends_at_its_limit_and_another_begins():
    pole = CartPole(limit=2)
    playing = begin(pole, jax.random.key(0))
    turn = jax.jit(lambda playing, key: play(pole, playing, jnp.int32(1), key))
    playing, _, first, _ = turn(playing, jax.random.key(1))
    playing, _, second, total = turn(playing, jax.random.key(2))
    assert (bool(first), bool(second), float(total)) == (False, True, 2.0)
    assert int(playing.time) == 0 and float(playing.total) == 0.0


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({"agents": 0}, np.arange(8), ValueError, "ActorCritic.agents must be at least 1"),
        ({"discount": -1.0}, np.arange(8), ValueError, "ActorCritic.discount must be at least 0"),
        (
            {"environment": Linear(1, 1)},
            np.arange(8),
            TypeError,
            r"ActorCritic.environment must be an Environment.* write fm.environments.CartPole",
        ),
        (
            {},
            np.ones((8, 2), np.float32),
            TypeError,
            r"data of an ActorCritic must be one integer per row, such as np.arange\(800\)",
        ),
        ({}, np.arange(6), ValueError, "batch size of an ActorCritic must be .* 8, got 6. Write batch_size=8"),
    ],
)
def test_bad_input(options, data, error, message):
    wrong = fm.replace(system(), options) if "environment" in options else system(**options)
    with pytest.raises(error, match=message):
        fm.setup(wrong, data, optimizer=optax.sgd(0.1), batch_size=8)
