"""APGD, projected gradient descent that sets its step sizes by itself, and where it starts."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.fields import static
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, begin, finish, project, start_point, toward, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import DLR, CrossEntropy, Objective
from fulmen.objectives.margins import targeted_ratio
from fulmen.robust.attacks.adaptation import adapt, first_size, memory, move, window
from fulmen.robust.attacks.attack import Attack, Start
from fulmen.robust.attacks.attack_loop import Walk, along, standing
from fulmen.robust.attacks.region import Ball, Intersection, L1Ball, L2Ball, LinfBall, ball_of, enlarged

__all__ = ["APGD", "Boundary"]


class Boundary(Start):
    """A point on the boundary of the ball around the clean input, in a direction drawn at random."""


@dispatch
def start_point(start: Boundary, region: Intersection, x, key):
    return start_point(start, ball_of(region), x, key)


@dispatch
def start_point(start: Boundary, ball: LinfBall, x, key):
    direction = jax.random.uniform(key, x.shape, x.dtype, -1, 1)
    return x + jnp.asarray(ball.eps).astype(x.dtype) * direction / (jnp.abs(direction).max() + 1e-12)


@dispatch
def start_point(start: Boundary, ball: L2Ball, x, key):
    direction = jax.random.normal(key, x.shape, x.dtype)
    return x + jnp.asarray(ball.eps).astype(x.dtype) * direction / (jnp.sqrt((direction**2).sum()) + 1e-12)


@dispatch
def start_point(start: Boundary, ball: L1Ball, x, key):
    return x + jax.random.normal(key, x.shape, x.dtype)


class APGD(Attack):
    """Projected gradient descent with momentum, of which each example halves its steps, and goes back to its best point, when
    they gain too little: no step size to choose, `steps` gradients and one more forward pass.

    Croce and Hein 2020, arXiv:2003.01690, in the form of their code; for an `L1Ball` with steps of adaptive sparsity, Croce
    and Hein 2021, arXiv:2103.01208. It works on one array of inputs.

    Args:
        region: where the attack may go, with one `LinfBall`, `L2Ball` or `L1Ball`.
        steps: how many.
        start: where it starts.
        objective: what it makes large: `fm.CrossEntropy()`, `fm.objectives.DLR()`, or None for the system's own loss.
        stages: pairs of a multiple of the radius and a share of the steps: the attack runs in each of these balls one after
            the other, from the best point of the one before; only points in the last, with multiple 1, count. It takes one
            gradient more for each further stage. For an `L1Ball` the authors use `((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))`.

    >>> fm.attacks.APGD(fm.LinfBall(0.1) & fm.Box(0, 1), objective=fm.objectives.DLR(), target=fm.attacks.LikelyTarget(1))
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=DLR(), target=LikelyTarget(rank=1))
    """

    steps: int = static(default=100)
    start: Start = dataclasses.field(default=Boundary(), kw_only=True)
    objective: Objective | None = dataclasses.field(default=CrossEntropy(), kw_only=True)
    stages: tuple[tuple[float, float], ...] | None = static(default=None, kw_only=True)

    @property
    def length(self) -> int:
        return len(self.plan.place)

    @property
    def plan(self) -> Plan:
        """What is to be done at each step."""
        return _plan(ball_of(self.region), self.steps, self.stages)


class Plan(NamedTuple):
    """What is to be done at each of the times that APGD advances, `(length,)` each.

    Attributes:
        place: how many steps the stage has had.
        check: where the gains are looked at, those of how many steps, and 0 elsewhere.
        last: whether the stage is the last one.
        over: whether the stage is over, and the next one's first point is to be found.
        radius: the multiple of the radius that the next point is within.
    """

    place: Any
    check: Any
    last: Any
    over: Any
    radius: Any


def _plan(ball: Ball, steps: int, stages: tuple[tuple[float, float], ...] | None) -> Plan:
    rows, stages = [], stages or ((1.0, 1.0),)
    counts = [math.ceil(share * steps) for _, share in stages[:-1]]
    counts.append(steps - sum(counts))
    for number, count in enumerate(counts):
        checks, last = _checks(ball, count), number == len(counts) - 1
        rows += [(place, checks.get(place, 0), last, False, stages[number][0]) for place in range(count)]
        if not last:
            rows.append((count, 0, False, True, stages[number + 1][0]))
    types = (np.int32, np.int32, bool, bool, float)
    return Plan(*(np.array(column, kind) for column, kind in zip(zip(*rows), types, strict=True)))


def _checks(ball: Ball, steps: int) -> dict[int, int]:
    """After which steps the gains are looked at, and those of how many."""
    found, place, number = {}, 0, 0
    while (place := place + window(ball, steps, number)) <= steps:
        found[place], number = window(ball, steps, number), number + 1
    return found


class APGDWalk(Walk):
    """Where the attacks stand.

    Attributes:
        previous: the points before the last step.
        peak: the best points of the stage.
        ascent: the gradients there.
        height: `(n,)`, what the attack makes large, there.
        size: `(n,)`, the sizes of the steps.
        memory: what their adaptation remembers.
    """

    previous: Any = None
    peak: Any = None
    ascent: Any = None
    height: Any = None
    size: Any = None
    memory: Any = None


def _fresh(attack: APGD, ball: Ball, x: jax.Array, origin: jax.Array) -> dict[str, Any]:
    """What a stage that begins at some points remembers."""
    height = jnp.full(len(x), -jnp.inf, jnp.result_type(float))
    size = jnp.broadcast_to(first_size(ball).astype(x.dtype), (len(x),))
    remembered = memory(ball, x, origin, attack.stages is None)
    return {"previous": x, "peak": x, "ascent": jnp.zeros_like(x), "height": height, "size": size, "memory": remembered}


@dispatch
def begin(attack: APGD, problem):
    origin = problem.image
    region = enlarged(attack.region, attack.plan.radius[0]) if attack.stages else attack.region
    start = jax.vmap(functools.partial(start_point, attack.start, region))
    x = project(region, start(origin, problem.keys(0)), origin)
    return APGDWalk(**standing(problem, problem.points(x)), **_fresh(attack, ball_of(region), x, origin))


@dispatch
def advance(attack: APGD, problem, walk, step):
    now = Plan(*(jnp.asarray(column)[step] for column in attack.plan))
    slopes, seen = problem.slopes(walk.x, step)
    kept = walk.keep(walk.x, seen, step)
    walk = jax.tree.map(functools.partial(jnp.where, now.last), kept, walk) if attack.stages else kept
    (x,), (ascent,), origin = jax.tree.leaves(walk.x), jax.tree.leaves(jax.tree.map(jnp.negative, slopes)), problem.image

    higher = seen.value > walk.height
    peak, at_peak = _chosen(higher, x, walk.peak), _chosen(higher, ascent, walk.ascent)
    height = jnp.where(higher, seen.value, walk.height)

    region = enlarged(attack.region, now.radius) if attack.stages else attack.region
    ball = ball_of(region)
    back, size, remembered = adapt(ball, walk.memory, now, seen.value, height, peak - origin, walk.size)
    x, ascent = _chosen(back, peak, x), _chosen(back, at_peak, ascent)
    moved = move(ball, region, remembered, now, x, walk.previous, ascent, size, origin)
    new = {"previous": x, "peak": peak, "ascent": at_peak, "height": height, "size": size, "memory": remembered}
    if attack.stages and len(attack.stages) > 1:
        first = project(region, peak, origin)
        choose = functools.partial(jnp.where, now.over)
        moved, new = choose(first, moved), jax.tree.map(choose, _fresh(attack, ball, first, origin), new)
    return remake(walk, {"x": problem.points(moved), **new})


@dispatch
def finish(attack: APGD, problem, walk):
    if walk.best is None:
        return remake(walk, {"x": problem.points(walk.peak)})
    return walk.keep(walk.x, problem.look(walk.x, attack.length), attack.length)


def _chosen(flags: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(along(flags, new), new, old)


@dispatch
def toward(objective: DLR, prediction, target):
    return targeted_ratio(objective, prediction, target)


@dispatch
def validate(attack: APGD):
    ball = ball_of(attack.region)
    if ball.norm_order is None:
        raise TypeError(
            f"APGD, region: one with a LinfBall, an L2Ball or an L1Ball was expected, and {attack.region!r} came."
        )
    stages = attack.stages
    if stages is None:
        return
    example = "such as ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))"
    multiples, shares = zip(*stages)
    if not (min(multiples) > 0 and multiples[-1] == 1 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6):
        raise ValueError(
            f"APGD, stages: positive multiples of which the last is 1, and shares that add up to 1, {example}, were "
            f"expected, and {stages!r} came."
        )
    if sum(math.ceil(share * attack.steps) for share in shares[:-1]) >= attack.steps:
        raise ValueError(f"APGD, steps: at least one for each stage was expected, and {attack.steps} came for {stages!r}.")
