"""Projection: the nearest point of a region, where ε is clipped. Rounding never leaves the region."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
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
    split,
)


@dispatch
def bounds(region: LinfBall, origin):
    eps = _radius(region, origin)
    return -_sum_rounded_down(-origin, eps, origin.dtype), _sum_rounded_down(origin, eps, origin.dtype)


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
    (balls, intervals, others), shape = split(region), jnp.shape(x)
    for member in others:
        x = project(member, x, origin)
    lo, hi = common_bounds(intervals, origin)
    if not balls:
        return jnp.clip(x, lo, hi)
    if not x.ndim or x.shape != origin.shape:
        raise ValueError(f"x and origin must have the same shape (n, …), got {x.shape} and {origin.shape}.")
    n, size = x.shape[0], math.prod(x.shape[1:])
    radius = functools.reduce(jnp.minimum, [_radius(ball, origin) for ball in balls])
    radius = jnp.broadcast_to(radius.reshape(-1, 1), (n, 1))
    x, origin, lo, hi = (jnp.asarray(v).reshape(n, size) for v in (x, origin, lo, hi))
    nearest = _NEAREST[balls[0].norm_order]
    return nearest(radius, x, origin, lo, hi).reshape(shape)


def _radius(ball: Ball, origin: Any) -> jax.Array:
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
    x, origin, lo, hi = _rounded([x, origin, lo, hi])
    radius = radius.astype(wide)
    unit = lax.stop_gradient(jnp.ldexp(jnp.ones_like(radius), jnp.frexp(radius)[1]))  # a power of 2 rounds nothing

    difference = x.astype(wide) - origin.astype(wide)
    side = jnp.where(difference < 0, -1, 1).astype(wide)
    far = side * difference / unit
    limit = jnp.maximum(side * (jnp.where(difference < 0, lo, hi).astype(wide) - origin.astype(wide)) / unit, 0)
    slack = _slack(far)
    # The barrier keeps XLA from reordering products by a constant.
    longest, aim = lax.optimization_barrier((radius / unit * (1 - slack), radius / unit * (1 - 1.5 * slack)))
    norm = lambda d: lax.stop_gradient(jnp.sqrt(_sum(d * d)) if euclidean else _sum(d))

    inside = (norm(jnp.minimum(far, limit)) <= longest) & (radius > 0)  # the norm of a tiny vector may be 0
    shrunk, excess, first, low, high = (_l2 if euclidean else _l1)(far, limit, aim)
    d = jnp.where(radius > 0, shrunk(_root(excess, first, low, high, inside | (radius <= 0), slack / 2 * aim)), 0)
    length = norm(d)
    d = d * lax.stop_gradient(jnp.where(length <= longest, 1, aim / length))

    moved = side.astype(dtype) * _sum_rounded_down(side * origin.astype(wide), d * unit, dtype)
    return jnp.clip(jnp.where(inside | (d >= limit), x, moved), lo, hi)


def _l2(far: jax.Array, limit: jax.Array, aim: jax.Array) -> tuple[Any, ...]:
    """How coordinates shrink, the excess of the norm after that, and the first, lowest and highest values to try.

    The variable is −(1 + λ)⁻², in which the squared norm is piecewise linear.
    """
    tiny = float(jnp.finfo(far.dtype).tiny)
    shrunk = lambda t: jnp.minimum(jnp.sqrt(jnp.maximum(-t, tiny)) * far, limit)

    def excess(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = shrunk(t)
        return _sum(d * d) - aim * aim, _sum(jnp.where(d < limit, d * d, 0)) / t

    largest = far.max(1, keepdims=True, initial=tiny)
    first = -((aim / largest) ** 2) / _sum((far / largest) ** 2)
    return shrunk, excess, first, jnp.full_like(aim, -1), jnp.zeros_like(aim)


def _l1(far: jax.Array, limit: jax.Array, aim: jax.Array) -> tuple[Any, ...]:
    """The same as `_l2` for the 1-norm; the variable is λ."""
    shrunk = lambda t: jnp.clip(far - t, 0, limit)

    def excess(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = shrunk(t)
        return _sum(d) - aim, -_sum(((d > 0) & (d < limit)).astype(d.dtype))

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


# Rounding


def at_least_32_bits(dtype: Any) -> jnp.dtype:
    """The floating-point type, or float32 for a smaller one; computations use it."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _sum(v: jax.Array) -> jax.Array:
    """The sum of numbers ≥ 0, `(n, size)` to `(n, 1)`: independent of the batch, with few roundings per number."""
    while v.shape[1] > 1:
        v = jnp.pad(v, ((0, 0), (0, -v.shape[1] % 8)))
        for _ in range(3):
            half = v.shape[1] // 2
            v = v[:, :half] + v[:, half:]
        v = lax.optimization_barrier(v)  # fusing all levels takes too long to compile
    return v.sum(1, keepdims=True)


def _slack(v: jax.Array) -> float:
    """A bound on the relative rounding error of a norm by `_sum`, with the roundings before and after it."""
    levels = math.ceil(math.log(max(v.shape[1], 1), 8) - 1e-9)
    return (3 * levels + 8) * float(jnp.finfo(v.dtype).eps) / 2


def _rounded(values: list[Any]) -> list[Any]:
    """The values, really rounded to 16 bits: XLA may skip that between operations, but not before a barrier."""
    return lax.optimization_barrier(values) if jnp.finfo(values[0].dtype).bits < 32 else values


def _sum_rounded_down(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """The largest number of a type that is at most a + b.

    The rounding error of a sum is itself representable: "TwoSum", Knuth 1969, Møller 1965.
    """
    wide = at_least_32_bits(dtype)
    a, b = (v.astype(wide) for v in _rounded([a, b]))
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    down = jnp.where(error < 0, _below(total), total)
    if wide == dtype:
        return down
    (total,) = _rounded([down.astype(dtype)])
    return jnp.where(total.astype(wide) > down, _below(total), total)


def _below(x: jax.Array) -> jax.Array:
    """The next smaller number (Rump, Zimmermann, Boldo and Melquiond 2009, without the subnormal range)."""
    info = jnp.finfo(x.dtype)
    return x - (jnp.abs(x) * float(info.eps / 2 * (1 + info.eps)) + float(info.tiny * info.eps))


def rounded_toward(x: jax.Array, origin: jax.Array, dtype: Any) -> jax.Array:
    """Points in a smaller type, rounded so that no coordinate gets farther from the origin; their gradient is that of a cast.

    Args:
        x: `(n, …)`, in at least 32 bits.
        origin: `(n, …)`, of the same type, with values that the smaller type has.
        dtype: the smaller type.
    """
    nearest = x.astype(dtype)
    if nearest.dtype == x.dtype:
        return nearest
    (there,) = _rounded([lax.stop_gradient(nearest)])
    farther = jnp.abs(there.astype(x.dtype) - origin) > jnp.abs(lax.stop_gradient(x) - origin)
    nearer = jnp.nextafter(there, origin.astype(dtype))
    return nearest + lax.stop_gradient(jnp.where(farther, nearer - there, 0))  # neighbours: the difference is exact
