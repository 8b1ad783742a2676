"""The attack of Carlini and Wagner, which makes distance and margin small together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core.fields import hyper, static
from fulmen.core.prediction import Prediction
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, begin, finish, loss, toward, transformation, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Margin
from fulmen.robust.attacks.attack_loop import Walk, along
from fulmen.robust.attacks.minimal import MinimalNorm, finite, keep_nearest, limits, standing_still
from fulmen.robust.attacks.region import boxes

__all__ = ["CarliniWagner"]


class CarliniWagner(MinimalNorm):
    """Adam on ‖x′ − x‖₂² + c · max(0, z_y − max_{i≠y} z_i + κ), with the c that each example needs (C&W).

    Carlini and Wagner 2017, arXiv:1608.04644. x′ = tanh(w) between the box's ends, and w is what is searched for. The constant
    c is ten times larger in each search that has found nothing, and halfway between the last two that bound it once one has.
    Each example has a search and a constant of its own, begins the next search as soon as its loss stops falling, and is left
    alone after the last. With a target t the margin is max_{i≠t} z_i − z_t. A step takes a forward and a backward pass.

    `perturb` returns the nearest adversarial point that was found, at any distance, or the clean input. In `attempt` a point
    inside the region counts.

    Args:
        region: its boxes decide where the points may be, and have to be finite; a ball, if there is one, what counts as near.
        steps: how many at most, in each search.
        step_size: Adam's.
        searches: how many values of the constant are tried.
        constant: the first one, c.
        confidence: by how much the wrong class is to be ahead, κ.
        target: what it is after.

    **Extending.** `transformation(attack: Mine)` may be another optimizer than `optax.adam`.

    >>> fm.attacks.CarliniWagner(fm.Box(0, 1), steps=200)
    CarliniWagner(region=Box(lo=0, hi=1), steps=200)
    """

    steps: int = static(default=1000)
    step_size: float = hyper(minimum=0, default=0.01, kw_only=True)
    searches: int = static(minimum=1, default=9, kw_only=True)
    constant: float = hyper(above=0, default=1e-3, kw_only=True)
    confidence: float = hyper(minimum=0, default=0.0, kw_only=True)

    @property
    def length(self) -> int:
        return self.steps * self.searches


class CarliniWagnerWalk(Walk):
    """Where the attacks stand, `(n,)` each but for the first two.

    Attributes:
        moved: how far w is from where it began, `(n, …)`.
        memory: the optimizer's.
        search: how many searches are over.
        place: how many steps this search has had.
        found: whether it has found an adversarial point.
        loss: what the loss was when it was looked at the last time.
        constant: c.
        low: the largest constant that was too small.
        high: the smallest one that was large enough.
        over: whether all searches are over.
    """

    moved: Any = None
    memory: Any = None
    search: Any = None
    place: Any = None
    found: Any = None
    loss: Any = None
    constant: Any = None
    low: Any = None
    high: Any = None
    over: Any = None

    @property
    def done(self) -> Any:
        return self.over if self.succeeded is None else self.over | self.succeeded


@dispatch
def transformation(attack: CarliniWagner):
    # As a schedule a number is cast to the gradient's type, whatever type it came in.
    return optax.adam(lambda step: attack.step_size)


@dispatch
def begin(attack: CarliniWagner, problem):
    x = problem.image
    n, each = len(x), lambda value: jnp.full(len(x), value, x.dtype)
    count, flags = jnp.zeros(n, jnp.int32), jnp.zeros(n, bool)
    walk = CarliniWagnerWalk(
        **standing_still(problem),
        moved=jnp.zeros_like(x),
        memory=jax.vmap(transformation(attack).init)(x),
        search=count,
        place=count,
        found=flags,
        loss=each(jnp.inf),
        constant=jnp.broadcast_to(jnp.asarray(attack.constant).astype(x.dtype), (n,)),
        low=each(0),
        high=each(jnp.inf),
        over=flags,
    )
    margin = _margin(problem, problem.logits(problem.points(x)))
    return keep_nearest(problem, walk, x, margin > _confidence(attack, margin), each(0), 0)


@dispatch
def advance(attack: CarliniWagner, problem, walk, step):
    origin, transform = problem.image, transformation(attack)
    middle, half = _middle_and_half(attack, origin)
    start = jnp.arctanh((origin - middle) / jnp.where(half > 0, half, 1) * 0.999999)
    there = jnp.tanh(start + walk.moved)
    x, unmoved = there * half + middle, jnp.tanh(start) * half + middle

    margin, pull = jax.vjp(lambda x: _margin(problem, problem.logits(problem.points(x))), x)
    confidence, constant = _confidence(attack, margin), walk.constant.astype(margin.dtype)
    slope = finite(pull(jnp.where(margin < confidence, -constant, 0))[0])
    slope = (2 * (x - unmoved) + slope) * half * (1 - there**2)
    height = _squared(x - unmoved) + (constant * jnp.maximum(confidence - margin, 0)).astype(x.dtype)
    with jax.numpy_dtype_promotion("standard"):  # optax raises numbers to an integer power
        change, memory = jax.vmap(transform.update)(slope, walk.memory, x)

    check = walk.place % -(-attack.steps // 10) == 0
    stuck = check & ~(height <= 0.9999 * walk.loss)
    counts = (margin > confidence) & ~stuck & ~walk.over
    walk = keep_nearest(problem, walk, x, counts, jnp.sqrt(_squared(x - origin)), step + 1)

    found, end = walk.found | counts, stuck | (walk.place + 1 == attack.steps)
    low, high = jnp.where(end & ~found, walk.constant, walk.low), jnp.where(end & found, walk.constant, walk.high)
    following = jnp.where(jnp.isinf(high), walk.constant * 10, (low + high) / 2)
    afresh = lambda new, old: jnp.where(along(end, old), new, old)
    search = walk.search + end.astype(jnp.int32)
    new = {
        "moved": afresh(0, walk.moved + change),
        "memory": jax.tree.map(afresh, jax.vmap(transform.init)(x), memory),
        "search": search,
        "place": afresh(0, walk.place + 1),
        "found": afresh(False, found),
        "loss": afresh(jnp.inf, jnp.where(check, height, walk.loss)),
        "constant": afresh(following, walk.constant),
        "low": low,
        "high": high,
        "over": search >= attack.searches,
    }
    return remake(walk, {"x": problem.points(x), **new})


@dispatch
def finish(attack: CarliniWagner, problem, walk):
    return walk


def _margin(problem: Any, logits: jax.Array) -> jax.Array:
    """By how much the attack is ahead, `(n,)`."""
    prediction = Prediction(problem.system, logits, problem.batch)
    return loss(Margin(), prediction) if problem.target is None else toward(Margin(), prediction, problem.target)


def _confidence(attack: CarliniWagner, margin: jax.Array) -> jax.Array:
    return jnp.asarray(attack.confidence).astype(margin.dtype)


def _squared(offset: jax.Array) -> jax.Array:
    return (offset**2).sum(tuple(range(1, offset.ndim)))


def _middle_and_half(attack: CarliniWagner, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    lo, hi = limits(attack.region, origin)
    return (lo + hi) / 2, (hi - lo) / 2


@dispatch
def validate(attack: CarliniWagner):
    validate.invoke(MinimalNorm)(attack)
    if not boxes(attack.region):
        raise ValueError(
            f"CarliniWagner, region: one with a box, between whose ends it searches, was expected, and {attack.region!r} came. "
            "Write fm.Box(0, 1), and & fm.attacks.L2Ball(eps) for what counts as near."
        )
