"""The steps of APGD and their adaptation, in balls of each norm."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Tree
from fulmen.core.verbs import project
from fulmen.dispatching.registry import dispatch, verb
from fulmen.robust.attacks.attack_loop import along
from fulmen.robust.attacks.projections import radius_of
from fulmen.robust.attacks.region import Ball, L1Ball, others

__all__: list[str] = []


@verb(delegates=False)
def window(ball, steps, number):
    """The number of steps before the progress check with this number, from 0, counted from the check before it."""


@verb(delegates=False)
def first_size(ball):
    """The first step size of an attack in the ball, in the inputs' units."""


@verb(delegates=False)
def memory(ball, x, origin, at_random):
    """The state of the adaptation at the start of a stage at `x`; `at_random` if that is the attack's random start."""


@verb(delegates=False)
def adapt(ball, memory, now, value, height, offset, size):
    """The next step sizes, by the progress so far.

    Args:
        ball: the ball.
        memory: the state of the adaptation.
        now: the row of the `Schedule` for this step.
        value: `(n,)`, the maximised value at the current points.
        height: `(n,)`, the same at the best points.
        offset: `(n, …)`, from the clean input to the best points.
        size: `(n,)`, the step sizes.

    Returns:
        `(back, size, memory)`: which examples, `(n,)`, return to their best points, the new step sizes, and the new state.
    """


@verb(delegates=False)
def move(ball, region, memory, now, x, previous, ascent, size, origin):
    """The points after the next step, projected onto the region: `(n, …)`."""


def _length(v: jax.Array) -> jax.Array:
    """The Euclidean norm of each example, in a shape that broadcasts with it."""
    return jnp.sqrt((v**2).sum(tuple(range(1, v.ndim)), keepdims=True))


# Balls in which every coordinate moves


class Oscillation(Tree):
    """The state of the adaptation of the step size, `(n,)` each.

    Attributes:
        gains: the number of steps since the last check that increased the value.
        last: the value at the last point.
        reduced: whether the last check halved the step size.
        checked: the value at the best point at the last check.
    """

    gains: jax.Array
    last: jax.Array
    reduced: jax.Array
    checked: jax.Array


@dispatch
def window(ball: Ball, steps, number):
    longest, decrease, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    return max(longest - number * decrease, shortest) if number else longest


@dispatch
def first_size(ball: Ball):
    return 2 * jnp.asarray(ball.eps)


@dispatch
def memory(ball: Ball, x, origin, at_random):
    n, dtype = len(x), jnp.result_type(float)
    # As in the authors' code: the first value is compared with 0, and the first check skips the no-improvement rule.
    return Oscillation(jnp.zeros(n, jnp.int32), jnp.zeros(n, dtype), jnp.ones(n, bool), jnp.zeros(n, dtype))


@dispatch
def adapt(ball: Ball, memory, now, value, height, offset, size):
    moved, check = now.stage_step > 0, now.window > 0
    gains = memory.gains + (moved & (value > memory.last)).astype(jnp.int32)
    checked = jnp.where(moved, memory.checked, value)
    back = check & ((4 * gains <= 3 * now.window) | (~memory.reduced & (checked >= height)))
    after = Oscillation(
        gains=jnp.where(check, 0, gains),
        last=jnp.where(moved, value, memory.last),
        reduced=jnp.where(check, back, memory.reduced),
        checked=jnp.where(check, height, checked),
    )
    return back, jnp.where(back, size / 2, size), after


@dispatch
def move(ball: Ball, region, memory, now, x, previous, ascent, size, origin):
    weight = jnp.where(now.stage_step == 0, 1.0, 0.75).astype(x.dtype)
    stepped = _onto(ball, region, x + along(size, x) * _direction(ball, ascent), origin)
    return project(region, _onto(ball, region, x + (stepped - x) * weight + (x - previous) * (1 - weight), origin), origin)


def _direction(ball: Ball, ascent: jax.Array) -> jax.Array:
    return ascent / (_length(ascent) + 1e-12) if ball.norm_order == 2 else jnp.sign(ascent)


def _onto(ball: Ball, region: Any, x: jax.Array, origin: jax.Array) -> jax.Array:
    """The authors' projection: onto the ball, then onto the rest. For an `L2Ball` and a box it is not the nearest point."""
    if ball.norm_order == math.inf:
        return project(region, x, origin)
    offset = x - origin
    x = origin + offset * jnp.minimum(1, radius_of(ball, origin) / (_length(offset) + 1e-12))
    for member in others(region):
        x = project(member, x, origin)
    return x


# The ball in which few coordinates move


class Sparsity(Tree):
    """The state of the adaptation of the sparsity, `(n,)` each.

    Attributes:
        share: the share of the coordinates that a step moves.
        support: the number of coordinates in which the best point differed from the clean input at the last check.
    """

    share: jax.Array
    support: jax.Array


def _support(offset: jax.Array) -> jax.Array:
    return (offset != 0).sum(tuple(range(1, offset.ndim))).astype(jnp.float32)


@dispatch
def window(ball: L1Ball, steps, number):
    return max(int(0.04 * steps), 1)


@dispatch
def first_size(ball: L1Ball):
    return jnp.asarray(ball.eps)


@dispatch
def memory(ball: L1Ball, x, origin, at_random):
    coordinates = x[0].size
    if at_random:
        return Sparsity(jnp.full(len(x), 0.2, jnp.float32), jnp.full(len(x), float(coordinates), jnp.float32))
    support = _support(x - origin)
    return Sparsity(support / coordinates / 1.5, support)


@dispatch
def adapt(ball: L1Ball, memory, now, value, height, offset, size):
    check, support, coordinates = now.window > 0, _support(offset), offset[0].size
    longest = jnp.asarray(ball.eps).astype(size.dtype)
    sparser = support / memory.support < 0.95
    shorter = jnp.clip(jnp.where(sparser, longest, size / 1.5), longest / 10, longest)
    after = Sparsity(support / coordinates / 1.5, support)
    choose = lambda new, old: jnp.where(check, new, old)
    return check & sparser, choose(shorter, size), jax.tree.map(choose, after, memory)


@dispatch
def move(ball: L1Ball, region, memory, now, x, previous, ascent, size, origin):
    steepness = jnp.abs(ascent).reshape(len(x), -1)
    coordinates = steepness.shape[1]
    rank = jnp.clip((1 - memory.share) * coordinates, 0, coordinates - 1).astype(jnp.int32)
    threshold = jnp.take_along_axis(jnp.sort(steepness, 1), rank[:, None], 1)
    signs = jnp.sign(jnp.where(jnp.abs(ascent) >= along(threshold, ascent), ascent, 0))
    length = jnp.abs(signs).sum(tuple(range(1, signs.ndim)), keepdims=True) + 1e-10
    return project(region, x + along(size, x) * signs / length, origin)
