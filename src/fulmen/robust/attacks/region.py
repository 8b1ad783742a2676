"""Where an attack may go: balls around the clean input, boxes, and what several of them have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from fulmen.core.component import Component
from fulmen.core.fields import hyper
from fulmen.core.naming import concrete, number
from fulmen.core.tree import remake
from fulmen.core.verbs import validate
from fulmen.dispatching.registry import dispatch

__all__ = [
    "Ball",
    "Box",
    "Intersection",
    "Interval",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "Region",
    "balls",
    "boxes",
    "enlarged",
    "others",
    "parted",
]


class Region(Component):
    """A set of points, of each example by itself. `a & b` is what two regions have in common.

    **Extending.** Subclass it, and write `project(region: Mine, x, origin)`.
    """

    __example__ = "fm.LinfBall(0.1) & fm.Box(0, 1)"

    def __and__(self, other: Any) -> Intersection:
        if not isinstance(other, Region):
            return NotImplemented
        return Intersection((*_members(self), *_members(other)))


class Ball(Region):
    """The points at most `eps` from the clean input, by the norm that the subclass stands for.

    Args:
        eps: the radius, in the input's units. `project` also takes `(n,)`, one for each example.

    **Extending.** Besides `project`, write `transformation(ball: Mine, step_size)`, the steepest step in its norm, which
    `FGSM` and `PGD` take, and `start_point(start: fm.attacks.Uniform, ball: Mine, x, key)`.
    """

    norm_order: ClassVar[float | None] = None  # p of the norm, where it is one of the three below

    eps: float = hyper(minimum=0)


class Interval(Region):
    """A region that bounds each coordinate by itself. Several of them, and a ball in another norm, are projected onto at once.

    **Extending.** Subclass it, and write `bounds(region: Mine, origin)` of `fm.attacks`, such as for a patch, outside of
    which an image stays as it is.
    """


class LinfBall(Ball, Interval):
    """The points of which no coordinate is further than `eps` from the clean input's.

    Args:
        eps: the radius, in the input's units.

    >>> fm.attacks.project(fm.LinfBall(0.25), jnp.array([[0.0, 0.9, 0.6]]), jnp.array([[0.5, 0.5, 0.5]]))
    Array([[0.25, 0.75, 0.6 ]], dtype=float32)
    """

    norm_order = math.inf


class L2Ball(Ball):
    """The points at most `eps` from the clean input in Euclidean distance, over all coordinates of an example.

    Args:
        eps: the radius, in the input's units.

    >>> fm.attacks.project(fm.L2Ball(5.0), jnp.array([[6.0, 8.0], [0.0, 1.0]]), jnp.zeros((2, 2))).round(4)
    Array([[3., 4.],
           [0., 1.]], dtype=float32)
    """

    norm_order = 2


class L1Ball(Ball):
    """The points whose coordinates' distances from the clean input's add up to at most `eps`.

    Args:
        eps: the radius, in the input's units.

    >>> fm.attacks.project(fm.L1Ball(2.0), jnp.array([[3.0, 2.0, 0.5]]), jnp.zeros((1, 3))).round(4)
    Array([[1.5, 0.5, 0. ]], dtype=float32)
    """

    norm_order = 1


class Box(Interval):
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
        regions: the regions. The nearest point is exact for any number of boxes and `LinfBall`s together with balls of one
            other norm, `L2Ball`s or `L1Ball`s. A region of one's own is projected onto before these, by its own method:
            then the point is in these, but perhaps not the nearest one. Where the clean input is not within all bounds on
            single coordinates, the point keeps to the bounds alone, and of two that exclude each other to the later one.

    >>> fm.LinfBall(0.1) & fm.Box(0, 1)
    LinfBall(eps=0.1) & Box(lo=0, hi=1)
    >>> fm.attacks.project(fm.L2Ball(5.0) & fm.Box(0, 3.5), jnp.array([[4.0, 8.0]]), jnp.zeros((1, 2))).round(4)
    Array([[3.5, 3.5]], dtype=float32)
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


def norm_balls(found: list[Region]) -> list[Ball]:
    """The `L2Ball`s or the `L1Ball`s among some regions.

    Raises:
        ValueError: if there are both.
    """
    kept: list[Ball] = [member for member in found if isinstance(member, L2Ball | L1Ball)]
    if len({ball.norm_order for ball in kept}) == 2:
        raise ValueError(
            f"region: an L2Ball or an L1Ball was expected, and {' & '.join(map(repr, kept))} came: projecting onto balls of "
            "both norms at once is not supported. Each goes together with any boxes and LinfBalls."
        )
    return kept


def parted(region: Region) -> tuple[list[Ball], list[Interval], list[Region]]:
    """The regions that a region is made of: balls of the 1- or 2-norm, what bounds each coordinate, and all others."""
    found = members(region)
    intervals = [member for member in found if isinstance(member, Interval)]
    return norm_balls(found), intervals, [m for m in found if not isinstance(m, Interval | L2Ball | L1Ball)]


def balls(region: Region) -> list[Ball]:
    """The balls in a region."""
    return [member for member in members(region) if isinstance(member, Ball)]


def others(region: Region) -> list[Region]:
    """All in a region but its balls."""
    return [member for member in members(region) if not isinstance(member, Ball)]


def boxes(region: Region) -> list[Box]:
    """The boxes in a region."""
    return [member for member in members(region) if isinstance(member, Box)]


def enlarged(region: Region, factor: Any) -> Region:
    """The region with balls so many times as large."""
    if isinstance(region, Intersection):
        return remake(region, {"regions": tuple(enlarged(member, factor) for member in region.regions)})
    if not isinstance(region, Ball):
        return region
    eps = jnp.asarray(region.eps)
    return remake(region, {"eps": eps * jnp.asarray(factor).astype(eps.dtype)})


def ball_of(region: Region) -> Ball:
    """The one ball in a region, whose norm says what a steepest step and a random start are.

    Raises:
        ValueError: if there is none, or several.
    """
    found = balls(region)
    if len(found) == 1:
        return found[0]
    what = "none" if not found else f"{len(found)} ({', '.join(map(repr, found))})"
    raise ValueError(
        f"region: one ball, whose norm decides how to step, was expected, and {region!r} has {what}. "
        "Write `fm.LinfBall(eps) & fm.Box(lo, hi)`; or give the step yourself: `fm.Attack(transformation, region)`."
    )


@dispatch
def validate(box: Box):
    lo, hi = concrete(box.lo), concrete(box.hi)
    if lo is not None and hi is not None and not (lo < hi).all():  # NaN is not below anything
        raise ValueError(f"Box.lo must be below Box.hi, got lo = {number(box.lo)} and hi = {number(box.hi)}.")


@dispatch
def validate(region: Intersection):
    norm_balls(members(region))


@dispatch
def validate(region: Region, system, batch):
    raise TypeError(
        f"evaluate: attack must be an Attack, got {region!r}; the attacks in a region are fm.autoattack(region)."
    )


def require_inside(region: Region, inputs: Iterable[Any]) -> None:
    """Raise if clean inputs are no floating-point numbers, or lie outside the region's boxes."""
    limits = boxes(region)
    for x in inputs:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x: floating-point numbers were expected to attack, and {x.dtype} from {np.min(x)} to {np.max(x)} came. "
                "Scale an image of bytes first, `(x / 255).astype(np.float32)`; its box is fm.Box(0, 1) then."
            )
        values = np.asarray(x)
        if limits and np.isnan(values).any():
            raise ValueError(f"x: values in {limits[0]!r}, which the attack keeps to, were expected, and nan is among them.")
        for box in limits:
            lo, hi = concrete(box.lo), concrete(box.hi)
            if lo is None or hi is None or not values.size:
                continue
            if not ((values >= lo.astype(values.dtype)) & (values <= hi.astype(values.dtype))).all():
                raise ValueError(
                    f"x: values in {box!r}, which the attack keeps to, were expected, and values from {values.min():.6g} to "
                    f"{values.max():.6g} came. Scale x, or give the box of the data: "
                    f"fm.Box({values.min():.6g}, {values.max():.6g})."
                )
