"""Minimal-norm attacks that project each step onto a ball whose radius adapts to success: `DDN` and `FMN`."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import hyper, remake, static
from fulmen.core.marks import ignores_steps
from fulmen.core.verbs import advance, begin, length, project
from fulmen.dispatching.registry import dispatch, verb
from fulmen.objectives import CrossEntropy, Objective
from fulmen.robust.attacks.attack_loop import AttackState, along
from fulmen.robust.attacks.minimal_norm import (
    MinimalNorm,
    annealed,
    ascent,
    clean_fields,
    dual_length,
    keep_nearest,
    limits,
    share_done,
)
from fulmen.robust.attacks.region import Ball, Intersection, L0Ball, L2Ball, ball_of, others
from fulmen.robust.attacks.rounding import at_least_32_bits

__all__ = ["DDN", "FMN"]


class AdaptiveRadius(MinimalNorm):
    """Steps along the normalised gradient, each followed by a projection onto a ball, whose radius follows from success.

    **Extending.** Subclass it, and write `begin` and `next_radius(attack: Mine, ball, …)`.
    """

    needs_ball = True

    steps: int = static(default=100)
    step_size: float = hyper(above=0, default=1.0, kw_only=True)
    change: float = hyper(above=0, below=1, default=0.05, kw_only=True)


class DDN(AdaptiveRadius):
    """Decoupled direction and norm: the radius shrinks after a success and grows after a failure, by a fixed factor.

    Rony et al. 2019, arXiv:1811.09600, without their quantization. It ascends the cross-entropy; each point is on the sphere,
    or clipped to the box. A step takes a forward and a backward pass. See `MinimalNorm` for what `perturb` and `attempt`
    return.

    Args:
        region: with an `L2Ball`, whose radius defines which points are near enough; its boxes limit the points.
        steps: the number of steps.
        step_size: the length of the first step, in the input's units; it falls along half a cosine to a hundredth.
        change: the relative change of the radius at each step.
        radius: the first radius, in the input's units.
        target: the goal.

    >>> fm.attacks.DDN(fm.L2Ball(0.5) & fm.Box(0, 1))
    DDN(region=L2Ball(eps=0.5) & Box(lo=0, hi=1))
    """

    norms = (2,)

    radius: float = hyper(above=0, default=1.0, kw_only=True)
    objective: Objective | None = dataclasses.field(default_factory=CrossEntropy, init=False, repr=False)


class FMN(AdaptiveRadius):
    """The fast minimum-norm attack, in any norm: until the first success, the radius is the distance to the linearised boundary.

    Afterwards it shrinks after a success and grows after a failure, by a factor that approaches 1. In the 0-norm it starts at
    one coordinate. Pintor et al. 2021, arXiv:2102.12827, but the projection is onto the ball within the box. A step takes a
    forward and a backward pass. See `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        region: with an `L0Ball`, `L1Ball`, `L2Ball` or `LinfBall`, whose radius defines which points are near enough; its
            boxes limit the points.
        steps: the number of steps.
        step_size: the length of the first step in the 2-norm, in the input's units; it falls along half a cosine to a
            hundredth.
        change: the relative change of the radius at the first step; it falls along half a cosine to `last_change`.
        last_change: the same at the end.
        target: the goal.

    >>> fm.attacks.FMN(fm.LinfBall(0.1) & fm.Box(0, 1), steps=200)
    FMN(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), steps=200)
    """

    norms = (0, 1, 2, math.inf)

    last_change: float = hyper(above=0, below=1, default=0.001, kw_only=True)


class RadiusState(AttackState):
    """The state of an `AdaptiveRadius`, `(n,)` each.

    Attributes:
        radius: the radius of the ball that the next point is projected onto.
        nearest: the smallest distance of an adversarial point, infinite before the first.
    """

    radius: Any = None
    nearest: Any = None


@verb(delegates=False)
def next_radius(attack, ball, state, adversarial, distance, value, gradient, share):
    """The next radius for each example, `(n,)`.

    Args:
        attack: the attack.
        ball: its ball.
        state: the `RadiusState`, with the radius so far.
        adversarial: `(n,)`, whether the point is adversarial.
        distance: `(n,)`, of the point from the clean input.
        value: `(n,)`, of the objective at the point.
        gradient: `(n, …)`, of the value.
        share: the share of the steps that have been done.
    """


@verb(delegates=False)
def onto(attack, x, origin, radius):
    """The points `(n, …)` moved to the attack's ball with the radii `radius`, `(n,)`, and into its boxes."""


@dispatch
def begin(attack: DDN, problem):
    return _first_state(problem, attack.radius)


@dispatch
def begin(attack: FMN, problem):
    return _first_state(problem, 1.0 if ball_of(attack.region).norm_order == 0 else jnp.inf)


def _first_state(problem: Any, radius: Any) -> RadiusState:
    n, dtype = len(problem.batch), at_least_32_bits(problem.image.dtype)
    first = jnp.broadcast_to(jnp.asarray(radius).astype(dtype), (n,))
    return RadiusState(**clean_fields(problem), radius=first, nearest=jnp.full(n, jnp.inf, dtype))


@dispatch
@ignores_steps
def advance(attack: AdaptiveRadius, problem, state, step):
    (x,), origin, ball = jax.tree.leaves(state.x), problem.image, ball_of(attack.region)
    (lo, hi), dtype = limits(attack.region, origin), state.radius.dtype
    share = share_done(problem, step, dtype)
    value, adversarial, gradient = ascent(problem, x)
    distance = length(ball, x - origin).astype(dtype)
    state = keep_nearest(problem, state, x, adversarial, distance, step)
    nearest = jnp.where(adversarial, jnp.minimum(distance, state.nearest), state.nearest)
    state = remake(state, {"nearest": nearest})

    radius = next_radius(attack, ball, state, adversarial, distance, value, gradient, share)
    radius = jnp.minimum(radius, length(ball, jnp.maximum(hi - origin, origin - lo)).astype(dtype))
    pace = annealed(share, attack.step_size, 0.01 * jnp.asarray(attack.step_size)) / _size(gradient).astype(dtype)
    moved = onto(attack, x + along(pace.astype(x.dtype), x) * gradient, origin, radius)
    return remake(state, {"x": problem.points(moved), "radius": radius})


def _size(v: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.sqrt((v**2).sum(tuple(range(1, v.ndim)))), 1e-12)


@dispatch
def next_radius(attack: DDN, ball: L2Ball, state, adversarial, distance, value, gradient, share):
    change = jnp.asarray(attack.change).astype(share.dtype)
    return state.radius * jnp.where(adversarial, 1 - change, 1 + change)


@dispatch
def next_radius(attack: FMN, ball: Ball, state, adversarial, distance, value, gradient, share):
    change = annealed(share, attack.change, attack.last_change)
    slope = jnp.maximum(dual_length(ball, gradient), 1e-12).astype(share.dtype)
    to_boundary = jnp.abs(value).astype(share.dtype) / slope
    first = distance + to_boundary
    # The linearised distance alone leads a linear model to its boundary, up to rounding, and never across.
    rounding = 32 * float(jnp.finfo(share.dtype).eps) * state.radius
    stuck = jnp.isfinite(state.radius) & (jnp.abs(first - state.radius) <= rounding)
    first = jnp.where(stuck, first * (1 + jnp.asarray(attack.last_change).astype(share.dtype)), first)
    grown = jnp.where(jnp.isfinite(state.nearest), state.radius * (1 + change), first)
    return jnp.where(adversarial, jnp.minimum(state.radius * (1 - change), state.nearest), grown)


@dispatch
def next_radius(attack: FMN, ball: L0Ball, state, adversarial, distance, value, gradient, share):
    change, radius = annealed(share, attack.change, attack.last_change), state.radius
    shrunk = jnp.minimum(jnp.minimum(radius - 1, jnp.floor(radius * (1 - change))), state.nearest)
    return jnp.maximum(jnp.where(adversarial, shrunk, jnp.maximum(radius + 1, jnp.floor(radius * (1 + change)))), 0)


@dispatch
def onto(attack: DDN, x, origin, radius):
    """The sphere, also from inside, and then the box."""
    offset = x - origin
    factor = (radius / _size(offset).astype(radius.dtype)).astype(x.dtype)
    return jnp.clip(origin + along(factor, x) * offset, *limits(attack.region, origin))


@dispatch
def onto(attack: FMN, x, origin, radius):
    """The nearest point of both. The authors clip after the projection, and then stall where many coordinates are clipped."""
    ball = ball_of(attack.region)
    least = 1 if ball.norm_order == 0 else 0  # the clean input has been tried
    resized = remake(ball, {"eps": jnp.maximum(radius, least)})
    return project(Intersection((resized, *others(attack.region))), x, origin)
