"""Square, a random search that changes squares of an image, and looks at no gradient."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.fields import hyper, static
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, begin, finish, project, validate
from fulmen.dispatching.registry import dispatch, verb
from fulmen.objectives import Margin, Objective
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import Walk, along, standing
from fulmen.robust.attacks.region import Ball, L1Ball, L2Ball, LinfBall, ball_of

__all__ = ["Square"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many changes the squares have half the area."""


class Square(Attack):
    """Random search, which keeps a change of a square of the image where it gains (Andriushchenko, Croce, Flammarion and Hein
    2020, arXiv:1912.00049; in an `L1Ball` as in the AutoAttack of Croce and Hein 2021, arXiv:2103.01208).

    Place and sign of a square are drawn for each example by itself. Images have their channels last, `(n, height, width,
    channels)` or `(n, height, width)`; of vectors `(n, features)` it changes stretches.

    Args:
        region: where the attack may go, with one `LinfBall`, `L2Ball` or `L1Ball`.
        queries: how many forward passes.
        fraction: of the image, which the first squares cover.
        objective: what it makes large.

    >>> fm.attacks.Square(fm.LinfBall(0.1) & fm.Box(0, 1), queries=1000)
    Square(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), queries=1000)
    """

    queries: int = static(minimum=1, default=5000)
    fraction: float = hyper(above=0, maximum=1, default=0.8, kw_only=True)
    objective: Objective | None = dataclasses.field(default=Margin(), kw_only=True)
    steps: int = static(default_factory=lambda: 1, init=False, repr=False)

    @property
    def length(self) -> int:
        return self.queries

    @property
    def stepped(self) -> Any:
        return remake(self, {"queries": 1})


class SquareWalk(Walk):
    """Where the attacks stand.

    Attributes:
        height: `(n,)`, what the attack makes large, at `x`.
    """

    height: Any = None


@verb(delegates=False)
def pattern(ball, shape, key):
    """The first change of an image of a shape `(height, width, channels)`."""


@verb(delegates=False)
def changed(ball, offset, rows, columns, key):
    """A change of an image, with a square of `rows` and `columns` of it changed again."""


@verb(delegates=False)
def least_side(ball):
    """The smallest side that the squares of an attack in the ball may have, in pixels."""


def _as_image(x: jax.Array) -> jax.Array:
    """One example as `(height, width, channels)`."""
    return {1: x[None, ..., None], 2: x[..., None]}.get(x.ndim, x)


@dispatch
def begin(attack: Square, problem):
    origin, ball = problem.image, ball_of(attack.region)
    if not 2 <= origin.ndim <= 4:
        raise ValueError(
            f"Square, x: images (n, height, width, channels) or (n, height, width), or vectors (n, features) were expected, and "
            f"an array of shape {origin.shape} came."
        )
    draw = functools.partial(pattern, ball, _as_image(origin[0]).shape)
    first = jax.vmap(draw)(problem.keys(0)).astype(origin.dtype).reshape(origin.shape)
    x = project(attack.region, origin + first, origin)
    height = jnp.full(len(origin), -jnp.inf, jnp.result_type(float))
    return SquareWalk(**standing(problem, problem.points(x)), height=height)


@dispatch
def advance(attack: Square, problem, walk, step):
    origin, ball, (x,) = problem.image, ball_of(attack.region), jax.tree.leaves(walk.x)
    shape = _as_image(origin[0]).shape
    rows, columns = _sides(attack, shape, step - 1, least_side(ball))
    change = lambda offset, key: changed(ball, _as_image(offset), rows, columns, key).astype(x.dtype).reshape(offset.shape)
    offset = jax.vmap(change)(x - origin, problem.keys(step))
    tried = jnp.where(step == 0, x, project(attack.region, origin + offset, origin))
    seen = problem.look(problem.points(tried), step)
    walk = walk.keep(problem.points(tried), seen, step + 1)
    better = seen.value > walk.height
    x = jnp.where(along(better, x), tried, x)
    return remake(walk, {"x": problem.points(x), "height": jnp.where(better, seen.value, walk.height)})


@dispatch
def finish(attack: Square, problem, walk):
    return walk


def _sides(attack: Square, shape: tuple[int, ...], changes: Any, least: int) -> tuple[jax.Array, jax.Array]:
    """How many rows and columns a square has."""
    height, width = shape[:2]
    halved = (jnp.asarray(changes) > jnp.asarray(HALVINGS, jnp.int32)).sum()
    area = jnp.asarray(attack.fraction).astype(jnp.float32) * height * width * jnp.exp2(-halved.astype(jnp.float32))
    side = jnp.maximum(jnp.round(jnp.sqrt(area)), least)
    if least > 1:
        side += 1 - side % 2  # with a middle
    rows = jnp.minimum(side, height)
    columns = jnp.where(rows < side, jnp.round(area / rows), side)
    return rows.astype(jnp.int32), jnp.clip(columns, 1, width).astype(jnp.int32)


def _place(drawn: jax.Array, shape: tuple[int, ...], rows: Any, columns: Any) -> tuple[Any, Any, Any]:
    """Coordinates from the corner of a square drawn at random, and which are in it, each `(height, width)`."""
    height, width = shape[:2]
    places = (jnp.stack([height - rows, width - columns]) + 1).astype(jnp.float32)
    corner = jnp.floor((drawn >> 8).astype(jnp.float32) * (2.0**-24) * places).astype(jnp.int32)
    i, j = jnp.arange(height, dtype=jnp.int32)[:, None] - corner[0], jnp.arange(width, dtype=jnp.int32)[None] - corner[1]
    return i, j, (i >= 0) & (i < rows) & (j >= 0) & (j < columns)


def _signs(drawn: jax.Array) -> jax.Array:
    return jnp.where(drawn >> 31 == 0, 1.0, -1.0).astype(jnp.float32)


# Every coordinate at the boundary


@dispatch
def pattern(ball: LinfBall, shape, key):
    """Stripes."""
    signs = _signs(jax.random.bits(key, (1, *shape[1:]), jnp.uint32))
    return jnp.broadcast_to(jnp.asarray(ball.eps).astype(jnp.float32) * signs, shape)


@dispatch
def changed(ball: LinfBall, offset, rows, columns, key):
    drawn = jax.random.bits(key, (2 + offset.shape[2],), jnp.uint32)
    _, _, inside = _place(drawn[:2], offset.shape, rows, columns)
    change = 2 * jnp.asarray(ball.eps).astype(offset.dtype) * _signs(drawn[2:]).astype(offset.dtype)
    return offset + jnp.where(inside[..., None], change[None, None], 0)


@dispatch
def least_side(ball: LinfBall):
    return 1


# A budget that squares share


@dispatch
def least_side(ball: Ball):
    return 3


def _norm(ball: Ball, v: jax.Array, axis: Any = (0, 1, 2)) -> jax.Array:
    size = jnp.abs(v).sum(axis, keepdims=True) if ball.norm_order == 1 else jnp.sqrt((v**2).sum(axis, keepdims=True))
    return size + 1e-12


@dispatch
def pattern(ball: L2Ball | L1Ball, shape, key):
    """Tiles."""
    tile = max(min(shape[:2]) // 5, 1)
    count = [math.ceil(size / tile) for size in shape[:2]]
    i, j = np.arange(shape[0])[:, None], np.arange(shape[1])[None]
    drawn = jax.random.bits(key, (*count, shape[2] + 1), jnp.uint32)[i // tile, j // tile]
    sign, flip = _signs(drawn[..., 1:]), drawn[..., 0] >> 31 == 0
    peaks = _peaks(ball, i % tile, j % tile, tile, tile, jnp.ones(shape[:2], bool), flip)
    change = sign * peaks[..., None]
    return jnp.asarray(ball.eps).astype(change.dtype) * change / _norm(ball, change)


@dispatch
def changed(ball: L2Ball | L1Ball, offset, rows, columns, key):
    drawn = jax.random.bits(key, (5 + offset.shape[2],), jnp.uint32)
    i, j, inside = _place(drawn[:2], offset.shape, rows, columns)
    _, _, emptied = _place(drawn[2:4], offset.shape, rows, columns)
    inside, both = inside[..., None], (inside | emptied)[..., None]
    peaks = _peaks(ball, i, j, rows, columns, inside[..., 0], drawn[4] >> 31 == 0).astype(offset.dtype)[..., None]
    old = jnp.where(inside, offset, 0)
    new = peaks * _signs(drawn[5:]).astype(offset.dtype)[None, None] + old / _norm(ball, old, (0, 1))
    # What the square and the other one that is emptied had, and what the ball had left.
    eps, power = jnp.asarray(ball.eps).astype(offset.dtype), ball.norm_order or 1
    left = jnp.maximum(eps**power - _norm(ball, offset) ** power, 0) / offset.shape[2]
    budget = (left + _norm(ball, jnp.where(both, offset, 0), (0, 1)) ** power) ** (1 / power)
    after = jnp.where(inside, new / _norm(ball, new, (0, 1)) * budget, jnp.where(both, 0, offset))
    return eps * after / _norm(ball, after)


def _peaks(ball: Ball, i: Any, j: Any, rows: Any, columns: Any, inside: jax.Array, flip: Any) -> jax.Array:
    """Two peaks of opposite signs and norm 1 together, one above the other or, flipped, beside it, `(height, width)`."""
    power = 4 if ball.norm_order == 1 else 2
    height, width = inside.shape
    sums = jnp.asarray(np.cumsum([0.0, *(k**-power for k in range(1, max(height, width) + 2))]), jnp.float32)
    i, j, rows, columns = (jnp.where(flip, b, a) for a, b in ((i, j), (j, i), (rows, columns), (columns, rows)))
    half = rows // 2
    upper = i < half

    # A rectangle is 1 + 2⁻ᵖ + … over squares around its middle, each one larger than the last.
    def peak(i: jax.Array, rows: jax.Array, there: jax.Array) -> jax.Array:
        distance = jnp.maximum(jnp.abs(i - rows // 2), jnp.abs(j - columns // 2))
        value = sums[jnp.maximum(rows // 2, columns // 2) + 1] - sums[jnp.where(there, distance, 0)]
        value = jnp.where(there, value, 0)
        return value / _norm(ball, value[..., None])[..., 0]

    both = peak(i, half, inside & upper) - peak(i - half, rows - half, inside & ~upper)
    return both / _norm(ball, both[..., None])[..., 0]


@dispatch
def validate(attack: Square):
    if ball_of(attack.region).norm_order is None:
        raise TypeError(
            f"Square, region: one with a LinfBall, an L2Ball or an L1Ball was expected, and {attack.region!r} came."
        )
