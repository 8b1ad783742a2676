"""Attacks that are an optax chain: the start, the step along the gradient with its projection, and the end."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core import remake
from fulmen.core.marks import ignores_steps
from fulmen.core.verbs import advance, begin, finish, project, shown, start_point, transformation, views
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields


class ChainState(AttackState):
    """The state of an attack that is an optax chain.

    Attributes:
        memory: per leaf of `x`, the state of the transformation for each example.
    """

    memory: Any = None


@dispatch
def begin(attack: Attack, problem):
    transform = transformation(attack)

    def start(number: int, x: jax.Array) -> jax.Array:
        keys = None if problem.key is None else problem.keys(number)
        point = functools.partial(start_point, attack.start, attack.region)
        return project(attack.region, jax.vmap(point)(x, keys), x)

    flat, structure = jax.tree.flatten(problem.origin)
    x = structure.unflatten([start(number, jnp.asarray(leaf)) for number, leaf in enumerate(flat)])
    return ChainState(**initial_fields(problem, x), memory=[jax.vmap(transform.init)(leaf) for leaf in flat])


@dispatch
@ignores_steps
def advance(attack: Attack, problem, state, step):
    through = views(attack)
    see = lambda x: functools.reduce(lambda x, view: shown(view, problem, state, x, step), through, x)
    seen_points, pull_back = jax.vjp(see, state.x)
    gradient, seen = problem.gradient(seen_points, step)
    (gradient,) = pull_back(gradient)
    if through and state.value is not None:
        seen = problem.evaluate(state.x, step)  # the gradient was evaluated at other points
    state = state.keep(state.x, seen, step)
    transform = optax.with_extra_args_support(transformation(attack))

    def move(gradient: jax.Array, memory: Any, x: jax.Array, origin: jax.Array) -> tuple[jax.Array, Any]:
        update = lambda gradient, memory, x, value: transform.update(gradient, memory, x, value=value)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
            # Mapped over examples, so that norms do not couple them.
            change, after = jax.vmap(update)(gradient, memory, x, -seen.value)
        after = jax.tree.map(lambda new, old: _cast(new, old.dtype), after, memory)
        return project(attack.region, x + _cast(change, x.dtype), origin), after

    flat, structure = jax.tree.flatten(state.x)
    origins = jax.tree.leaves(problem.origin)
    moved = [move(*each) for each in zip(jax.tree.leaves(gradient), state.memory, flat, origins, strict=True)]
    return remake(state, {"x": structure.unflatten([x for x, _ in moved]), "memory": [memory for _, memory in moved]})


@dispatch
def finish(attack: Attack, problem, state):
    if state.best is None:
        return state
    steps = attack.length if problem.steps is None else problem.steps
    return state.keep(state.x, problem.evaluate(state.x, steps), steps)


def _cast(value: Any, dtype: Any) -> Any:
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else value.astype(dtype)  # random keys keep their type
