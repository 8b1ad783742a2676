"""Regions that limit an attack: balls around the clean input, boxes, and intersections."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Component, concrete, hyper, remake
from fulmen.core.component import map_parts
from fulmen.core.verbs import for_examples, scaled
from fulmen.dispatching.registry import dispatch


class Region(Component):
    """A set of allowed points, separately for each example. `a & b` is the intersection of two regions.

    **Extending.** Subclass it, and write `project(region: Mine, x, origin)`.
    """

    __example__ = "fm.LinfBall(0.1) & fm.Box(0, 1)"

    def __and__(self, other: Any) -> Intersection:
        return Intersection((*members(self), *members(other))) if isinstance(other, Region) else NotImplemented


class Ball(Region):
    """The points within a distance `eps` of the clean input, in the norm of the subclass.

    Args:
        eps: the radius, in the input's units, or `(n,)`, one per example.

    **Extending.** Besides `project`, write `transformation(ball: Mine, step_size)`, the steepest step in its norm, for
    `FGSM` and `PGD`, and `start_point(start: fm.attacks.Uniform, ball: Mine, x, key)`.
    """

    norm_order: ClassVar[float | None] = None  # p of the norm: 1, 2 or inf; None for a custom norm

    eps: float = hyper(minimum=0)


class PerCoordinate(Region):
    """A region that bounds each coordinate separately. Projections onto intervals and balls of one other norm are exact.

    **Extending.** Subclass it, and write `bounds(region: Mine, origin)` of `fm.attacks`, for example for a patch outside of
    which an image must not change.
    """


class LinfBall(Ball, PerCoordinate):
    """The points at which no coordinate differs from the clean input's by more than `eps`.

    Args: as of `Ball`.

    >>> fm.attacks.project(fm.LinfBall(0.25), jnp.array([[0.0, 0.9, 0.6]]), jnp.array([[0.5, 0.5, 0.5]]))
    Array([[0.25, 0.75, 0.6 ]], dtype=float32)
    """

    norm_order = math.inf


class L2Ball(Ball):
    """The points within a Euclidean distance `eps` of the clean input, over all coordinates of an example.

    Args: as of `Ball`.

    >>> fm.attacks.project(fm.L2Ball(5.0), jnp.array([[6.0, 8.0], [0.0, 1.0]]), jnp.zeros((2, 2))).round(4)
    Array([[3., 4.],
           [0., 1.]], dtype=float32)
    """

    norm_order = 2


class L1Ball(Ball):
    """The points at which the absolute changes of all coordinates sum to at most `eps`.

    Args: as of `Ball`.

    >>> fm.attacks.project(fm.L1Ball(2.0), jnp.array([[3.0, 2.0, 0.5]]), jnp.zeros((1, 3))).round(4)
    Array([[1.5, 0.5, 0. ]], dtype=float32)
    """

    norm_order = 1


class L0Ball(Ball):
    """The points that differ from the clean input in at most `eps` coordinates, by any amount. Use it with a box.

    Args:
        eps: the number of coordinates; a fraction of one does not count.

    >>> region = fm.attacks.L0Ball(1) & fm.Box(0, 1)
    >>> fm.attacks.project(region, jnp.array([[0.25, 0.5, 0.6]]), jnp.array([[0.5, 0.5, 0.5]]))
    Array([[0.25, 0.5 , 0.5 ]], dtype=float32)
    """

    norm_order = 0


class Box(PerCoordinate):
    """The points with every coordinate in `[lo, hi]`, such as the range of pixel values.

    Args:
        lo: the smallest value.
        hi: the largest value.
    """

    lo: float
    hi: float


class Patch(PerCoordinate):
    """The points that differ from the clean input only where a mask is True: `fm.LinfBall(0.5) & fm.attacks.Patch(mask)`.

    Args:
        mask: booleans of the shape of an example, whose axes may be 1, such as `(height, width, 1)`.

    >>> region = fm.LinfBall(0.25) & fm.attacks.Patch(jnp.array([True, False]))
    >>> fm.attacks.project(region, jnp.array([[0.9, 0.9]]), jnp.array([[0.5, 0.5]]))
    Array([[0.75, 0.5 ]], dtype=float32)
    """

    __example__ = "fm.attacks.Patch(mask)"

    mask: jax.Array


class Intersection(Region):
    """The intersection of several regions.

    Args:
        regions: the regions. The projection is exact for any number of boxes and `LinfBall`s with balls of one other norm,
            `L2Ball`s, `L1Ball`s or `L0Ball`s. Custom regions are projected onto first, by their own methods; then the result is in the
            others, but may not be the nearest point. Where the clean input violates a bound on a coordinate, the result
            satisfies the bounds only; of two contradicting bounds, the later one.

    >>> fm.LinfBall(0.1) & fm.Box(0, 1)
    LinfBall(eps=0.1) & Box(lo=0, hi=1)
    >>> fm.attacks.project(fm.L2Ball(5.0) & fm.Box(0, 3.5), jnp.array([[4.0, 8.0]]), jnp.zeros((1, 2))).round(4)
    Array([[3.5, 3.5]], dtype=float32)
    """

    regions: tuple[Region, ...]

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.regions))


def members(region: Region) -> list[Region]:
    """The regions that a region consists of, at any depth."""
    if not isinstance(region, Intersection):
        return [region]
    return [member for each in region.regions for member in members(each)]


def balls(region: Region) -> list[Ball]:
    """The balls in a region."""
    return [member for member in members(region) if isinstance(member, Ball)]


def boxes(region: Region) -> list[Box]:
    """The boxes in a region."""
    return [member for member in members(region) if isinstance(member, Box)]


def others(region: Region) -> list[Region]:
    """The members of a region that are not balls."""
    return [member for member in members(region) if not isinstance(member, Ball)]


def norm_balls(region: Region) -> list[Ball]:
    """The balls of the 2-, 1- or 0-norm in a region.

    Raises:
        ValueError: if there are balls of several of these norms.
    """
    found: list[Ball] = [member for member in members(region) if isinstance(member, L2Ball | L1Ball | L0Ball)]
    names = dict.fromkeys(f"L{ball.norm_order:g}Ball" for ball in found)
    if len(names) > 1:
        raise ValueError(
            f"region must not contain both an {' and an '.join(names)}, got {' & '.join(map(repr, found))}. Use balls of one of "
            "these norms, with any boxes and LinfBalls."
        )
    return found


def split(region: Region) -> tuple[list[Ball], list[PerCoordinate], list[Region]]:
    """The members of a region by their projection: the balls of the 0-, 1- or 2-norm, the intervals, and all others."""
    # Balls first: a box wins over a `LinfBall` that contradicts it.
    found = sorted(members(region), key=lambda member: not isinstance(member, Ball))
    intervals = [member for member in found if isinstance(member, PerCoordinate)]
    return norm_balls(region), intervals, [m for m in found if not isinstance(m, PerCoordinate | L2Ball | L1Ball | L0Ball)]


def ball_of(region: Region) -> Ball:
    """The one ball in a region, whose norm defines the steepest step and the random start.

    Raises:
        ValueError: if there is none, or several.
    """
    found = balls(region)
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"region must contain one ball, whose norm defines the step, got {len(found)} in {region!r}. "
        "Write `fm.LinfBall(eps) & fm.Box(lo, hi)`, or define the step: `fm.Attack(transformation, region)`."
    )


def single_ball(region: Region) -> Ball | None:
    """The ball of a region that has only one, of one known radius; otherwise None."""
    found = balls(region)
    eps = concrete(found[0].eps) if len(found) == 1 else None
    return None if eps is None or np.ndim(eps) else found[0]


def normed_ball_of(attack: Any) -> Ball:
    """`ball_of` the attack's region; raises a TypeError if it has another norm than 1, 2 or ∞."""
    ball = ball_of(attack.region)
    if not ball.norm_order:
        name = type(attack).__name__
        raise TypeError(f"{name}, region: must contain a LinfBall, an L2Ball or an L1Ball, got {attack.region!r}.")
    return ball


@dispatch
def scaled(value: object, factor):
    return value


@dispatch
def scaled(region: Ball, factor):
    return remake(region, {"eps": region.eps * factor})


@dispatch
def scaled(region: Intersection, factor):
    return remake(region, {"regions": tuple(scaled(each, factor) for each in region.regions)})


@dispatch
def for_examples(part: object, rows, n):
    return part


@dispatch
def for_examples(region: Intersection, rows, n):
    return map_parts(lambda part, _: for_examples(part, rows, n), region)


@dispatch
def for_examples(ball: Ball, rows, n):
    return remake(ball, {"eps": values_at(f"{type(ball).__name__}.eps", ball.eps, rows, n)})


def values_at(name: str, values: Any, rows: Any, n: int) -> Any:
    """One value for all examples as it is, or of one per example, `(n,)`, those of some rows."""
    if not np.ndim(values):
        return values
    if np.shape(values) != (n,):
        raise ValueError(f"{name} must be one value, or an array ({n},) with one per example, got {np.shape(values)}.")
    return jnp.asarray(values)[rows]
