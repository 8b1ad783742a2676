"""Projection: the nearest point of a region, where ε is clipped. Rounding never leaves the region."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fulmen.core.verbs import bounds, project
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import (
    Ball,
    Box,
    Intersection,
    L0Ball,
    L1Ball,
    L2Ball,
    LinfBall,
    Patch,
    PerCoordinate,
    Region,
    split,
)
from fulmen.robust.attacks.rounding import at_least_32_bits, pairwise_sum, really_rounded, sum_error, sum_rounded_down

_ALTERNATIONS = 20
"""How often a point is projected onto the custom regions of an intersection, and onto the others, in turns."""


@dispatch
def bounds(region: LinfBall, origin):
    eps = radius_of(region, origin)
    return -sum_rounded_down(-origin, eps, origin.dtype), sum_rounded_down(origin, eps, origin.dtype)


@dispatch
def bounds(region: Box, origin):
    return tuple(jnp.broadcast_to(jnp.asarray(v).astype(origin.dtype), origin.shape) for v in (region.lo, region.hi))


@dispatch
def bounds(region: Patch, origin):
    shape, mask = origin.shape[1:], jnp.asarray(region.mask)
    if mask.ndim != len(shape) or any(m not in (1, size) for m, size in zip(mask.shape, shape, strict=True)):
        raise ValueError(f"Patch.mask must have the shape of an example, {shape}, got {mask.shape}.")
    return tuple(jnp.where(mask[None], jnp.asarray(v, origin.dtype), origin) for v in (-jnp.inf, jnp.inf))


def common_bounds(intervals: Iterable[Any], origin: Any) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest values that all intervals allow, in the shape of `origin`."""
    lo, hi = (jnp.full(jnp.shape(origin), v, origin.dtype) for v in (-jnp.inf, jnp.inf))
    for member in intervals:
        low, high = bounds(member, origin)
        lo, hi = jnp.clip(lo, low, high), jnp.clip(hi, low, high)
    return lo, hi


@dispatch
def project(region: PerCoordinate, x, origin):
    return jnp.clip(x, *bounds(region, origin))


@dispatch
def project(region: L2Ball | L1Ball | L0Ball, x, origin):
    return project(Intersection((region,)), x, origin)


@dispatch
def project(region: Intersection, x, origin):
    (found,) = _jointly(region, [x], [origin])
    return found


def projected(region: Region, x: Any, origin: Any) -> Any:
    """`project` for a tree of arrays `(n, …)`: the norm of a ball is over all arrays of an example, as one vector."""
    points, structure = jax.tree.flatten(x)
    origins = jax.tree.leaves(origin)
    if len(points) > 1 and split(region)[0]:
        return structure.unflatten(_jointly(region, points, origins))
    return structure.unflatten([project(region, *each) for each in zip(points, origins, strict=True)])


def _jointly(region: Region, points: list[Any], origins: list[Any]) -> list[Any]:
    balls, intervals, others = split(region)

    def exact(points: list[Any]) -> list[Any]:
        lo, hi = zip(*(common_bounds(intervals, each) for each in origins), strict=True)
        return _in_balls(balls, points, origins, lo, hi) if balls else [*map(jnp.clip, points, lo, hi)]

    def nearer(_: Any, points: list[Any]) -> list[Any]:
        for member in others:
            points = [project(member, *each).astype(each[0].dtype) for each in zip(points, origins, strict=True)]
        return exact(points)

    if not others:
        return exact(points)
    # One projection after the other would leave the custom regions again.
    return lax.fori_loop(0, _ALTERNATIONS, nearer, points)


def _in_balls(balls: list[Ball], points: list[Any], origins: list[Any], lo: Any, hi: Any) -> list[Any]:
    """The nearest points within bounds and balls of one norm, in which all arrays of an example are one vector."""
    for x, origin in zip(points, origins, strict=True):
        if not x.ndim or x.shape != origin.shape:
            raise ValueError(f"x and origin must have the same shape (n, …), got {x.shape} and {origin.shape}.")
    n, dtype, sizes = len(points[0]), jnp.result_type(*points), [math.prod(x.shape[1:]) for x in points]
    radius = functools.reduce(jnp.minimum, [radius_of(ball, origins[0]) for ball in balls])
    radius = jnp.broadcast_to(radius.reshape(-1, 1), (n, 1))
    joined = lambda parts: jnp.concatenate([jnp.asarray(v).astype(dtype).reshape(n, m) for v, m in zip(parts, sizes)], 1)
    found = _NEAREST[balls[0].norm_order](radius, *map(joined, (points, origins, lo, hi)))
    parts = jnp.split(found, np.cumsum(sizes)[:-1], 1)
    return [v.astype(x.dtype).reshape(x.shape) for v, x in zip(parts, points, strict=True)]


def radius_of(ball: Ball, origin: Any) -> jax.Array:
    """The radius in the input's type, in a shape that broadcasts with the input."""
    eps = jnp.asarray(ball.eps).astype(origin.dtype if ball.norm_order else jnp.float32)  # small types lack large integers
    if eps.shape not in ((), origin.shape[:1]):
        raise ValueError(
            f"{type(ball).__name__}.eps must be a number, or an array {origin.shape[:1]} with one per example, got {eps.shape}."
        )
    return eps.reshape(eps.shape + (1,) * (origin.ndim - eps.ndim))


# Balls of a norm within bounds


@jax.jit
def _fewest(radius: Any, x: jax.Array, origin: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    """The nearest point within bounds that differs from the origin in few coordinates: those that gain most by moving.

    A coordinate that stays is |x − origin| away, one that moves |x − clip(x)|; the gain is the difference of the squares.
    """
    wide, origin = at_least_32_bits(x.dtype), jnp.clip(origin, lo, hi)
    clipped = jnp.clip(x, lo, hi)
    moved, beyond = (jnp.abs(v).astype(wide) for v in (clipped - origin, x - clipped))
    gain = jnp.where(moved > 0, jnp.sqrt(moved) * jnp.sqrt(moved + 2 * beyond), 0)  # its square may be 0 or infinite
    rank = jnp.argsort(jnp.argsort(gain, axis=1, descending=True), axis=1)
    return jnp.where(rank.astype(radius.dtype) + 1 <= radius, clipped, origin)


@functools.partial(jax.jit, static_argnums=0)
def _nearest(euclidean: bool, radius: Any, x: jax.Array, origin: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    """The nearest point within bounds and a ball, where the origin is within the bounds.

    Minimising ½‖d − v‖² + λ‖d‖ within bounds shrinks each coordinate by a rule with one number per example, λ, and clips it.
    λ is the root of a monotone function ("continuous quadratic knapsack"). Shapes are `(n, …)`.
    """
    dtype, wide = x.dtype, at_least_32_bits(x.dtype)
    x, origin, lo, hi = really_rounded([x, origin, lo, hi])
    radius = radius.astype(wide)
    unit = lax.stop_gradient(jnp.ldexp(jnp.ones_like(radius), jnp.frexp(radius)[1]))  # a power of 2 rounds nothing

    difference = x.astype(wide) - origin.astype(wide)
    side = jnp.where(difference < 0, -1, 1).astype(wide)
    far = side * difference / unit
    limit = jnp.maximum(side * (jnp.where(difference < 0, lo, hi).astype(wide) - origin.astype(wide)) / unit, 0)
    slack = sum_error(far)
    # The barrier keeps XLA from reordering products by a constant.
    longest, aim = lax.optimization_barrier((radius / unit * (1 - slack), radius / unit * (1 - 1.5 * slack)))
    norm = lambda d: lax.stop_gradient(jnp.sqrt(pairwise_sum(d * d)) if euclidean else pairwise_sum(d))

    inside = (norm(jnp.minimum(far, limit)) <= longest) & (radius > 0)  # the norm of a tiny vector may be 0
    shrunk, excess, first, low, high = (_l2 if euclidean else _l1)(far, limit, aim)
    d = jnp.where(radius > 0, shrunk(_root(excess, first, low, high, inside | (radius <= 0), slack / 2 * aim)), 0)
    length = norm(d)
    d = d * lax.stop_gradient(jnp.where(length <= longest, 1, aim / length))

    moved = side.astype(dtype) * sum_rounded_down(side * origin.astype(wide), d * unit, dtype)
    return jnp.clip(jnp.where(inside | (d >= limit), x, moved), lo, hi)


def _l2(far: jax.Array, limit: jax.Array, aim: jax.Array) -> tuple[Any, ...]:
    """How coordinates shrink, the excess of the norm after that, and the first, lowest and highest values to try.

    The variable is −(1 + λ)⁻², in which the squared norm is piecewise linear.
    """
    tiny = float(jnp.finfo(far.dtype).tiny)
    shrunk = lambda t: jnp.minimum(jnp.sqrt(jnp.maximum(-t, tiny)) * far, limit)

    def excess(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = shrunk(t)
        return pairwise_sum(d * d) - aim * aim, pairwise_sum(jnp.where(d < limit, d * d, 0)) / t

    largest = far.max(1, keepdims=True, initial=tiny)
    first = -((aim / largest) ** 2) / pairwise_sum((far / largest) ** 2)
    return shrunk, excess, first, jnp.full_like(aim, -1), jnp.zeros_like(aim)


def _l1(far: jax.Array, limit: jax.Array, aim: jax.Array) -> tuple[Any, ...]:
    """The same as `_l2` for the 1-norm; the variable is λ."""
    shrunk = lambda t: jnp.clip(far - t, 0, limit)

    def excess(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = shrunk(t)
        return pairwise_sum(d) - aim, -pairwise_sum(((d > 0) & (d < limit)).astype(d.dtype))

    low = jnp.zeros_like(aim)
    return shrunk, excess, low, low, far.max(1, keepdims=True, initial=0)


def _root(function: Callable[..., Any], first: Any, low: Any, high: Any, done: jax.Array, tolerance: Any) -> jax.Array:
    """The roots of decreasing, piecewise linear functions by bracketed Newton steps (Cominetti, Mascarenhas, Silva 2014).

    Args:
        function: maps points `(n, 1)` to values and slopes.
        first, low, high: the initial points, and the ends of the brackets.
        done: which roots are not needed.
        tolerance: for the values.

    Returns:
        `(n, 1)`, differentiable.
    """

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, t, low, high, done = carry
        value, slope = function(t)
        low, high = jnp.where(value > 0, t, low), jnp.where(value > 0, high, t)
        newton = t - value / slope
        # The negation also stops at NaN inputs.
        done |= ~(jnp.abs(value) > tolerance) | (jnp.abs(newton - t) <= jnp.finfo(t.dtype).eps * jnp.abs(t))
        following = jnp.where((low < newton) & (newton < high), newton, (low + high) / 2)
        return count + 1, jnp.where(done, t, following), low, high, done

    def solve(_: Any, first: jax.Array) -> jax.Array:
        unfinished = lambda carry: (carry[0] < 100) & ~carry[-1].all()
        return lax.while_loop(unfinished, step, (0, first, low, high, done))[1]

    def tangent(slope_times: Callable[[jax.Array], jax.Array], change: jax.Array) -> jax.Array:
        slope = slope_times(jnp.ones_like(change))
        return change / jnp.where(slope < 0, slope, -1)

    begin = jnp.where(done, low, jnp.clip(first, low, high))
    return lax.custom_root(lambda t: function(t)[0], begin, solve, tangent)


_NEAREST: dict[Any, Any] = {0: _fewest, 1: functools.partial(_nearest, False), 2: functools.partial(_nearest, True)}
