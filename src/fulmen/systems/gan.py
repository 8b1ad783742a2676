"""`GAN`: a generator against a critic, and its objectives: `NonSaturating`, `Hinge`, `Wasserstein`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import unrecorded
from fulmen.core import Component, Game, Mode, hyper, parts_of, require_key, static
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import forward, gan_losses, intervals, losses, sample, validate
from fulmen.dispatching.errors import MissingMethodError
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.classification import Hinge


class NonSaturating(Component):
    """The critic separates real from generated examples by logistic regression; the generator increases the critic's log-odds.

    softplus(−c(x)) + softplus(c(G(z))) for the critic, softplus(−c(G(z))) for the generator. Goodfellow et al. 2014,
    arXiv:1406.2661. The alternative `fm.objectives.Hinge()` has margins of 1 for the critic, and −c(G(z)) for the generator (Lim
    and Ye 2017, arXiv:1705.02894).
    """


class Wasserstein(Component):
    """The critic maximises its mean on real examples minus that on generated ones, with a penalty on its gradient between them.

    Gulrajani et al. 2017, arXiv:1704.00028. The critic must not combine several examples, as BatchNorm does.

    Args:
        penalty: λ, the weight of (‖∇c‖ − 1)², at random points on the lines from real to generated examples.

    >>> fm.systems.Wasserstein()
    Wasserstein(penalty=10.0)
    """

    penalty: float = hyper(minimum=0, default=10.0)


class GAN(Game):
    """A generator that makes examples from noise, and a critic that scores how real an example is.

    The outputs are those of the generator: `fm.predict(state, z)`; `fm.sample` draws z. Data is the real examples, or
    `{"generator": z, "critic": x}` with user-defined noise.

    Args:
        generator: from noise `(n, latent)` to examples.
        critic: from examples to one score each, `(n,)`, or several, `(n, …)`, whose losses are averaged.
        objective: `NonSaturating()`, `fm.objectives.Hinge()` or `Wasserstein()`.
        latent: the size of the noise, which is drawn from a standard normal distribution.
        critic_steps: the generator is updated in every `critic_steps`-th step, the critic in every step.

    **Extending.** Write `gan_losses(objective: Mine, critic, real, fake, key)` for a custom objective, and `losses(gan: Mine,
    batch, mode)` for a subclass that generates or compares examples differently.

    >>> gan = fm.GAN(fm.models.MLP(2, 8, 4), fm.models.MLP(4, 8, 1), objective=fm.systems.Wasserstein(), latent=2, critic_steps=5)
    >>> state, _ = fm.fit(gan, jnp.ones((32, 4)), optimizer=optax.adam, lr=1e-3, steps=5, progress=False)
    >>> fm.predict(state, jnp.ones((3, 2))).shape, fm.sample(state, jax.random.key(0), (5, 2)).shape
    ((3, 4), (5, 4))
    """

    generator: Component
    critic: Component
    objective: Component = dataclasses.field(
        default_factory=NonSaturating,
        kw_only=True,
        metadata={"example": "fm.systems.NonSaturating(), fm.objectives.Hinge() or fm.systems.Wasserstein()"},
    )
    latent: int = static(minimum=1, default=64, kw_only=True)
    critic_steps: int = static(minimum=1, default=1, kw_only=True)


def _losses(gan: GAN, batch, mode: Mode):
    given: Any = parts_of(batch)
    real = given["critic"].x if given else batch.x
    key = mode.at("noise").key
    z = given["generator"].x if given else jax.random.normal(require_key(key, gan), (len(batch), gan.latent))
    return gan_losses(gan.objective, gan.critic, real, forward(gan.generator, z), mode.at("objective").key)


losses.dispatch(_losses)


@dispatch
def gan_losses(objective: NonSaturating, critic, real, fake, key):
    on_fake = forward(critic, fake)
    return dict(
        generator=_mean(jax.nn.softplus(-on_fake)),
        critic=dict(real=_mean(jax.nn.softplus(-forward(critic, real))), fake=_mean(jax.nn.softplus(on_fake))),
    )


@dispatch
def gan_losses(objective: Hinge, critic, real, fake, key):
    on_fake = forward(critic, fake)
    return dict(
        generator=_mean(-on_fake),
        critic=dict(real=_mean(jax.nn.relu(1 - forward(critic, real))), fake=_mean(jax.nn.relu(1 + on_fake))),
    )


@dispatch
def gan_losses(objective: Wasserstein, critic, real, fake, key):
    on_fake = forward(critic, fake)
    share = jax.random.uniform(require_key(key, objective), (len(real), *[1] * (real.ndim - 1)), real.dtype)
    between = share * real + (1 - share) * fake.astype(real.dtype)
    # The gradient of the sum is each example's gradient. Points between examples are not data, so nothing is recorded.
    slopes = jax.grad(lambda x: forward(unrecorded(critic), x).sum())(between)
    norms = jnp.sqrt(jnp.sum(slopes.reshape(len(slopes), -1) ** 2, 1) + _TINY)
    penalty = jnp.asarray(objective.penalty, norms.dtype) * (norms - 1) ** 2
    return dict(
        generator=_mean(-on_fake), critic=dict(real=_mean(-forward(critic, real)), fake=_mean(on_fake), penalty=penalty)
    )


_TINY = 1e-12  # the root's slope at 0 is infinite


def _mean(values: Any) -> jax.Array:
    """One per example: the mean over all other axes, such as patches."""
    return values.mean(tuple(range(1, values.ndim))) if values.ndim > 1 else values


@dispatch
def forward(gan: GAN, z):
    return forward(gan.generator, z)


@dispatch
def sample(gan: GAN, key, shape):
    return forward(gan.generator, jax.random.normal(key, shape))


@dispatch
def intervals(gan: GAN):
    return dict(generator=gan.critic_steps) if gan.critic_steps != 1 else {}


@dispatch
def validate(gan: GAN, batch):
    if parts_of(batch) or losses.method(gan, batch).function is not _losses:
        return  # the noise is in the data, or another method draws it
    try:
        output_shapes(evaluated, gan.generator, jax.ShapeDtypeStruct((2, gan.latent), jnp.result_type(float)), rows=2)
    except MissingMethodError:
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"GAN.latent must be the size of the generator's inputs, but the generator fails for noise (n, {gan.latent}): {error}"
        ) from error
