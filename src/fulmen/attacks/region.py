"""Where an attack may go: balls around the clean input, boxes, and what several of them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from fulmen.component import Component
from fulmen.dispatch import dispatch
from fulmen.naming import concrete, number
from fulmen.verbs import project, validate

__all__ = ["Ball", "Box", "Intersection", "LinfBall", "Region"]


class Region(Component):
    """A set of points, of each example by itself. `a & b` is what two regions have in common.

    **Extending.** Subclass it, and write `project(region: Mine, x, origin)`.
    """

    def __and__(self, other: Any) -> Intersection:
        if not isinstance(other, Region):
            return NotImplemented
        return Intersection((*_members(self), *_members(other)))


class Ball(Region):
    """The points at most `eps` from the clean input, by the norm that the subclass stands for.

    Args:
        eps: the radius, in the input's units.

    **Extending.** Besides `project`, write `transformation(ball: Mine, step_size)`, the steepest step in its norm, which
    `FGSM` and `PGD` take, and `start_point(start: fm.Uniform, ball: Mine, x, key)`.
    """

    eps: float


class LinfBall(Ball):
    """The points of which no coordinate is further than `eps` from the clean input's.

    Args:
        eps: the radius, in the input's units.

    >>> fm.project(fm.LinfBall(0.25), jnp.array([[0.0, 0.9, 0.6]]), jnp.array([[0.5, 0.5, 0.5]]))
    Array([[0.25, 0.75, 0.6 ]], dtype=float32)
    """


class Box(Region):
    """The points of which every coordinate is in `[lo, hi]`, such as an image's.

    Args:
        lo: the smallest value.
        hi: the largest value.
    """

    lo: float
    hi: float


class Intersection(Region):
    """What several regions have in common.

    Args:
        regions: the regions. Projecting goes from one to the next, balls first; for a `LinfBall` and a `Box` that is the
            nearest point, for others it is a point of the last one only, unless the clean input is in all.

    >>> fm.LinfBall(0.1) & fm.Box(0, 1)
    LinfBall(eps=0.1) & Box(lo=0, hi=1)
    """

    regions: tuple[Region, ...]

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.regions))


def _members(region: Region) -> tuple[Region, ...]:
    return region.regions if isinstance(region, Intersection) else (region,)


def members(region: Region) -> list[Region]:
    """The regions that a region is made of, at any depth, balls first."""
    found = [inner for member in _members(region) for inner in (members(member) if member is not region else [member])]
    return sorted(found, key=lambda member: not isinstance(member, Ball))


def ball_of(region: Region) -> Ball:
    """The one ball in a region, whose norm says what a steepest step and a random start are.

    Raises:
        ValueError: if there is none, or several.
    """
    balls = [member for member in members(region) if isinstance(member, Ball)]
    if len(balls) == 1:
        return balls[0]
    what = "none" if not balls else f"{len(balls)} ({', '.join(map(repr, balls))})"
    raise ValueError(
        f"region: one ball, whose norm decides how to step, was expected, and {region!r} has {what}. "
        "Write `fm.LinfBall(eps) & fm.Box(lo, hi)`; or give the step yourself: `fm.Attack(transformation, region)`."
    )


@dispatch
def project(region: LinfBall, x, origin):
    eps = jnp.asarray(region.eps).astype(origin.dtype)
    return jnp.clip(x, -_sum_rounded_down(-origin, eps), _sum_rounded_down(origin, eps))


def _sum_rounded_down(a: jax.Array, b: jax.Array) -> jax.Array:
    """The largest number of the arrays' type that is not above a + b.

    The rounding error of a sum is itself a number of the type: "TwoSum", Knuth 1969, Møller 1965.
    """
    if jnp.finfo(a.dtype).bits < 32:
        # XLA may leave out roundings to 16 bits between operations, but not before a barrier.
        a, b = lax.optimization_barrier((a, b))
        exact = _sum_rounded_down(a.astype(jnp.float32), b.astype(jnp.float32))
        total = lax.optimization_barrier(exact.astype(a.dtype))
        return jnp.where(total.astype(jnp.float32) > exact, _below(total), total)
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    return jnp.where(error < 0, _below(total), total)


def _below(x: jax.Array) -> jax.Array:
    """The next number below (Rump, Zimmermann, Boldo and Melquiond 2009, without the subnormal range)."""
    info = jnp.finfo(x.dtype)
    return x - (jnp.abs(x) * float(info.eps / 2 * (1 + info.eps)) + float(info.tiny * info.eps))


@dispatch
def project(region: Box, x, origin):
    return jnp.clip(x, jnp.asarray(region.lo).astype(x.dtype), jnp.asarray(region.hi).astype(x.dtype))


@dispatch
def project(region: Intersection, x, origin):
    for member in members(region):
        x = project(member, x, origin)
    return x


@dispatch
def validate(ball: Ball):
    require_not_negative(ball, "eps", ball.eps)


@dispatch
def validate(box: Box):
    lo, hi = concrete(box.lo), concrete(box.hi)
    for name, value in (("lo", lo), ("hi", hi)):
        if value is not None and np.isnan(value).any():
            raise ValueError(f"Box, {name}: a number was expected, and {number(value)} came.")
    if lo is not None and hi is not None and not (lo < hi).all():
        raise ValueError(f"Box, lo: a number below hi was expected, and lo = {number(box.lo)}, hi = {number(box.hi)} came.")


@dispatch
def validate(region: Intersection):
    for member in region.regions:
        if not isinstance(member, Region):
            raise TypeError(f"Intersection, regions: regions such as fm.LinfBall(0.1) were expected, and {member!r} came.")


def require_not_negative(component: Component, name: str, value: Any) -> None:
    """Raise unless a number is finite and at least 0; what is being traced passes."""
    seen = concrete(value)
    if seen is None and not isinstance(value, Tracer | jax.ShapeDtypeStruct):
        raise TypeError(f"{type(component).__name__}, {name}: a number was expected, and {value!r} came.")
    if seen is not None and not (np.isfinite(seen) & (seen >= 0)).all():
        raise ValueError(
            f"{type(component).__name__}, {name}: a finite number of at least 0 was expected, and {number(value)} came."
        )


def require_inside(region: Region, inputs: Iterable[Any]) -> None:
    """Raise if clean inputs are no floating-point numbers, or lie outside the region's boxes."""
    boxes = [member for member in members(region) if isinstance(member, Box)]
    for x in inputs:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x: floating-point numbers were expected to attack, and {x.dtype} from {np.min(x)} to {np.max(x)} came. "
                "Scale an image of bytes first, `(x / 255).astype(np.float32)`; its box is fm.Box(0, 1) then."
            )
        values = np.asarray(x)
        for box in boxes:
            lo, hi = concrete(box.lo), concrete(box.hi)
            if lo is None or hi is None or not values.size:
                continue
            if not ((values >= lo.astype(values.dtype)) & (values <= hi.astype(values.dtype))).all():
                raise ValueError(
                    f"x: values in {box!r}, which the attack keeps to, were expected, and values from {values.min():.6g} to "
                    f"{values.max():.6g} came. Scale x, or give the box of the data: "
                    f"fm.Box({values.min():.6g}, {values.max():.6g})."
                )
