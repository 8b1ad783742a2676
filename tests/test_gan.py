"""`GAN`: what its players play for, and how often the generator's gradient is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import traced_step

X, _ = data(16)


def gan(*objective, **options):
    return fm.GAN(Linear(2, 4), Linear(4, 1), **dict(zip(["objective"], objective)), latent=2, **options)


def softplus(v):
    return np.logaddexp(v, 0)


EXPECTED = {
    "NonSaturating": (lambda real, fake: (softplus(-fake), softplus(-real), softplus(fake))),
    "Hinge": (lambda real, fake: (-fake, np.maximum(1 - real, 0), np.maximum(1 + fake, 0))),
    "Wasserstein": (lambda real, fake: (-fake, -real, fake)),
}


def test_an_evaluation_draws_different_noise_in_each_batch():
    state = fm.setup(gan(), X, optimizer=optax.sgd(0.1))
    twice = np.concatenate([X, X])
    once = fm.evaluate(state, X, batch_size=len(X))
    assert fm.evaluate(state, twice, batch_size=len(X))["loss"] != pytest.approx(once["loss"], rel=1e-4)
    assert fm.evaluate(state, X, batch_size=len(X)) == once


@pytest.mark.parametrize("objective", [fm.systems.NonSaturating(), fm.objectives.Hinge(), fm.systems.Wasserstein()])
def test_the_losses_of_each_objective(objective):
    system = fm.init(gan(objective), jax.random.key(0))
    z = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    found = jax.jit(lambda s, raw: fm.losses(s, raw, fm.Train(jax.random.key(1))))(system, {"generator": z, "critic": X})
    score = lambda x: np.asarray(system.critic(x))[:, 0]
    generator, real, fake = EXPECTED[type(objective).__name__](score(X), score(system.generator(z)))
    np.testing.assert_allclose(found["generator"], generator, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["critic"]["real"], real, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["critic"]["fake"], fake, rtol=1e-4, atol=1e-5)
    if isinstance(objective, fm.systems.Wasserstein):  # a linear critic has one slope everywhere
        slope = np.linalg.norm(system.critic.weight)
        np.testing.assert_allclose(found["critic"]["penalty"], 10 * (slope - 1) ** 2, rtol=1e-4)


def test_samples_are_outputs_of_the_generator():
    system, key = fm.init(gan(), jax.random.key(0)), jax.random.key(1)
    z = jax.random.normal(key, (5, 2))
    np.testing.assert_array_equal(fm.sample(system, key, (5, 2)), system.generator(z))
    state = fm.setup(fm.Population(gan(), 3), X, optimizer=optax.sgd(0.1))
    each = [fm.sample(member, key, (5, 2)) for member in fm.members(state)]
    np.testing.assert_allclose(fm.sample(state, key, (5, 2)), np.stack(each), rtol=1e-5)
    assert not np.allclose(each[0], each[1])


@pytest.mark.parametrize(
    "objective", [fm.systems.NonSaturating(), fm.objectives.Hinge(), fm.systems.Wasserstein(penalty=1.0)]
)
def test_the_generator_approaches_the_data(objective):
    shifted = (0.1 * X + 1).astype(np.float32)
    system = fm.init(gan(objective, critic_steps=1), jax.random.key(0))
    optimizer = fm.optimizers.Optimizer(optax.rmsprop, 0.02)
    state, history = fm.fit(system, shifted, optimizer=optimizer, steps=300, batch_size=16, progress=False)
    z = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    far = lambda system: np.abs(fm.predict(system, z).mean(0) - 1).max()
    assert far(state) < 0.5 * far(system)
    assert np.isfinite(history["loss"]).all()


class Watched(fm.Model):
    """A linear map whose gradient, whenever one is computed, is noted on the host."""

    layer: Linear
    name: str


NOTED: list[str] = []


@jax.custom_vjp
def _same(x, name):
    return x


_same.defvjp(lambda x, name: (x, name), lambda name, slope: (_note(slope, name), None))


def _note(slope, name):
    jax.debug.callback(lambda _: NOTED.append(name.text), slope.ravel()[0])
    return slope


class Name:
    """A name that is no array, as a pytree without leaves."""

    def __init__(self, text):
        self.text = text


jax.tree_util.register_pytree_node(Name, lambda name: ((), name.text), lambda text, _: Name(text))


@dispatch
def forward(watched: Watched, x):
    layer = watched.layer
    return x @ _same(layer.weight, Name(watched.name)) + layer.bias[None]


def watched(steps):
    game = fm.GAN(
        Watched(Linear(2, 4), "generator"),
        Watched(Linear(4, 1), "critic"),
        latent=2,
        critic_steps=steps,
    )
    return fm.setup(game, X, optimizer=optax.sgd, lr=1e-3, steps=10)


@pytest.mark.parametrize("fitted", [True, False])
def test_the_generators_gradient_is_computed_in_one_step_of_five(fitted):
    state = watched(5)
    NOTED.clear()
    if fitted:
        fm.fit(state, X, steps=10, progress=False)
    else:
        for _ in range(10):
            state, _ = fm.train_step(state, X)
    jax.effects_barrier()
    assert NOTED.count("generator") == 2
    assert NOTED.count("critic") >= 10


def test_a_step_without_the_generator_costs_as_much_as_a_handwritten_critic_step():
    big = fm.GAN(Linear(32, 128), Linear(128, 1), objective=fm.systems.NonSaturating(), latent=32, critic_steps=5)
    x = np.ones((64, 128), np.float32)
    state = fm.setup(big, x, optimizer=optax.sgd(0.1), batch_size=64)
    alone, both = (
        traced_step(state, x, rest).lower().compile().cost_analysis()["flops"] for rest in update_schedule(state).sets()
    )

    def by_hand(generator, critic, key, x):
        made = generator(jax.random.normal(key, (64, 32)))
        soft = lambda v: jax.nn.softplus(v).mean()
        value, slope = jax.value_and_grad(lambda critic: soft(-critic(x)) + soft(critic(made)))(critic)
        return value, soft(-critic(made)), jax.tree.map(lambda p, g: p - 0.1 * g, critic, slope)

    system = state.system
    theirs = jax.jit(by_hand).lower(system.generator, system.critic, state.key, x).compile().cost_analysis()["flops"]
    assert alone <= 1.02 * theirs
    assert alone < 0.8 * both


def test_the_penalty_does_not_change_running_statistics():
    critic = fm.models.Chain(fm.models.BatchNorm(4), fm.models.Dense(4, 1))
    drawn = fm.init(critic, jax.random.key(0))
    real, fake = jnp.ones((8, 4)), jnp.zeros((8, 4))

    class Scored(fm.Model):
        critic: fm.Component
        objective: fm.Component

    @dispatch
    def loss(scored: Scored, batch: fm.Unlabeled):
        found = fm.systems.gan_losses(scored.objective, scored.critic, real, fake, jax.random.key(0))
        return sum(entry.mean() for entry in found["critic"].values())

    moved = [
        jax.jit(fm.differentiate)(Scored(drawn, objective), fm.Unlabeled(real), fm.Train(jax.random.key(0)))[2].critic
        for objective in (fm.objectives.Hinge(), fm.systems.Wasserstein())
    ]
    np.testing.assert_array_equal(*(m.layers[0].mean.value for m in moved))
    assert np.any(moved[0].layers[0].mean.value)


def test_patches_are_averaged():
    class Patches(fm.Model):
        layer: Linear

    @dispatch
    def forward(patches: Patches, x):
        return patches.layer(x).reshape(len(x), 2, 3, 1)

    system = fm.init(fm.GAN(Linear(2, 4), Patches(Linear(4, 6)), latent=2), jax.random.key(0))
    found = fm.losses(system, X, fm.Train(jax.random.key(0)))
    np.testing.assert_allclose(found["critic"]["real"], softplus(-np.asarray(system.critic(X))).mean((1, 2, 3)), rtol=1e-5)


def test_the_noise_has_the_configured_precision():
    with jax.enable_x64(True):
        drawn = jax.tree.map(lambda v: v.astype(np.float64), fm.init(gan(), jax.random.key(0)))
        fm.setup(drawn, X.astype(np.float64), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"critic_steps": 0},
            ValueError,
            "GAN.critic_steps must be at least 1, got 0",
        ),
        ({"latent": 0}, ValueError, "GAN.latent must be at least 1, got 0"),
        ({"objective": fm.systems.Wasserstein(-1.0)}, ValueError, "Wasserstein.penalty must be at least 0"),
        ({"objective": fm.MSE()}, TypeError, "gan_losses"),
        ({"objective": 3.0}, TypeError, r"GAN.objective must be a Component, got 3.0; write fm.systems.NonSat"),
        (
            {"latent": 3},
            ValueError,
            r"GAN.latent must be the size of .* the generator fails for noise \(n, 3\): .*3",
        ),
        ({"generator": 3.0}, TypeError, "GAN.generator must be a Component, got 3.0"),
    ],
)
def test_invalid_options(options, error, message):
    with pytest.raises(error, match=message):
        given = {"generator": Linear(2, 4), "critic": Linear(4, 1), "latent": 2, **options}
        fm.setup(fm.GAN(**given), X, optimizer=optax.sgd(0.1))
