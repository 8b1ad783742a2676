"""APGD: projected gradient descent with automatic step sizes, and its starting point."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import remake, static
from fulmen.core.marks import keeps_points
from fulmen.core.verbs import advance, begin, project, scaled, start_point, toward, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import DLR, CrossEntropy, Objective
from fulmen.objectives.margins import targeted_ratio
from fulmen.robust.attacks.adaptation import adapt, first_size, memory, move, window
from fulmen.robust.attacks.attack import Attack, Start
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields, select
from fulmen.robust.attacks.chain_attacks import start_points
from fulmen.robust.attacks.region import Ball, Intersection, L1Ball, L2Ball, LinfBall, Region, ball_of, normed_ball_of


class Boundary(Start):
    """A point on the boundary of the ball around the clean input, in a random direction."""


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
    """Projected gradient descent with momentum and automatic step sizes: `steps` gradients and one more forward pass.

    An example whose value increases too rarely halves its step size and returns to its best point. Croce and Hein 2020,
    arXiv:2003.01690, as in their code; for an `L1Ball` with steps of adaptive sparsity, Croce and Hein 2021,
    arXiv:2103.01208. It attacks one array of inputs. From 40 steps on, the last pass is one more gradient, as in their code.

    Args:
        region: the region of allowed points, with one `LinfBall`, `L2Ball` or `L1Ball`.
        steps: the number of steps.
        start: the starting point.
        objective: the objective to maximise: `fm.CrossEntropy()`, `fm.objectives.DLR()`, or None for the system's own loss.
        stages: pairs of a multiple of the radius and a share of the steps: the attack runs in each of these balls in turn,
            from the best point of the previous one; only points of the last, with multiple 1, count. Each further stage
            takes one more gradient. For an `L1Ball` the authors use `((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))`.

    >>> fm.attacks.APGD(fm.LinfBall(0.1) & fm.Box(0, 1), objective=fm.objectives.DLR(), target=fm.attacks.LikelyTarget(1))
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=DLR(), target=LikelyTarget(rank=1))
    """

    steps: int = static(default=100)
    start: Start = dataclasses.field(default=Boundary(), kw_only=True)
    objective: Objective | None = dataclasses.field(default=CrossEntropy(), kw_only=True)
    stages: tuple[tuple[float, float], ...] | None = static(default=None, kw_only=True)

    @property
    def length(self) -> int:
        return len(self.schedule.stage_step)

    @property
    def schedule(self) -> Schedule:
        return _schedule(ball_of(self.region), self.steps, self.stages)


class Schedule(NamedTuple):
    """The role of each step of APGD, `(length,)` each.

    Attributes:
        stage_step: the number of earlier steps in the stage.
        window: the number of steps that are checked for progress at this step, 0 without a check.
        last: whether the stage is the last one.
        ended: whether the stage has ended, so that the next point is the first of the next stage.
        radius: the multiple of the radius that limits the next point.
    """

    stage_step: Any
    window: Any
    last: Any
    ended: Any
    radius: Any


def _schedule(ball: Ball, steps: int, stages: tuple[tuple[float, float], ...] | None) -> Schedule:
    rows, stages = [], stages or ((1.0, 1.0),)
    counts = [math.ceil(share * steps) for _, share in stages[:-1]]
    counts.append(steps - sum(counts))
    for number, count in enumerate(counts):
        checks, last = _checks(ball, count), number == len(counts) - 1
        rows += [(step, checks.get(step, 0), last, False, stages[number][0]) for step in range(count)]
        if not last:
            rows.append((count, 0, False, True, stages[number + 1][0]))
    types = (np.int32, np.int32, bool, bool, float)
    return Schedule(*(np.array(column, kind) for column, kind in zip(zip(*rows), types, strict=True)))


def _checks(ball: Ball, steps: int) -> dict[int, int]:
    """The steps at which progress is checked, and the number of steps checked."""
    found, step, size = {}, 0, window(ball, steps, 0)
    while step + size <= steps:
        step += size
        found[step] = size
        size = window(ball, steps, len(found))
    return found


class APGDState(AttackState):
    """The state of `APGD`.

    Attributes:
        previous: the points before the last step.
        peak: the best points of the stage.
        ascent: the gradients at `peak`.
        height: `(n,)`, the maximised value at `peak`.
        size: `(n,)`, the step sizes.
        memory: the state of their adaptation.
    """

    previous: Any = None
    peak: Any = None
    ascent: Any = None
    height: Any = None
    size: Any = None
    memory: Any = None

    @property
    def last(self) -> Any:
        return jax.tree.unflatten(jax.tree.structure(self.x), [self.peak])


def _stage_region(attack: APGD, radius: Any) -> Region:
    """The region with the ball of a stage."""
    if not attack.stages:
        return attack.region
    return scaled(attack.region, jnp.asarray(radius).astype(jnp.result_type(ball_of(attack.region).eps)))


def _new_stage(attack: APGD, ball: Ball, x: jax.Array, origin: jax.Array) -> dict[str, Any]:
    """The fields of the state when a stage starts at `x`."""
    height = jnp.full(len(x), -jnp.inf, jnp.result_type(float))
    size = jnp.broadcast_to(first_size(ball).astype(x.dtype), (len(x),))
    adaptation = memory(ball, x, origin, attack.stages is None)
    return {"previous": x, "peak": x, "ascent": jnp.zeros_like(x), "height": height, "size": size, "memory": adaptation}


@dispatch
def begin(attack: APGD, problem):
    origin = problem.image
    region = _stage_region(attack, attack.schedule.radius[0])
    (x,) = jax.tree.leaves(start_points(attack.start, region, problem.origin, problem.keys))
    return APGDState(**initial_fields(problem, problem.points(x)), **_new_stage(attack, ball_of(region), x, origin))


@dispatch
@keeps_points
def advance(attack: APGD, problem, state, step):
    now = Schedule(*(jnp.asarray(column)[step] for column in attack.schedule))
    gradient, seen = problem.gradient(state.x, step)
    kept = state.keep(state.x, seen, step)
    state = jax.tree.map(functools.partial(jnp.where, now.last), kept, state) if attack.stages else kept
    (x,), (ascent,), origin = jax.tree.leaves(state.x), jax.tree.leaves(jax.tree.map(jnp.negative, gradient)), problem.image

    higher = seen.value > state.height
    peak, peak_ascent = select(higher, (x, ascent), (state.peak, state.ascent))
    height = jnp.where(higher, seen.value, state.height)

    region = _stage_region(attack, now.radius)
    ball = ball_of(region)
    back, size, adaptation = adapt(ball, state.memory, now, seen.value, height, peak - origin, state.size)
    x, ascent = select(back, (peak, peak_ascent), (x, ascent))
    moved = move(ball, region, adaptation, now, x, state.previous, ascent, size, origin)
    new = {"previous": x, "peak": peak, "ascent": peak_ascent, "height": height, "size": size, "memory": adaptation}
    if attack.stages and len(attack.stages) > 1:
        first = project(region, peak, origin)
        choose = functools.partial(jnp.where, now.ended)
        moved, new = choose(first, moved), jax.tree.map(choose, _new_stage(attack, ball, first, origin), new)
    return remake(state, {"x": problem.points(moved), **new})


@dispatch
def toward(objective: DLR, prediction, target):
    return targeted_ratio(objective, prediction, target)


@dispatch
def validate(attack: APGD):
    normed_ball_of(attack)
    stages = attack.stages
    if stages is None:
        return
    multiples, shares = zip(*stages)
    if not (min(multiples) > 0 and multiples[-1] == 1 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6):
        raise ValueError(
            "APGD.stages must have positive multiples of which the last is 1, and shares that add up to 1, such as "
            f"((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)), got {stages!r}."
        )
    if sum(math.ceil(share * attack.steps) for share in shares[:-1]) >= attack.steps:
        raise ValueError(f"APGD.steps must be at least one for each stage, got {attack.steps} for {stages!r}.")
