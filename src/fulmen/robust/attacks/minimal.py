"""What attacks have in common that look for the nearest adversarial point."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.fields import static
from fulmen.core.prediction import Prediction
from fulmen.core.tree import remake
from fulmen.core.verbs import project, succeeded, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Margin, Objective
from fulmen.robust.attacks.attack import CLEAN, Attack, Start
from fulmen.robust.attacks.attack_loop import standing
from fulmen.robust.attacks.input_transform import View
from fulmen.robust.attacks.problem import Problem, Seen
from fulmen.robust.attacks.projections import within
from fulmen.robust.attacks.region import Ball, Interval, Region, members, others

__all__ = ["MinimalNorm"]


class MinimalNorm(Attack):
    """Attacks that look for the nearest adversarial point, however far it is.

    `perturb` returns the nearest one that was found, and the clean input where none was. The region's boxes say where such
    points may be. Its ball says in which norm they are near, and its radius decides what counts in `attempt`: an example is
    done as soon as an adversarial point inside the region has been found. They work on one array of inputs, and one model's
    logits.
    """

    nearest = True

    start: Start = dataclasses.field(default_factory=lambda: CLEAN, init=False, repr=False)
    objective: Objective | None = dataclasses.field(default_factory=Margin, init=False, repr=False)
    restarts: int = static(default_factory=lambda: 1, init=False, repr=False)
    samples: int | None = static(default_factory=lambda: None, init=False, repr=False)
    views: tuple[View, ...] = dataclasses.field(default_factory=tuple, init=False, repr=False)


def standing_still(problem: Problem) -> dict[str, Any]:
    """The fields of a `Walk` at the clean inputs: the best points are always wanted, as the last ones may be anywhere."""
    return standing(remake(problem, {"best": True}), problem.points(problem.image))


def is_adversarial(problem: Problem, logits: jax.Array) -> jax.Array:
    """`(n,)`, where the attack has reached what it is after."""
    return succeeded(problem.attack.target, Prediction(problem.system, logits, problem.batch), problem.target)


def keep_nearest(problem: Problem, walk: Any, x: jax.Array, adversarial: jax.Array, far: jax.Array, step: Any) -> Any:
    """The walk with some points where they are adversarial, and nearer than those that were.

    Args:
        problem: the problem.
        walk: the walk.
        x: the points, `(n, …)`.
        adversarial: `(n,)`.
        far: `(n,)`, their distances.
        step: how many steps have led there.
    """
    if problem.stop:
        inside = project(problem.attack.region, x, problem.image) == x
        adversarial &= inside.all(tuple(range(1, x.ndim)))
    value = jnp.where(adversarial, -far.astype(walk.value.dtype), -jnp.inf)
    return walk.keep(problem.points(x), Seen(value, adversarial if problem.stop else None), step)


def limits(region: Region, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest values that the region allows at any distance, in the shape of `origin`."""
    return within(others(region), origin)


def label_mask(problem: Problem, logits: jax.Array) -> jax.Array:
    """Where the logits of the labels are, `(n, classes)`."""
    return jax.nn.one_hot(problem.labels(), logits.shape[1], dtype=bool)


def class_ahead(problem: Problem, logits: jax.Array) -> jax.Array:
    """The classes that are to be overtaken, `(n,)`: the labels, or of an attack with a `Target` the best other ones."""
    if not problem.attack.target.names_class:
        return problem.labels()
    there = jax.nn.one_hot(problem.target, logits.shape[1], dtype=bool)
    return jnp.where(there, -jnp.inf, logits).argmax(1).astype(jnp.int32)


def wrong_classes(problem: Problem, logits: jax.Array, n: int) -> jax.Array:
    """The classes that may be led to, `(n, k)`: the target, or else the likeliest wrong ones."""
    if problem.target is not None:
        return problem.target[:, None]
    wrong = jnp.where(label_mask(problem, logits), -jnp.inf, logits)
    return jax.lax.top_k(wrong, n)[1].astype(jnp.int32)


def ahead(logits: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """By how much the logits of some classes are above those of others, `(n,)`."""
    of = lambda label: jnp.where(jax.nn.one_hot(label, logits.shape[1], dtype=bool), logits, 0).sum(1)
    return of(one) - of(other)


def finite(slope: jax.Array) -> jax.Array:
    """Slopes with 0 where they are not finite."""
    return jnp.where(jnp.isfinite(slope), slope, 0)


def flat(x: jax.Array) -> jax.Array:
    """`(n, …)` as `(n, features)`."""
    return x.reshape(len(x), -1)


@dispatch
def validate(attack: MinimalNorm):
    for member in members(attack.region):
        if not isinstance(member, Ball | Interval):
            raise TypeError(
                f"{type(attack).__name__}, region: a ball and regions that bound each coordinate, such as fm.Box(0, 1), were "
                f"expected, and {member!r} came."
            )
