"""Variants of the fast gradient sign method: iterated, random starts, momentum, smoothed and diverse gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import concrete, hyper, number, remake, static
from fulmen.core.verbs import scaled, start_point, transformation, validate, views
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import CLEAN, FGSM, PGD, Start, SteepestAscent, require_key
from fulmen.robust.attacks.chain_attacks import SHARE, slide
from fulmen.robust.attacks.input_transform import Diverse, Nesterov, OfImages, View, has_channels_first
from fulmen.robust.attacks.region import ball_of

# Transformations of the gradient


def momentum(decay: Any) -> optax.GradientTransformation:
    """Momentum of gradients divided by their L1 norm: m ← decay · m + g / ‖g‖₁ (Dong et al. 2018, arXiv:1710.06081).

    A gradient of zeros adds nothing.

    Args:
        decay: the factor of the momentum at each step: a number, possibly traced.

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


def smooth(size: int = 15, channels_first: bool | None = False) -> optax.GradientTransformation:
    """The gradient of an image, `(height, width, channels)`, smoothed by a Gaussian, padded with zeros.

    It approximates the mean gradient over translations of the image. Dong et al. 2019, arXiv:1904.02884.

    Args:
        size: height and width of the kernel in pixels, six standard deviations: an odd number, at least 3.
        channels_first: whether images are `(channels, height, width)`; None refuses shapes that look like it.

    >>> chain = fm.attacks.smooth(3)
    >>> smoothed, _ = chain.update(jnp.ones((3, 3, 1)), chain.init(None))
    >>> print(np.asarray(smoothed[:, :, 0]).round(2))
    [[0.98 0.99 0.98]
     [0.99 1.   0.99]
     [0.98 0.99 0.98]]
    """
    if not isinstance(size, int) or size < 3 or size % 2 == 0:
        raise ValueError(f"smooth: size must be an odd number of pixels, at least 3, got {size!r}.")
    kernel = np.exp(-(np.linspace(-3, 3, size) ** 2) / 2)
    kernel /= kernel.sum()

    def matrix(length: int) -> np.ndarray:
        """The convolution of an axis of that length, as a matrix."""
        return np.sum([weight * np.eye(length, k=offset - size // 2) for offset, weight in enumerate(kernel)], 0)

    def smoothed(g: jax.Array) -> jax.Array:
        if g.ndim != 3:
            raise ValueError(f"smooth needs images (height, width, channels), got examples {g.shape}.")
        first = has_channels_first(channels_first, g.shape, "TIFGSM")
        rows, columns = (jnp.asarray(matrix(length), g.dtype) for length in (g.shape[1:] if first else g.shape[:2]))
        return jnp.einsum("ih,jw,chw->cij" if first else "ih,jw,hwc->ijc", rows, columns, g, precision="highest")

    return optax.stateless(lambda gradient, params: jax.tree.map(smoothed, gradient))


# Single steps


class RandomSign(Start):
    """The clean input with `size` added to or subtracted from each coordinate, at random.

    Args:
        size: the change of each coordinate, in the input's units; None is half the ball's radius.
    """

    __example__ = "fm.attacks.RandomSign(size)"

    size: float | None = hyper(minimum=0, default=None)


def _random_step(start: RandomSign, region: Any) -> Any:
    return ball_of(region).eps / 2 if start.size is None else start.size


@dispatch
def scaled(start: RandomSign, factor):
    return start if start.size is None else remake(start, {"size": start.size * factor})


@dispatch
def start_point(start: RandomSign, region, x, key):
    require_key(key)
    size = jnp.asarray(_random_step(start, region)).astype(x.dtype)
    return x + size * jax.random.rademacher(key, x.shape, x.dtype)


class RFGSM(FGSM):
    """R+FGSM: a random step α · sign N(0, I), then the step of `FGSM` (Tramèr et al. 2018, arXiv:1705.07204).

    Args:
        region: the region of allowed points.
        start: the random step, `fm.attacks.RandomSign(α)`; α defaults to half the radius. It is meant for a `LinfBall`: in a ball
            of another norm, a change of each coordinate by that much goes to the boundary.
        step_size: the size of the second step; None is the radius minus α.

    >>> fm.attacks.RFGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    RFGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    start: RandomSign = dataclasses.field(default=RandomSign(), kw_only=True)  # type: ignore[assignment]  # narrower than the base class's

    @property
    def default_step(self) -> Any:
        return ball_of(self.region).eps - _random_step(self.start, self.region)


# Many steps


class BIM(PGD):
    """The basic iterative method, I-FGSM: `PGD` from the clean input (Kurakin et al. 2017, arXiv:1607.02533).

    Args: as of `PGD`.

    >>> fm.attacks.BIM(fm.LinfBall(0.1), step_size=0.02, steps=10)
    BIM(region=LinfBall(eps=0.1), step_size=0.02, steps=10)
    """

    start: Start = dataclasses.field(default=CLEAN)


class SLIDE(PGD):
    """`PGD` in an `L1Ball` with a given share of moving coordinates, those of largest gradient; `PGD` moves a twentieth.

    Tramèr and Boneh 2019, arXiv:1904.13000, "sparse L1 descent attack", where the share is a hundredth: a single coordinate of a
    small image, which is far weaker.

    Args:
        region: the region of allowed points, with one `L1Ball`.
        step_size: the 1-norm of a step, in the input's units.
        steps: the number of steps.
        start: the starting point.
        q: the share of the coordinates that move at a step.

    >>> fm.attacks.SLIDE(fm.attacks.L1Ball(2.0) & fm.Box(0, 1), step_size=0.5, steps=10)
    SLIDE(region=L1Ball(eps=2.0) & Box(lo=0, hi=1), step_size=0.5, steps=10)
    """

    norms = (1,)

    q: float = static(minimum=0, maximum=1, default=SHARE, kw_only=True)


@dispatch
def transformation(attack: SLIDE):
    return slide(attack.step_size, attack.q)


class MIFGSM(SteepestAscent):
    """The iterated method with momentum: m ← decay · m + g / ‖g‖₁, and a step in the direction of m.

    Dong et al. 2018, arXiv:1710.06081.

    Args:
        region: the region of allowed points; its one ball defines the norm of the step.
        step_size: the size of a step, in the input's units; None is the radius divided by `steps`.
        steps: the number of steps.
        decay: the factor of the momentum at each step.

    >>> fm.attacks.MIFGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    MIFGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    step_size: float | None = hyper(default=None)
    steps: int = static(default=10)
    decay: float = hyper(minimum=0, default=1.0)

    @property
    def default_step(self) -> Any:
        return ball_of(self.region).eps / self.steps


class NIFGSM(MIFGSM):
    """`MIFGSM` with the gradient at x + step_size · decay · m, ahead along the momentum (Lin et al. 2020, arXiv:1908.06281).

    As m is a sum of gradients with L1 norm 1, that is not far in a large image;
    `fm.attacks.MIFGSM(…, views=(fm.attacks.Nesterov(distance),))` sets the distance. Finding the best point costs one more
    forward pass per step.

    Args: as of `MIFGSM`.
    """


class DIFGSM(MIFGSM):
    """`MIFGSM` with input diversity: each step shrinks and pads some images (DI²-FGSM, Xie et al. 2019, arXiv:1803.06978).

    With `decay=1.0` it is M-DI²-FGSM. Finding the best point costs one more forward pass per step.

    Args: as of `MIFGSM`, and
        views: the transforms of the images.
    """

    decay: float = hyper(default=0.0)
    views: tuple[View, ...] = dataclasses.field(default=(Diverse(),), kw_only=True)


class TIFGSM(MIFGSM, OfImages):
    """`MIFGSM` with smoothed gradients, which transfer better to other models (Dong et al. 2019, arXiv:1904.02884).

    With `decay=1.0, views=(fm.attacks.Diverse(),)` it is TI-DIM.

    Args: as of `MIFGSM`, and
        size: height and width of the Gaussian kernel, in pixels.
        channels_first: see `Square`.
    """

    decay: float = hyper(default=0.0)
    size: int = static(default=15, kw_only=True)


@dispatch
def transformation(attack: MIFGSM):
    return optax.chain(momentum(attack.decay), transformation.invoke(SteepestAscent)(attack))


@dispatch
def transformation(attack: TIFGSM):
    return optax.chain(smooth(attack.size, attack.channels_first), transformation.invoke(MIFGSM)(attack))


@dispatch
def views(attack: NIFGSM):
    return (Nesterov(attack.step_length * attack.decay), *attack.views)


@dispatch
def validate(attack: TIFGSM):
    validate.invoke(SteepestAscent)(attack)
    smooth(attack.size)


@dispatch
def validate(attack: RFGSM):
    validate.invoke(SteepestAscent)(attack)
    size, eps = concrete(attack.start.size), concrete(ball_of(attack.region).eps)
    if size is not None and eps is not None and (size > eps).any():
        raise ValueError(f"RFGSM.start: its size must be at most the radius, {number(eps)}, got {number(size)}.")
