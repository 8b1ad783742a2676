"""The fast gradient sign method's descendants: iterated, started at random, with momentum, smoothed and diverse gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core.fields import hyper, static
from fulmen.core.naming import concrete, number
from fulmen.core.verbs import start_point, transformation, validate, views
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import CLEAN, FGSM, PGD, Start, SteepestAscent, require_key
from fulmen.robust.attacks.balls import slide
from fulmen.robust.attacks.input_transform import Diverse, Nesterov, View
from fulmen.robust.attacks.region import ball_of

__all__ = ["BIM", "DIFGSM", "MIFGSM", "NIFGSM", "RFGSM", "SLIDE", "TIFGSM", "RandomSign", "momentum", "smooth"]


# Transformations of the gradient


def momentum(decay: Any) -> optax.GradientTransformation:
    """The sum of all gradients so far, each divided by its L1 norm: m ← decay · m + g / ‖g‖₁.

    Dong et al. 2018, arXiv:1710.06081. A gradient of zeros counts nothing.

    Args:
        decay: what becomes of the sum at each step: a number, also one that is being traced.

    >>> chain = fm.attacks.momentum(0.5)
    >>> step, state = chain.update(jnp.array([3.0, -1.0]), chain.init(jnp.zeros(2)))
    >>> print(step, chain.update(jnp.array([0.0, 2.0]), state)[0])
    [ 0.75 -0.25] [0.375 0.875]
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def added(g: jax.Array, m: jax.Array) -> jax.Array:
            norm = jnp.abs(g).sum()
            return jnp.asarray(decay).astype(g.dtype) * m + g / jnp.where(norm > 0, norm, 1)

        total = jax.tree.map(added, updates, state.trace)
        return total, optax.TraceState(total)

    return optax.GradientTransformation(lambda params: optax.TraceState(jax.tree.map(jnp.zeros_like, params)), update)


def smooth(size: int = 15) -> optax.GradientTransformation:
    """The gradient of an image, `(height, width, channels)`, smoothed by a Gaussian of `(size − 1) / 6` pixels.

    It stands for the mean of the gradients at the image's translations; beyond the edges there are zeros. Dong et al. 2019,
    arXiv:1904.02884.

    Args:
        size: height and width of the kernel, which ends at three standard deviations: an odd number of at least 3.

    >>> chain = fm.attacks.smooth(3)
    >>> smoothed, _ = chain.update(jnp.ones((3, 3, 1)), chain.init(None))
    >>> print(np.asarray(smoothed[:, :, 0]).round(2))
    [[0.98 0.99 0.98]
     [0.99 1.   0.99]
     [0.98 0.99 0.98]]
    """
    if not isinstance(size, int) or size < 3 or size % 2 == 0:
        raise ValueError(f"smooth, size: an odd number of pixels, of at least 3, was expected, and {size!r} came.")
    kernel = np.exp(-(np.linspace(-3, 3, size) ** 2) / 2)
    kernel /= kernel.sum()

    def along(length: int) -> np.ndarray:
        """The kernel as a matrix, by which an axis of that length is multiplied."""
        bands = [weight * np.eye(length, k=offset - size // 2) for offset, weight in enumerate(kernel)]
        return np.sum(bands, 0)

    def smoothed(g: jax.Array) -> jax.Array:
        if g.ndim != 3:
            raise ValueError(f"smooth takes gradients of images (height, width, channels), and examples {g.shape} came.")
        rows, columns = (jnp.asarray(along(length), g.dtype) for length in g.shape[:2])
        return jnp.einsum("ih,jw,hwc->ijc", rows, columns, g, precision="highest")

    return optax.stateless(lambda gradient, params: jax.tree.map(smoothed, gradient))


# Single steps


class RandomSign(Start):
    """A corner of a cube around the clean input, drawn at random.

    Args:
        size: half the cube's side; None is half the ball's radius.
    """

    __example__ = "fm.attacks.RandomSign(size)"

    size: float | None = hyper(minimum=0, default=None)


def _size(start: RandomSign, region: Any) -> Any:
    return ball_of(region).eps / 2 if start.size is None else start.size


@dispatch
def start_point(start: RandomSign, region, x, key):
    require_key(key)
    return x + jnp.asarray(_size(start, region)).astype(x.dtype) * jnp.sign(jax.random.normal(key, x.shape, x.dtype))


class RFGSM(FGSM):
    """R+FGSM: a random step α · sign N(0, I), and the fast gradient sign method's with what is left of the radius.

    Tramèr et al. 2018, arXiv:1705.07204.

    Args:
        region: where the attack may go.
        start: the random step, of half the radius unless it says otherwise: `fm.attacks.RandomSign(α)`.
        step_size: the size of the second step; None is the radius less α.

    >>> fm.attacks.RFGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    RFGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    start: RandomSign = dataclasses.field(default=RandomSign(), kw_only=True)


@dispatch
def transformation(attack: RFGSM):
    ball = ball_of(attack.region)
    return transformation(ball, ball.eps - _size(attack.start, ball) if attack.step_size is None else attack.step_size)


# Many steps


class BIM(PGD):
    """The basic iterative method, or I-FGSM: projected gradient descent on −loss from the clean input itself.

    Kurakin, Goodfellow and Bengio 2017, arXiv:1607.02533.

    Args:
        region: where the attack may go; its one ball decides the norm.
        step_size: the size of a step, in the input's units.
        steps: how many.
        start: where it starts.

    >>> fm.attacks.BIM(fm.LinfBall(0.1), step_size=0.02, steps=10)
    BIM(region=LinfBall(eps=0.1), step_size=0.02, steps=10)
    """

    start: Start = dataclasses.field(default=CLEAN)


class SLIDE(PGD):
    """Sparse projected gradient descent in an `L1Ball`: the largest slopes share the step (Tramèr and Boneh 2019).

    Their "sparse L1 descent attack", arXiv:1904.13000; `PGD` moves one coordinate at a time there.

    Args:
        region: where the attack may go, with one `L1Ball` in it.
        step_size: the length of a step, the sum over its coordinates, in the input's units.
        steps: how many.
        start: where it starts.
        q: the share of the coordinates that move at a step.

    >>> fm.attacks.SLIDE(fm.attacks.L1Ball(2.0) & fm.Box(0, 1), step_size=0.5, steps=10)
    SLIDE(region=L1Ball(eps=2.0) & Box(lo=0, hi=1), step_size=0.5, steps=10)
    """

    q: float = static(default=0.01, kw_only=True)


@dispatch
def transformation(attack: SLIDE):
    return slide(attack.step_size, attack.q)


@dispatch
def validate(attack: SLIDE):
    validate.invoke(SteepestAscent)(attack)
    slide(0.0, attack.q)
    if ball_of(attack.region).norm_order != 1:
        raise ValueError(f"SLIDE, region: one with an L1Ball was expected, and {attack.region!r} came.")


class MIFGSM(SteepestAscent):
    """The iterated method with momentum: m ← decay · m + g / ‖g‖₁, and a step in the direction of m.

    Dong et al. 2018, arXiv:1710.06081.

    Args:
        region: where the attack may go; its one ball decides the norm of the step.
        step_size: the size of a step, in the input's units; None is the radius divided by `steps`.
        steps: how many.
        decay: what becomes of the momentum at each step.

    >>> fm.attacks.MIFGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    MIFGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    step_size: float | None = hyper(default=None)
    steps: int = static(default=10)
    decay: float = hyper(minimum=0, default=1.0)


class NIFGSM(MIFGSM):
    """`MIFGSM` with the gradient at x + step_size · decay · m, where the momentum alone would lead.

    Lin et al. 2020, arXiv:1908.06281. As m is made of gradients that were divided by their L1 norm, that is not far in an
    image of many pixels; `fm.attacks.MIFGSM(…, views=(fm.attacks.Nesterov(distance),))` looks as far as one likes. Where the best point is
    wanted, the point itself is looked at as well, for one more forward pass a step.

    Args:
        region: where the attack may go; its one ball decides the norm of the step.
        step_size: the size of a step, in the input's units; None is the radius divided by `steps`.
        steps: how many.
        decay: what becomes of the momentum at each step.
    """


class DIFGSM(MIFGSM):
    """The iterated method with input diversity: at each step some images are made smaller and padded (DI²-FGSM).

    With `decay=1.0` it is M-DI²-FGSM. Xie et al. 2019, arXiv:1803.06978. Where the best point is wanted, the point itself is
    looked at as well, for one more forward pass a step.

    Args:
        region: where the attack may go; its one ball decides the norm of the step.
        step_size: the size of a step, in the input's units; None is the radius divided by `steps`.
        steps: how many.
        decay: what becomes of the momentum at each step.
        views: how the images are changed.
    """

    decay: float = hyper(default=0.0)
    views: tuple[View, ...] = dataclasses.field(default=(Diverse(),), kw_only=True)


class TIFGSM(MIFGSM):
    """The iterated method with smoothed gradients, which transfer better to other models.

    With `decay=1.0, views=(fm.attacks.Diverse(),)` it is TI-DIM. Dong et al. 2019, arXiv:1904.02884.

    Args:
        region: where the attack may go; its one ball decides the norm of the step.
        step_size: the size of a step, in the input's units; None is the radius divided by `steps`.
        steps: how many.
        decay: what becomes of the momentum at each step.
        size: height and width of the Gaussian kernel.
    """

    decay: float = hyper(default=0.0)
    size: int = static(default=15, kw_only=True)


def _step_size(attack: MIFGSM) -> Any:
    return ball_of(attack.region).eps / attack.steps if attack.step_size is None else attack.step_size


@dispatch
def transformation(attack: MIFGSM):
    return optax.chain(momentum(attack.decay), transformation(ball_of(attack.region), _step_size(attack)))


@dispatch
def transformation(attack: TIFGSM):
    return optax.chain(smooth(attack.size), transformation.invoke(MIFGSM)(attack))


@dispatch
def views(attack: NIFGSM):
    return (Nesterov(_step_size(attack) * attack.decay), *attack.views)


@dispatch
def validate(attack: TIFGSM):
    validate.invoke(SteepestAscent)(attack)
    smooth(attack.size)


@dispatch
def validate(attack: RFGSM):
    validate.invoke(SteepestAscent)(attack)
    size, eps = concrete(attack.start.size), concrete(ball_of(attack.region).eps)
    if size is not None and eps is not None and (size > eps).any():
        raise ValueError(
            f"RFGSM, start: a random step of at most the radius, {number(eps)}, was expected, and {number(size)} came."
        )
