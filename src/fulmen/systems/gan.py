"""`GAN`: a generator against a critic, and what they play for as types: `NonSaturating`, `Hinge`, `Wasserstein`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import unrecorded
from fulmen.core.batch import parts_of
from fulmen.core.component import Component, Game
from fulmen.core.fields import hyper, static
from fulmen.core.mode import Mode, require_key
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import forward, gan_losses, intervals, losses, sample, validate
from fulmen.dispatching.registry import MissingMethodError, dispatch
from fulmen.objectives.classification import Hinge

__all__ = ["GAN", "NonSaturating", "Wasserstein"]


class NonSaturating(Component):
    """The critic tells real from made by logistic regression, and the generator raises the log-odds of being taken for real.

    softplus(−c(x)) + softplus(c(G(z))) for the critic, softplus(−c(G(z))) for the generator. Goodfellow et al. 2014,
    arXiv:1406.2661. `fm.objectives.Hinge()` in its place has margins of 1 for the critic and −c(G(z)) for the generator (Lim and Ye 2017,
    arXiv:1705.02894).
    """


class Wasserstein(Component):
    """The critic's mean on real examples above that on made ones, while its slope is held near 1 between them.

    Gulrajani et al. 2017, arXiv:1704.00028. The critic may not look at several examples at once, as BatchNorm does.

    Args:
        penalty: λ, how much (‖∇c‖ − 1)² counts, at points drawn on the lines from real to made examples.

    >>> fm.systems.Wasserstein()
    Wasserstein(penalty=10.0)
    """

    penalty: float = hyper(minimum=0, default=10.0)


class GAN(Game):
    """A generator that makes examples of noise, and a critic that scores how real an example is.

    Its outputs are the generator's: `fm.predict(state, z)`; `fm.sample` draws z too. Data is the real
    examples, or `{"generator": z, "critic": x}` with noise of one's own.

    Args:
        generator: from noise `(n, latent)` to examples.
        critic: from examples to a score each, `(n,)` or `(n, …)`, of which the losses are averaged.
        objective: what they play for: `NonSaturating()`, `fm.objectives.Hinge()`, `Wasserstein()`.
        latent: how many numbers an example is made of, drawn from a normal distribution: the generator's inputs are `(n, latent)`.
        critic_steps: the generator moves in the last of so many steps, the critic in each.

    **Extending.** Write `gan_losses(objective: Mine, critic, real, fake, key)` for another objective, and `losses(gan: Mine,
    batch, mode)` for a subclass that makes or compares examples in another way.

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
    # The scores' sum has each example's own slope; a pass that is no example of the data moves no running statistics.
    slopes = jax.grad(lambda x: forward(unrecorded(critic), x).sum())(between)
    norms = jnp.sqrt(jnp.sum(slopes.reshape(len(slopes), -1) ** 2, 1) + _TINY)
    penalty = jnp.asarray(objective.penalty, norms.dtype) * (norms - 1) ** 2
    return dict(
        generator=_mean(-on_fake), critic=dict(real=_mean(-forward(critic, real)), fake=_mean(on_fake), penalty=penalty)
    )


_TINY = 1e-12  # the root's slope at 0 is infinite


def _mean(values: Any) -> jax.Array:
    """One per example: the mean over what else there is, such as patches."""
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
        return  # the noise is the data's, or made by another method
    try:
        output_shapes(evaluated, gan.generator, jax.ShapeDtypeStruct((2, gan.latent), jnp.result_type(float)), rows=2)
    except MissingMethodError:
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"GAN, latent: the generator takes no noise of shape (n, {gan.latent}), which latent={gan.latent} asks for: {error}"
        ) from error
