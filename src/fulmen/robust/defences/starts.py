"""Single-step attacks for fast training, and the random starts that defences use."""

import jax
import jax.numpy as jnp

from fulmen.core import hyper, remake
from fulmen.core.verbs import perturb, start_point
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import FGSM, Attack, Start, Uniform, require_key
from fulmen.robust.attacks.region import Ball, Intersection, Region, ball_of, others


class Gaussian(Start):
    """The clean input with normal noise, x + σ · N(0, I): the start of TRADES and MART.

    Args:
        scale: σ, in the input's units.
    """

    scale: float = hyper(minimum=0, default=0.001)


@dispatch
def start_point(start: Gaussian, region, x, key):
    require_key(key)
    return x + jnp.asarray(start.scale).astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)


def fast_fgsm(region: Region, *, alpha: float = 1.25) -> FGSM:
    """FGSM from a uniform start with a step of α ε (Wong, Rice and Kolter 2020, arXiv:2001.03994).

    Args:
        region: the allowed perturbations, with one ball; its radius is ε.
        alpha: the step size in units of ε.

    >>> from fulmen.robust.defences import fast_fgsm
    >>> fast_fgsm(fm.LinfBall(0.1) & fm.Box(0, 1))
    FGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), step_size=0.125, start=Uniform())
    """
    return FGSM(region, step_size=alpha * ball_of(region).eps, start=Uniform())


class NFGSM(Attack):
    """Noisy FGSM, for training: one step from a start in U(−kε, kε), without clipping to the ball.

    x′ = clip(x + η + α sign ∇ℓ(x + η)), clipped to the boxes only (de Jorge et al. 2022, arXiv:2202.01181). Its points are up to
    (k + 1) ε from x, so it does not measure robustness at ε.

    Args:
        region: the ball, whose radius is ε, and boxes.
        noise: k, the radius of the start in units of ε.
        step_size: α; None for ε.

    >>> from fulmen.robust.defences import NFGSM
    >>> NFGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    NFGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    needs_ball = True

    region: Region
    noise: float = hyper(minimum=0, default=2.0)
    step_size: float | None = hyper(minimum=0, default=None)

    def __init__(self, region: Region, *, noise: float = 2.0, step_size: float | None = None) -> None:
        self.__dict__.update(FGSM(region).__dict__, noise=noise, step_size=step_size)


class _UniformIn(Start):
    """A point drawn uniformly from a given ball."""

    ball: Ball


@dispatch
def start_point(start: _UniformIn, region, x, key):
    return start_point(Uniform(), start.ball, x, key)


@dispatch
def perturb(attack: NFGSM, system, batch, key, *, best=True):
    ball = ball_of(attack.region)
    size = ball.eps if attack.step_size is None else attack.step_size
    start = remake(ball, {"eps": attack.noise * ball.eps})
    # The step needs a ball for its norm: one that is large enough never clips.
    wide = remake(ball, {"eps": 2 * (start.eps + size)})
    step = FGSM(Intersection((wide, *others(attack.region))), step_size=size, start=_UniformIn(start))
    return perturb(step, system, batch, key, best=best, checked=True)
