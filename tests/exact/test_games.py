"""A step of a GAN gives bit for bit what two updates written by hand give on the same batch; so does the alternating one.

Run with XLA's full optimisation, by `tests/test_exact.py`: two programs of the same arithmetic agree bit for bit only so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.models import Dense

BATCH, LATENT, STEPS = 32, 16, 6


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((BATCH, 64), np.float32)


class Maker(fm.Model):
    hidden: Dense
    out: Dense


class Judge(fm.Model):
    hidden: Dense
    out: Dense


def two_layers(p, x):
    dense = lambda p, x: jnp.dot(x, p[0]) + p[1][None]
    return dense(p[2:], jax.nn.relu(dense(p[:2], x)))


@dispatch
def forward(maker: Maker, z):
    return jnp.tanh(maker.out(jax.nn.relu(maker.hidden(z))))


@dispatch
def forward(judge: Judge, x):
    return judge.out(jax.nn.relu(judge.hidden(x)))[:, 0]


class Duel(fm.Game):
    judge: Judge
    maker: Maker


@dispatch
def losses(duel: Duel, batch, mode):
    made = duel.maker(jax.random.normal(mode.key, (len(batch), LATENT)))
    return dict(
        judge=jax.nn.softplus(-duel.judge(batch.x)).mean() + jax.nn.softplus(duel.judge(made)).mean(),
        maker=jax.nn.softplus(-duel.judge(made)).mean(),
    )


def arrays(model):
    return [model.hidden.weight, model.hidden.bias, model.out.weight, model.out.bias]


def by_hand(state, x, optimizers, alternating=False, every=1):
    game = state.system.game if alternating else state.system
    maker, judge = arrays(game.maker), arrays(game.judge)
    salted = fm.bind(state.system, fm.Train(jax.random.key(0)))
    salt = (salted.game if alternating else salted).mode.within("losses")

    def made(maker, key):
        return jnp.tanh(two_layers(maker, jax.random.normal(key, (BATCH, LATENT))))

    def for_judge(judge, maker, key, x):
        score = lambda x: two_layers(judge, x)[:, 0]
        return jax.nn.softplus(-score(x)).mean() + jax.nn.softplus(score(made(maker, key))).mean()

    def for_maker(maker, judge, key):
        return jax.nn.softplus(-two_layers(judge, made(maker, key))[:, 0]).mean()

    def moved(optimizer, parameters, moments, slopes):
        updates, moments = optimizer.update(slopes, moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    @jax.jit
    def step(maker, judge, m, j, i, x):
        key = fm.Train(jax.random.fold_in(state.key, i)).root
        key = jax.random.fold_in(key, _salt(salt))
        to_judge = jax.grad(for_judge)(judge, maker, key, x)
        if alternating:
            judge, j = moved(optimizers["judge"], judge, j, to_judge)
        to_maker = jax.grad(for_maker)(maker, judge, key)
        if not alternating:
            judge, j = moved(optimizers["judge"], judge, j, to_judge)
        maker, m = moved(optimizers["maker"], maker, m, to_maker)
        return maker, judge, m, j

    @jax.jit
    def judge_alone(maker, judge, j, i, x):
        key = jax.random.fold_in(jax.random.fold_in(state.key, i), _salt(salt))
        return moved(optimizers["judge"], judge, j, jax.grad(for_judge)(judge, maker, key, x))

    m, j = optimizers["maker"].init(maker), optimizers["judge"].init(judge)
    with jax.numpy_dtype_promotion("standard"):
        for i in range(STEPS):
            if (i + 1) % every:
                judge, j = judge_alone(maker, judge, j, jnp.int32(i), x)
            else:
                maker, judge, m, j = step(maker, judge, m, j, jnp.int32(i), x)
    return maker, judge


def _salt(mode):
    from fulmen.core.mode import _mix

    return _mix(mode.salt, mode.verb)


@pytest.mark.parametrize(("alternating", "every"), [(False, 3), (True, 3)])
def test_two_updates_by_hand(images, alternating, every):
    duel = Duel(Judge(Dense(64, 32), Dense(32, 1)), Maker(Dense(LATENT, 32), Dense(32, 64)))
    optimizers = {"judge": optax.adam(4e-3, b1=0.5), "maker": optax.adam(1e-3, b1=0.5)}
    prefix = "game." if alternating else ""
    given = {f"{prefix}judge": optimizers["judge"], f"{prefix}maker": fm.optimizers.every(every, optimizers["maker"])}
    state = fm.setup(fm.systems.Alternating(duel) if alternating else duel, images, optimizer=given, batch_size=BATCH)
    maker, judge = by_hand(state, images, optimizers, alternating, every)
    state, _ = fm.fit(state, images, steps=STEPS, batch_size=BATCH, seed=None, progress=False)
    game = state.system.game if alternating else state.system
    for ours, theirs in zip([*arrays(game.maker), *arrays(game.judge)], [*maker, *judge], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
