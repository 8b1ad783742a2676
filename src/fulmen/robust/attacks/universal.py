"""`Universal`: one perturbation for all examples of a batch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Structure, concrete, hyper, number, per_structure, static, with_inputs
from fulmen.core.verbs import perturb, transformation, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import CLEAN, PGD, Start
from fulmen.robust.attacks.attack_loop import is_traced, packed
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.projections import projected
from fulmen.robust.attacks.region import ball_of


class Universal(PGD):
    """One perturbation that is added to every example: steps along the mean gradient of the batch.

    Shafahi et al. 2020, arXiv:1811.11304. The ball limits the perturbation, the boxes the sums. An example's result depends on
    the others: each batch has its own perturbation.

    Args:
        region: the region of allowed points, with one ball.
        step_size: the size of a step, in the input's units.
        steps: the number of steps.

    >>> fm.attacks.Universal(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.01, steps=40)
    Universal(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), step_size=0.01, steps=40)
    """

    step_size: float = hyper(minimum=0)
    start: Start = dataclasses.field(default_factory=lambda: CLEAN, init=False, repr=False)
    restarts: int = static(default_factory=lambda: 1, init=False, repr=False)


@dispatch
def validate(attack: Universal):
    validate.invoke(PGD)(attack)
    eps = concrete(ball_of(attack.region).eps)
    if eps is not None and np.ndim(eps):
        raise ValueError(f"Universal.region must have one radius for all examples, got {number(eps)}.")


@dispatch
def perturb(attack: Universal, system, batch, key):
    problem = Problem(attack, system, batch, key=key, best=False).widened().with_targets()
    offset = jax.tree.map(lambda x: jnp.zeros_like(x[0]), problem.origin)
    memory = transformation(attack).init(offset)
    step = functools.partial(_moved, problem) if is_traced(problem) else functools.partial(_step, *packed(problem))
    for i in range(attack.steps):
        offset, memory = step(offset, memory, jnp.int32(i))
    return with_inputs(batch, problem.narrowed(_points(problem, offset)))


@per_structure()
def _step(structure: Structure, leaves: list[Any], offset: Any, memory: Any, number: Any) -> Any:
    return _moved(structure.unpack(leaves), offset, memory, number)


def _moved(problem: Problem, offset: Any, memory: Any, number: Any) -> tuple[Any, Any]:
    """The perturbation and the state of the optax chain after one more step."""
    attack = problem.attack
    gradient, _ = problem.gradient(_points(problem, offset), number)
    mean = jax.tree.map(lambda g: g.mean(0), gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
        change, memory = transformation(attack).update(mean, memory, offset)
    moved = jax.tree.map(lambda old, new: (old + new.astype(old.dtype))[None], offset, change)
    limited = projected(ball_of(attack.region), moved, jax.tree.map(jnp.zeros_like, moved))
    return jax.tree.map(lambda v: v[0], limited), memory


def _points(problem: Problem, offset: Any) -> Any:
    """The perturbed examples, within the region in spite of rounding."""
    shifted = jax.tree.map(lambda x, offset: x + offset[None], problem.origin, offset)
    return projected(problem.attack.region, shifted, problem.origin)
