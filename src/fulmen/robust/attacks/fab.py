"""FAB, which goes along the boundary of classes towards the clean input."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.fields import hyper, static
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, begin, finish, length, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import Walk, along
from fulmen.robust.attacks.hyperplane import onto_hyperplane
from fulmen.robust.attacks.minimal import (
    MinimalNorm,
    ahead,
    class_ahead,
    finite,
    flat,
    is_adversarial,
    keep_nearest,
    limits,
    standing_still,
    wrong_classes,
)
from fulmen.robust.attacks.region import ball_of
from fulmen.robust.attacks.targets import PredictedLabel, TrueLabel

__all__ = ["FAB"]


class FAB(MinimalNorm):
    """Fast adaptive boundary attack, towards one wrong class after the other (FAB-T).

    At each step the boundary z_t = z_y is taken for a plane, and the point goes to where the projections of itself and of the
    clean input onto the plane within the box lead, with a bias to the latter's, and a bit further. Where it is adversarial, it
    goes back towards the clean input, and tries again nearer. A step takes two forward passes and a backward pass.

    Croce and Hein 2020, arXiv:1907.02044, with the targets of arXiv:2003.01690, in the form of their code, which leaves out
    the search on the line to the clean input at the end.

    `perturb` returns the nearest adversarial point that was found, at any distance, or the clean input. The ball's radius
    decides what counts in `attempt`: a point inside the region.

    Args:
        region: its ball decides the norm, and what counts as near enough; its boxes, where the points may be.
        steps: how many, for each class.
        targets: how many classes, the likeliest wrong ones of the clean input.
        alpha_max: the most that the clean input's projection counts, between 0 and 1.
        eta: how much further than to the plane a step goes, at least 1.
        beta: how much of the way from the clean input is left after going back, between 0 and 1.
        target: what it is after; with `Target(label)` or `LikelyTarget(rank)` that class alone.
        restarts: how often it is run; the first time from the clean input, then from points half the radius away.

    >>> fm.attacks.FAB(fm.LinfBall(0.1) & fm.Box(0, 1), targets=3)
    FAB(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), targets=3)
    """

    steps: int = static(default=100)
    targets: int = static(minimum=1, default=9, kw_only=True)
    alpha_max: float = hyper(minimum=0, maximum=1, default=0.1, kw_only=True)
    eta: float = hyper(minimum=1, default=1.05, kw_only=True)
    beta: float = hyper(minimum=0, maximum=1, default=0.9, kw_only=True)
    restarts: int = static(default=1, kw_only=True)

    @property
    def length(self) -> int:
        return self.steps * (self.targets if isinstance(self.target, TrueLabel | PredictedLabel) else 1)

    @property
    def stepped(self) -> Any:
        return remake(self, {"restarts": min(self.restarts, 2)})


class FABWalk(Walk):
    """Where the attacks stand.

    Attributes:
        classes: the classes that are led to, one after the other, `(n, k)`.
    """

    classes: Any = None


@dispatch
def begin(attack: FAB, problem):
    x = problem.image
    logits = problem.logits(problem.points(x))
    if problem.target is None and attack.targets >= logits.shape[1]:
        raise ValueError(
            f"FAB, targets: at most one less than there are classes was expected, and {attack.targets} came, where the model "
            f"gave outputs of {logits.shape[1]}. Write FAB(region, targets={logits.shape[1] - 1})."
        )
    walk = FABWalk(**standing_still(problem), classes=wrong_classes(problem, logits, attack.targets))
    return keep_nearest(problem, walk, x, is_adversarial(problem, logits), jnp.zeros(len(x), x.dtype), 0)


@dispatch
def advance(attack: FAB, problem, walk, step):
    (x,), origin, ball = jax.tree.leaves(walk.x), problem.image, ball_of(attack.region)
    target = jnp.take(walk.classes, step // attack.steps, axis=1)
    x = jnp.where(step % attack.steps == 0, _first(attack, problem, step), x)

    def gap(x: jax.Array) -> jax.Array:
        logits = problem.logits(problem.points(x))
        return ahead(logits, class_ahead(problem, logits), target)

    here, pull = jax.vjp(gap, x)
    slope = flat(finite(pull(-jnp.ones_like(here))[0]))
    here, (lo, hi) = here.astype(x.dtype), (flat(v) for v in limits(attack.region, origin))
    there = here - (slope * flat(origin - x)).sum(1)
    both = lambda a, b: jnp.concatenate([a, b])
    offsets = onto_hyperplane(
        ball, both(flat(x), flat(origin)), both(slope, slope), both(here, there), both(lo, lo), both(hi, hi)
    )
    far, clean_far = jnp.split(jnp.maximum(length(ball, offsets), 1e-8), 2)
    bias = along(jnp.minimum(far / (far + clean_far), jnp.asarray(attack.alpha_max).astype(x.dtype)), x)

    offset, clean_offset = (v.reshape(x.shape) * jnp.asarray(attack.eta).astype(x.dtype) for v in jnp.split(offsets, 2))
    x = jnp.clip((x + offset) * (1 - bias) + (origin + clean_offset) * bias, lo.reshape(x.shape), hi.reshape(x.shape))
    over = is_adversarial(problem, problem.logits(problem.points(x)))
    walk = keep_nearest(problem, walk, x, over, length(ball, x - origin), step + 1)
    back = origin + (x - origin) * jnp.asarray(attack.beta).astype(x.dtype)
    return remake(walk, {"x": problem.points(jnp.where(along(over, x), back, x))})


@dispatch
def finish(attack: FAB, problem, walk):
    return walk


def _first(attack: FAB, problem: Any, step: Any) -> jax.Array:
    """Where the way to a class begins."""
    origin, region = problem.image, attack.region
    if attack.restarts == 1:
        return origin
    ball = ball_of(region)
    draw = (
        (lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1))
        if ball.norm_order == math.inf
        else jax.random.normal
    )
    offset = jax.vmap(lambda key: draw(key, origin.shape[1:], origin.dtype))(problem.keys(step))
    radius = jnp.asarray(ball.eps).astype(origin.dtype) / 2
    drawn = jnp.clip(origin + offset * along(radius / length(ball, offset), origin), *limits(region, origin))
    return jnp.where(problem.restart > 0, drawn, origin)


@dispatch
def validate(attack: FAB):
    validate.invoke(MinimalNorm)(attack)
    ball_of(attack.region)
