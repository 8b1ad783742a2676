"""The common parts of attacks that search for the nearest adversarial point, and the way to a hyperplane within bounds."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fulmen.core import Prediction, remake, static
from fulmen.core.marks import keeps_state
from fulmen.core.verbs import finish, length, loss, project, shortest, succeeded, toward, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Margin, Objective
from fulmen.robust.attacks.attack import CLEAN, Attack, Start
from fulmen.robust.attacks.attack_loop import initial_fields
from fulmen.robust.attacks.input_transform import View
from fulmen.robust.attacks.problem import Problem, Seen, finite
from fulmen.robust.attacks.projections import common_bounds
from fulmen.robust.attacks.region import (
    Ball,
    L0Ball,
    L1Ball,
    L2Ball,
    LinfBall,
    PerCoordinate,
    Region,
    members,
    others,
)
from fulmen.robust.attacks.rounding import at_least_32_bits
from fulmen.robust.attacks.targets import without_class


def onto_hyperplane(ball: Any, x: jax.Array, gradient: jax.Array, gap: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    """The shortest offsets within bounds that change linear functions by given gaps.

    Args:
        ball: the ball whose norm measures the offsets.
        x: the points, `(n, features)`, within the bounds.
        gradient: the gradients of the functions, `(n, features)`.
        gap: `(n,)`, of either sign; a gap that is not finite counts as 0.
        lo: the smallest values, `(n, features)`.
        hi: the largest values, `(n, features)`.

    Returns:
        The offsets, `(n, features)`; if the bounds do not allow the gap, the offset of the largest change.
    """
    gap = jnp.where(jnp.isfinite(gap), gap, 0)[:, None]
    direction = jnp.sign(gradient) * jnp.where(gap < 0, -1, 1).astype(gradient.dtype)
    room = jnp.where(direction > 0, hi - x, jnp.where(direction < 0, x - lo, 0))
    return direction * shortest(ball, jnp.abs(gradient), jnp.abs(gap), room)


@dispatch
def length(ball: LinfBall | L2Ball | L1Ball, offset):
    order: Any = ball.norm_order
    return jnp.linalg.vector_norm(offset, axis=tuple(range(1, offset.ndim)), ord=order)


@dispatch
def length(ball: L0Ball, offset):
    return (offset != 0).sum(tuple(range(1, offset.ndim))).astype(at_least_32_bits(offset.dtype))


@dispatch
def shortest(ball: LinfBall, steepness, gap, room):
    return _move_together(jnp.ones_like(steepness), steepness, gap, room)


@dispatch
def shortest(ball: L2Ball, steepness, gap, room):
    return _move_together(steepness, steepness, gap, room)


@dispatch
def shortest(ball: L1Ball, steepness, gap, room):
    """The steepest coordinates move first, each as far as it can."""
    order = jnp.argsort(steepness, 1, descending=True)
    a, most = jnp.take_along_axis(steepness, order, 1), jnp.take_along_axis(room, order, 1)
    gains = jnp.cumsum(a * most, 1)
    before = jnp.pad(gains[:, :-1], ((0, 0), (1, 0)))
    moved = jnp.where(a > 0, jnp.clip((gap - before) / a, 0, most), 0)
    return jnp.put_along_axis(jnp.zeros_like(room), order, moved, 1, inplace=False)


def _move_together(pace: jax.Array, steepness: jax.Array, gap: jax.Array, room: jax.Array) -> jax.Array:
    """All coordinates move at some pace, each until its room is used up: u = min(t · pace, room).

    The time t is found by fixing the coordinates without room and repeating for the others (Michelot 1986). This ends with
    the exact t, independently of other examples.
    """

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, full, _ = carry
        left = gap - jnp.where(full, steepness * room, 0).sum(1, keepdims=True)
        t = jnp.maximum(left, 0) / jnp.where(full, 0, steepness * pace).sum(1, keepdims=True)
        after = full | (t * pace >= room)
        return t, after, (after != full).any()

    full = room <= 0
    t, full, _ = lax.while_loop(lambda carry: carry[-1], step, step((jnp.zeros_like(gap), full, jnp.array(True))))
    return jnp.where(full, room, t * pace)


class MinimalNorm(Attack):
    """Attacks that search for the nearest adversarial point, at any distance.

    `perturb` returns the nearest one found, or the clean input if there is none. The region's boxes limit the points. Its
    ball defines the norm, and its radius what counts in `attempt`: an example is done as soon as an adversarial point inside
    the region is found. These attacks need one array of inputs, and the logits of one model.
    """

    nearest = True

    start: Start = dataclasses.field(default_factory=lambda: CLEAN, init=False, repr=False)
    objective: Objective | None = dataclasses.field(default_factory=Margin, init=False, repr=False)
    restarts: int = static(default_factory=lambda: 1, init=False, repr=False)
    samples: int | None = static(default_factory=lambda: None, init=False, repr=False)
    views: tuple[View, ...] = dataclasses.field(default_factory=tuple, init=False, repr=False)


def clean_fields(problem: Problem) -> dict[str, Any]:
    """The fields of an `AttackState` at the clean inputs, with best points, since the last ones may be anywhere."""
    return initial_fields(remake(problem, {"best": True}), problem.points(problem.image))


def is_adversarial(problem: Problem, logits: jax.Array) -> jax.Array:
    """`(n,)`, where the attack has reached its goal."""
    return succeeded(problem.attack.target, Prediction(problem.system, logits, problem.batch), problem.target)


def keep_nearest(problem: Problem, state: Any, x: jax.Array, adversarial: jax.Array, distance: jax.Array, step: Any) -> Any:
    """The state whose best points include `x` where it is adversarial and nearer than the best point so far.

    Args:
        problem: the problem.
        state: the state of the attack.
        x: the points, `(n, …)`.
        adversarial: `(n,)`.
        distance: `(n,)`, from the clean inputs.
        step: the number of steps that led there.
    """
    if problem.stop:
        inside = project(problem.attack.region, x, problem.image) == x
        adversarial &= inside.all(tuple(range(1, x.ndim)))
    value = jnp.where(adversarial, -distance.astype(state.value.dtype), -jnp.inf)
    return state.keep(problem.points(x), Seen(value, adversarial if problem.stop else None), step)


def limits(region: Region, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest values that the region allows at any distance, in the shape of `origin`."""
    return common_bounds(others(region), origin)


def class_to_beat(problem: Problem, logits: jax.Array) -> jax.Array:
    """The classes that the attack must overtake, `(n,)`: the labels, or with a `Target` the best of the other classes."""
    if not problem.attack.target.names_class:
        return problem.labels()
    return without_class(logits, problem.target).argmax(1).astype(jnp.int32)


def candidate_classes(problem: Problem, logits: jax.Array, n: int) -> jax.Array:
    """The classes that the attack may lead to, `(n, k)`: the target, or else the most likely wrong ones."""
    if problem.target is not None:
        return problem.target[:, None]
    return jax.lax.top_k(without_class(logits, problem.labels()), n)[1].astype(jnp.int32)


def maximized(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The value of the attack's objective and whether the attack has reached its goal, `(n,)` each, at points `(n, …)`."""
    prediction = Prediction(problem.system, problem.logits(x), problem.batch)
    objective, target = problem.attack.objective, problem.target
    value = loss(objective, prediction) if target is None else toward(objective, prediction, target)
    return value, succeeded(problem.attack.target, prediction, target)


def ascent(problem: Problem, x: jax.Array, weight: Any = jnp.ones_like) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`maximized`, and the gradient of the value, 0 where it is not finite: a forward and a backward pass.

    Args:
        problem: the problem.
        x: the points, `(n, …)`.
        weight: from the values to the factors of the gradients, `(n,)` each.

    Returns:
        `(value, adversarial, gradient)`.
    """
    value, pull_back, adversarial = jax.vjp(lambda x: maximized(problem, x), x, has_aux=True)
    return value, adversarial, finite(pull_back(weight(value))[0])


def dual_length(ball: Any, gradient: jax.Array) -> jax.Array:
    """`(n,)`, by how much functions with these gradients, `(n, …)`, change at most per unit of distance."""
    return length({1: LinfBall, 2: L2Ball, math.inf: L1Ball}[ball.norm_order](1.0), gradient)


def share_done(problem: Problem, step: Any, dtype: Any) -> jax.Array:
    """The share of the steps that have been done, from 0 to below 1."""
    steps = problem.attack.length if problem.steps is None else problem.steps
    return jnp.asarray(step).astype(dtype) / jnp.asarray(steps).astype(dtype)


def annealed(share: jax.Array, first: Any, last: Any) -> jax.Array:
    """From `first` to `last` along half a cosine."""
    first, last = (jnp.asarray(v).astype(share.dtype) for v in (first, last))
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def flat(x: jax.Array) -> jax.Array:
    """`(n, …)` as `(n, features)`."""
    return x.reshape(len(x), -1)


@dispatch
@keeps_state
def finish(attack: MinimalNorm, problem, state):
    return state


@dispatch
def validate(attack: MinimalNorm):
    for member in members(attack.region):
        if not isinstance(member, Ball | PerCoordinate):
            raise TypeError(
                f"{type(attack).__name__}, region: must consist of a ball and of intervals such as fm.Box(0, 1), got {member!r}."
            )
    validate.invoke(Attack)(attack)
