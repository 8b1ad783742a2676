"""Projection onto a hyperplane within bounds, in the norm of each ball."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fulmen.core.verbs import length, shortest
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import L1Ball, L2Ball, LinfBall


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
def length(ball: LinfBall, offset):
    return jnp.abs(offset).max(tuple(range(1, offset.ndim)), initial=0)


@dispatch
def length(ball: L2Ball, offset):
    return jnp.sqrt((offset**2).sum(tuple(range(1, offset.ndim))))


@dispatch
def length(ball: L1Ball, offset):
    return jnp.abs(offset).sum(tuple(range(1, offset.ndim)))


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
