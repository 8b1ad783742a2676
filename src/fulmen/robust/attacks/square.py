"""Square: a random search over squares of an image, without gradients."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import hyper, remake, static
from fulmen.core.marks import keeps_state
from fulmen.core.verbs import advance, begin, finish, for_examples, project, validate
from fulmen.dispatching.registry import dispatch, verb
from fulmen.objectives import Margin, Objective
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields, select
from fulmen.robust.attacks.input_transform import OfImages, has_channels_first
from fulmen.robust.attacks.region import Ball, L1Ball, L2Ball, LinfBall, ball_of, normed_ball_of

__all__ = ["Square"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The numbers of changes after which the area of the squares is halved, of `QUERIES` if they are rescaled."""
QUERIES = 10_000


class Square(Attack, OfImages):
    """Random search: changes a random square of the image and keeps the change if it increases the objective.

    Andriushchenko, Croce, Flammarion and Hein 2020, arXiv:1912.00049; in an `L1Ball` as in AutoAttack, Croce and Hein 2021,
    arXiv:2103.01208. Each example draws its own squares. Images are `(n, height, width, channels)` or `(n, height, width)`;
    in vectors `(n, features)` it changes runs of neighbouring features.

    Args:
        region: the region of allowed points, with one `LinfBall`, `L2Ball` or `L1Ball`.
        queries: the number of forward passes.
        fraction: the share of the image that the first squares cover.
        rescaled: whether the squares shrink in proportion to `queries`: better with few of them. By default they shrink as the
            authors do in AutoAttack, by the number of queries so far.
        objective: the objective to maximise.
        channels_first: whether images are `(n, channels, height, width)`. None asks the model, by `fm.attacks.channels_first`;
            Equinox's convolutions answer. If the model does not specify it, shapes that look like it are refused.

    >>> fm.attacks.Square(fm.LinfBall(0.1) & fm.Box(0, 1), queries=1000)
    Square(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), queries=1000)
    """

    uses_gradients = False

    queries: int = static(minimum=1, default=5000)
    fraction: float = hyper(above=0, maximum=1, default=0.8, kw_only=True)
    rescaled: bool = static(default=False, kw_only=True)
    objective: Objective | None = dataclasses.field(default=Margin(), kw_only=True)
    steps: int = static(default_factory=lambda: 1, init=False, repr=False)

    @property
    def passes(self) -> int:
        return self.samples or 1

    @property
    def length(self) -> int:
        return self.queries

    @property
    def stepped(self) -> Any:
        return remake(self, {"queries": 1})


class SquareState(AttackState):
    """The state of `Square`.

    Attributes:
        height: `(n,)`, the maximised value at `x`.
    """

    height: Any = None


@verb(delegates=False)
def pattern(ball, shape, key):
    """The first perturbation of an image of a shape `(height, width, channels)`."""


@verb(delegates=False)
def changed(ball, offset, rows, columns, key):
    """A perturbation of an image after a change of a random square of `rows` and `columns`."""


@verb(delegates=False)
def least_side(ball):
    """The smallest side of the squares in pixels, for an attack in the ball."""


def _as_image(attack: Square, x: jax.Array) -> jax.Array:
    """One example as `(height, width, channels)`."""
    if x.ndim < 3:
        return x[..., None] if x.ndim == 2 else x[None, ..., None]
    return jnp.moveaxis(x, 0, -1) if has_channels_first(attack.channels_first, x.shape, "Square") else x


def _as_example(attack: Square, image: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An image `(height, width, channels)` as an example of a shape."""
    first = len(shape) == 3 and attack.channels_first
    return jnp.moveaxis(image, -1, 0) if first else image.reshape(shape)


@dispatch
def begin(attack: Square, problem):
    origin, ball = problem.image, ball_of(attack.region)
    if not 2 <= origin.ndim <= 4:
        raise ValueError(
            "Square, x: must be images (n, height, width, channels) or (n, height, width), or vectors (n, features), got shape "
            f"{origin.shape}."
        )
    shape = _as_image(attack, origin[0]).shape

    n = len(origin)

    def draw(row: Any, key: jax.Array) -> jax.Array:
        return _as_example(attack, pattern(for_examples(ball, row, n), shape, key).astype(origin.dtype), origin.shape[1:])

    x = project(attack.region, origin + jax.vmap(draw)(np.arange(n), problem.keys(0)), origin)
    height = jnp.full(len(origin), -jnp.inf, jnp.result_type(float))
    return SquareState(**initial_fields(problem, problem.points(x)), height=height)


@dispatch
def advance(attack: Square, problem, state, step):
    origin, ball, (x,) = problem.image, ball_of(attack.region), jax.tree.leaves(state.x)
    changes = step - 1
    if attack.rescaled:
        queries = attack.length if problem.steps is None else problem.steps
        changes, queries = (jnp.asarray(v).astype(jnp.float32) for v in (changes, queries))
        changes = changes * QUERIES / queries
    rows, columns = _sides(attack, _as_image(attack, origin[0]).shape, changes, least_side(ball))

    n = len(origin)

    def change(row: Any, offset: jax.Array, key: jax.Array) -> jax.Array:
        new = changed(for_examples(ball, row, n), _as_image(attack, offset), rows, columns, key).astype(x.dtype)
        return _as_example(attack, new, offset.shape)

    offset = jax.vmap(change)(np.arange(n), x - origin, problem.keys(step))
    tried = problem.points(jnp.where(step == 0, x, project(attack.region, origin + offset, origin)))
    seen = problem.evaluate(tried, step)
    better = seen.value > state.height
    new = select(better, {"x": tried, "height": seen.value}, {"x": state.x, "height": state.height})
    return remake(state.keep(tried, seen, step + 1), new)


@dispatch
@keeps_state
def finish(attack: Square, problem, state):
    return state


def _sides(attack: Square, shape: tuple[int, ...], changes: Any, least: int) -> tuple[jax.Array, jax.Array]:
    """The numbers of rows and columns of a square."""
    height, width = shape[:2]
    changes = jnp.asarray(changes)
    halved = (changes > jnp.asarray(HALVINGS, changes.dtype)).sum()
    area = jnp.asarray(attack.fraction).astype(jnp.float32) * height * width * jnp.exp2(-halved.astype(jnp.float32))
    side = jnp.maximum(jnp.round(jnp.sqrt(area)), least)
    if least > 1:
        side += 1 - side % 2  # odd, so that it has a middle
    rows = jnp.minimum(side, height)
    columns = jnp.where(rows < side, jnp.round(area / rows), side)
    return rows.astype(jnp.int32), jnp.clip(columns, 1, width).astype(jnp.int32)


def _random_square(bits: jax.Array, shape: tuple[int, ...], rows: Any, columns: Any) -> tuple[Any, Any, Any]:
    """Coordinates relative to the corner of a random square, and which are inside it, each `(height, width)`."""
    height, width = shape[:2]
    positions = (jnp.stack([height - rows, width - columns]) + 1).astype(jnp.float32)
    corner = jnp.floor((bits >> 8).astype(jnp.float32) * (2.0**-24) * positions).astype(jnp.int32)
    i, j = jnp.arange(height, dtype=jnp.int32)[:, None] - corner[0], jnp.arange(width, dtype=jnp.int32)[None] - corner[1]
    return i, j, (i >= 0) & (i < rows) & (j >= 0) & (j < columns)


def _signs(bits: jax.Array) -> jax.Array:
    return jnp.where(bits >> 31 == 0, 1.0, -1.0).astype(jnp.float32)


# Every coordinate is at the boundary


@dispatch
def pattern(ball: LinfBall, shape, key):
    """Stripes."""
    signs = _signs(jax.random.bits(key, (1, *shape[1:]), jnp.uint32))
    return jnp.broadcast_to(jnp.asarray(ball.eps).astype(jnp.float32) * signs, shape)


@dispatch
def changed(ball: LinfBall, offset, rows, columns, key):
    bits = jax.random.bits(key, (2 + offset.shape[2],), jnp.uint32)
    _, _, inside = _random_square(bits[:2], offset.shape, rows, columns)
    change = 2 * jnp.asarray(ball.eps).astype(offset.dtype) * _signs(bits[2:]).astype(offset.dtype)
    return offset + jnp.where(inside[..., None], change[None, None], 0)


@dispatch
def least_side(ball: LinfBall):
    return 1


# The squares share a budget


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
    bits = jax.random.bits(key, (*count, shape[2] + 1), jnp.uint32)[i // tile, j // tile]
    sign, flip = _signs(bits[..., 1:]), bits[..., 0] >> 31 == 0
    peaks = _peaks(ball, i % tile, j % tile, tile, tile, jnp.ones(shape[:2], bool), flip)
    change = sign * peaks[..., None]
    return jnp.asarray(ball.eps).astype(change.dtype) * change / _norm(ball, change)


@dispatch
def changed(ball: L2Ball | L1Ball, offset, rows, columns, key):
    bits = jax.random.bits(key, (5 + offset.shape[2],), jnp.uint32)
    i, j, inside = _random_square(bits[:2], offset.shape, rows, columns)
    _, _, emptied = _random_square(bits[2:4], offset.shape, rows, columns)
    inside, both = inside[..., None], (inside | emptied)[..., None]
    peaks = _peaks(ball, i, j, rows, columns, inside[..., 0], bits[4] >> 31 == 0).astype(offset.dtype)[..., None]
    old = jnp.where(inside, offset, 0)
    new = peaks * _signs(bits[5:]).astype(offset.dtype)[None, None] + old / _norm(ball, old, (0, 1))
    # The budget of this square: its own, that of the emptied square, and the unused part of the ball's.
    eps, power = jnp.asarray(ball.eps).astype(offset.dtype), ball.norm_order or 1
    left = jnp.maximum(eps**power - _norm(ball, offset) ** power, 0) / offset.shape[2]
    budget = (left + _norm(ball, jnp.where(both, offset, 0), (0, 1)) ** power) ** (1 / power)
    after = jnp.where(inside, new / _norm(ball, new, (0, 1)) * budget, jnp.where(both, 0, offset))
    return eps * after / _norm(ball, after)


def _peaks(ball: Ball, i: Any, j: Any, rows: Any, columns: Any, inside: jax.Array, flip: Any) -> jax.Array:
    """Two peaks of opposite signs and total norm 1, one above the other, or side by side if `flip`: `(height, width)`."""
    power = 4 if ball.norm_order == 1 else 2
    height, width = inside.shape
    sums = jnp.asarray(np.cumsum([0.0, *(k**-power for k in range(1, max(height, width) + 2))]), jnp.float32)
    i, j, rows, columns = (jnp.where(flip, b, a) for a, b in ((i, j), (j, i), (rows, columns), (columns, rows)))
    half = rows // 2
    upper = i < half

    # A peak sums the terms k⁻ᵖ over nested squares around its middle, k the size of the square.
    def peak(i: jax.Array, rows: jax.Array, there: jax.Array) -> jax.Array:
        distance = jnp.maximum(jnp.abs(i - rows // 2), jnp.abs(j - columns // 2))
        value = sums[jnp.maximum(rows // 2, columns // 2) + 1] - sums[jnp.where(there, distance, 0)]
        value = jnp.where(there, value, 0)
        return value / _norm(ball, value[..., None])[..., 0]

    both = peak(i, half, inside & upper) - peak(i - half, rows - half, inside & ~upper)
    return both / _norm(ball, both[..., None])[..., 0]


@dispatch
def validate(attack: Square):
    normed_ball_of(attack)
