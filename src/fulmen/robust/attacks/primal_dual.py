"""`PDPGD`: the primal-dual proximal gradient attack."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core import hyper, remake, static
from fulmen.core.marks import ignores_steps
from fulmen.core.verbs import advance, begin, length, project
from fulmen.dispatching.registry import dispatch, verb
from fulmen.robust.attacks.attack_loop import AttackState, along
from fulmen.robust.attacks.minimal_norm import MinimalNorm, ascent, clean_fields, keep_nearest, limits, share_done
from fulmen.robust.attacks.region import L1Ball, L2Ball, LinfBall, ball_of

__all__ = ["PDPGD"]


class PDPGD(MinimalNorm):
    """Primal-dual proximal gradient descent: minimises the distance, with a multiplier for the constraint that the class changes.

    A step descends log(1 + exp(z_y − max_{i≠y} z_i)) by Adam, shrinks the change by the proximal operator of the norm, and
    moves the multiplier by the sign of the margin. Matyasko and Chau 2021, arXiv:2106.01538. A step takes a forward and a
    backward pass. See `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        region: with an `L1Ball`, `L2Ball` or `LinfBall`, whose radius defines which points are near enough; its boxes limit
            the points.
        steps: the number of steps.
        step_size: Adam's first learning rate, in the input's units; it falls exponentially to a hundredth.
        ratio: the first weight of the distance, relative to the weight of the constraint.
        dual_step: the first step of the logarithm of that ratio; it falls linearly to a tenth.
        memory: the share of the weights that is kept at each step, a moving average.
        target: the goal.

    >>> fm.attacks.PDPGD(fm.L1Ball(2.0) & fm.Box(0, 1), steps=200)
    PDPGD(region=L1Ball(eps=2.0) & Box(lo=0, hi=1), steps=200)
    """

    needs_ball = True
    norms = (1, 2, math.inf)

    steps: int = static(default=500)
    step_size: float = hyper(above=0, default=0.1, kw_only=True)
    ratio: float = hyper(above=0, below=1, default=0.01, kw_only=True)
    dual_step: float = hyper(minimum=0, default=0.1, kw_only=True)
    memory: float = hyper(minimum=0, below=1, default=0.9, kw_only=True)


class PDPGDState(AttackState):
    """The state of `PDPGD`.

    Attributes:
        moments: Adam's state.
        multiplier: `(n,)`, the logarithm of the weight of the constraint, relative to the weight of the distance.
        weight: `(n,)`, the moving average of the constraint's share of both weights.
    """

    moments: Any = None
    multiplier: Any = None
    weight: Any = None


_ADAM = optax.scale_by_adam()
PROXIMAL_STEPS, CLOSE = 5, 1e-2
"""Iterations of the proximal operator in Adam's metric (arXiv:1910.10094), and the relative change at which they end."""
LARGEST = math.log(1e6)
"""The largest absolute value of the multiplier."""


@verb(delegates=False)
def shrunk(ball, offset, weight):
    """The proximal operator: the minimiser of ½‖u − offset‖₂² + weight · ‖u‖, in the ball's norm, `(n, features)`.

    `offset` is `(n, features)`, and `weight` is `(n, 1)`.
    """


@dispatch
def shrunk(ball: L1Ball, offset, weight):
    return jnp.sign(offset) * jnp.maximum(jnp.abs(offset) - weight, 0)


@dispatch
def shrunk(ball: L2Ball, offset, weight):
    norm = jnp.sqrt((offset**2).sum(1, keepdims=True))
    return offset * jnp.maximum(1 - weight / jnp.where(norm > 0, norm, 1), 0)


@dispatch
def shrunk(ball: LinfBall, offset, weight):
    """The rest of the projection onto the ball of the dual norm (Moreau)."""
    return offset - project(L1Ball(weight[:, 0]), offset, jnp.zeros_like(offset))


@dispatch
def begin(attack: PDPGD, problem):
    x = problem.image
    first = jnp.broadcast_to(-jnp.log(jnp.asarray(attack.ratio).astype(x.dtype)), (len(x),))
    dual = {"multiplier": first, "weight": jax.nn.sigmoid(first)}
    return PDPGDState(**clean_fields(problem), moments=jax.vmap(_ADAM.init)(x), **dual)


@dispatch
@ignores_steps
def advance(attack: PDPGD, problem, state, step):
    (x,), origin, ball = jax.tree.leaves(state.x), problem.image, ball_of(attack.region)
    (lo, hi), share = limits(attack.region, origin), share_done(problem, step, x.dtype)
    margin, adversarial, gradient = ascent(problem, x, lambda margin: jax.nn.sigmoid(-margin))
    state = keep_nearest(problem, state, x, adversarial, length(ball, x - origin), step)

    with jax.numpy_dtype_promotion("standard"):  # optax raises numbers to an integer power
        direction, moments = jax.vmap(_ADAM.update)(-gradient, state.moments, x)
        scale = jax.vmap(lambda m: jnp.sqrt(m.nu / (1 - 0.999**m.count)) + 1e-8)(moments).astype(x.dtype)
    number = lambda value: jnp.asarray(value).astype(x.dtype)
    rate = number(attack.step_size) * number(0.01) ** share
    moved = jnp.clip(x - rate * jnp.asarray(direction).astype(x.dtype), lo, hi)
    moved = _proximal(ball, moved, origin, scale, rate, (1 - state.weight) / state.weight, lo, hi)

    last = share_done(problem, 1, x.dtype)
    left = jnp.where(last < 1, 1 - share / jnp.where(last < 1, 1 - last, 1), 1)  # 1 at the first step, 0 at the last one
    pace = number(attack.dual_step) * (0.1 + 0.9 * left)
    multiplier = jnp.clip(state.multiplier - pace * jnp.sign(margin).astype(x.dtype), -LARGEST, LARGEST)
    keep = number(attack.memory)
    weight = keep * state.weight + (1 - keep) * jax.nn.sigmoid(multiplier)
    return remake(state, {"x": problem.points(moved), "moments": moments, "multiplier": multiplier, "weight": weight})


def _proximal(ball: Any, moved: Any, origin: Any, scale: Any, rate: Any, ratio: Any, lo: Any, hi: Any) -> jax.Array:
    """The proximal step from the points `moved`, in the metric of Adam's denominators `scale`."""
    largest = scale.max(tuple(range(1, scale.ndim)))
    metric, weight = scale / along(largest, scale), (ratio * rate / largest)[:, None]
    flat, first = (lambda v: v.reshape(len(v), -1)), moved - origin

    def improved(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        offset, change = carry
        new = shrunk(ball, flat(offset - metric * (offset - first)), weight).reshape(offset.shape)
        new = jnp.where(along(change > CLOSE, offset), jnp.clip(origin + new, lo, hi) - origin, offset)
        size = jnp.sqrt((flat(new) ** 2).sum(1))
        return new, jnp.sqrt((flat(new - offset) ** 2).sum(1)) / jnp.where(size > 0, size, 1)

    offset, _ = jax.lax.fori_loop(0, PROXIMAL_STEPS, improved, (first, jnp.ones_like(largest)))
    return jnp.clip(origin + offset, lo, hi)
