"""`UniformNoise`: random search as an attack."""

import functools

import jax

from fulmen.core import remake, static
from fulmen.core.verbs import advance, begin, finish, project, start_point, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack, Uniform
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields
from fulmen.robust.attacks.region import ball_of


class UniformNoise(Attack):
    """Points drawn uniformly from the ball around the clean input, and projected onto the region.

    Args:
        region: the allowed perturbations; points are drawn from its one ball.
        steps: the number of points.

    >>> fm.robust.report.UniformNoise(fm.LinfBall(0.1) & fm.Box(0, 1), steps=100)
    UniformNoise(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), steps=100)
    """

    steps: int = static(default=1)


@dispatch
def begin(attack: UniformNoise, problem):
    return AttackState(**initial_fields(problem, problem.origin))


@dispatch
def advance(attack: UniformNoise, problem, state, step):
    draw = functools.partial(start_point, Uniform(), attack.region)

    def drawn(number: int, origin: jax.Array) -> jax.Array:
        return project(attack.region, jax.vmap(draw)(origin, problem.keys(step, number)), origin)

    flat, structure = jax.tree.flatten(problem.origin)
    x = structure.unflatten([drawn(number, leaf) for number, leaf in enumerate(flat)])
    return remake(state.keep(x, problem.evaluate(x, step), step + 1), {"x": x})


@dispatch
def finish(attack: UniformNoise, problem, state):
    return state


@dispatch
def validate(attack: UniformNoise):
    ball_of(attack.region)
