"""Attacks that are an optax chain: gradient, step, projection, each example by itself; `perturb` and `attempt`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core.batch import index, inputs, with_inputs
from fulmen.core.component import still
from fulmen.core.leaves import components, is_array
from fulmen.core.marks import ignores_steps
from fulmen.core.prepared_batch import prepared
from fulmen.core.state import State
from fulmen.core.structure import keep, pack
from fulmen.core.tree import remake
from fulmen.core.verbs import (
    advance,
    as_batch,
    attempt,
    begin,
    finish,
    perturb,
    project,
    shown,
    start_point,
    transformation,
    validate,
    views,
)
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import (
    Walk,
    along,
    examples,
    gathered,
    is_traced,
    look_program,
    packed,
    standing,
    walk,
)
from fulmen.robust.attacks.problem import Problem

__all__ = ["last_point"]


def _prepared(call, attack, system, batch, key, *, inside=False, checked=False, **options):
    """For every attack: a state stands for its system, raw data becomes a batch, and nothing is differentiated through."""
    if isinstance(system, State):
        keep(pack(system.system)[1], system.structure)
        system = system.system
    batch = as_batch(system, batch) if checked else prepared(batch, system)
    if key is not None and not is_array(key):
        raise TypeError(f"key: a random key such as jax.random.key(0) was expected, and {key!r} came.")
    if is_traced((attack, system, batch, key)):
        for _, part in components(attack):
            validate(part)
        return still(call(attack, still(system), still(batch), key, **options))
    if not checked:
        validate(system, batch)
        validate(attack, system, batch)
    if inside and attack.nearest:
        return with_inputs(batch, attempt(attack, system, batch, key, checked=True).x)
    return call(attack, system, batch, key, **options)


perturb.around(Attack)(_prepared)
attempt.around(Attack)(_prepared)


def _perturb(attack: Attack, system, batch, key, *, best=True):
    """`best` keeps each example's best point, for one more forward pass; without it the last point is returned."""
    problem = Problem(attack, system, batch, key=key, best=best or attack.restarts > 1)
    found = walk(problem)
    for restart in range(1, attack.restarts):
        found = _better(found, walk(remake(problem, {"key": _again(key, restart), "restart": restart})))
    return with_inputs(batch, found.x if found.best is None else found.best)


perturb.dispatch(_perturb)


def last_point(attack: Attack, system: Any, batch: Any, key: Any) -> Any:
    """`perturb` for a training step: without the pass that finds the best point, where the attack's method has a choice."""
    method = perturb.method(attack, system, batch, key)
    options = {"best": False} if "best" in inspect.signature(method.function).parameters else {}
    return perturb(attack, system, batch, key, **options)


@attempt.dispatch
def _attempt(attack: Attack, system, batch, key):
    problem = Problem(attack, system, indexed(batch), key=key, stop=True)
    steps = perturb.method(attack, system, batch, key).function is _perturb
    found = clean_look(problem)
    for restart in range(attack.restarts if steps else 1):
        again = remake(problem, {"key": _again(key, restart), "restart": restart})
        found = of_the_rest(found, again, _walked if steps else _looked_at_the_end)
    return found


def _walked(problem: Problem) -> Walk:
    found = walk(problem)
    return Walk(found.best, found.best, found.value, found.succeeded, found.first)


def _looked_at_the_end(problem: Problem) -> Walk:
    """What an attack with a `perturb` of its own comes to."""
    attacked = inputs(perturb(problem.attack, problem.system, problem.batch, problem.key, checked=True))
    seen = _look(problem, attacked)
    return Walk(attacked, attacked, seen.value, seen.succeeded, jnp.where(seen.succeeded, problem.attack.length, -1))


def _look(problem: Problem, x: Any) -> Any:
    return problem.look(x) if is_traced(problem) else look_program(*packed(problem), x)


def indexed(batch: Any) -> Any:
    """The batch with numbers by which its examples draw, so that they do not draw by their places in a smaller one."""
    return batch if getattr(batch, "index", None) is not None else remake(batch, {"index": index(batch)})


def clean_look(problem: Problem) -> Walk:
    """The walk that stands at the clean inputs."""
    seen, x = _look(problem, problem.origin), problem.origin
    return Walk(
        x, x, jnp.full_like(seen.value, -jnp.inf), seen.succeeded, jnp.where(seen.succeeded, 0, -1).astype(jnp.int32)
    )


def of_the_rest(found: Walk, problem: Problem, run: Any) -> Walk:
    """What was found, and on the examples that no attack has succeeded on yet, what `run(problem)` finds."""
    if is_traced((found, problem)):
        return _better(found, run(problem))
    left = np.flatnonzero(~np.asarray(found.succeeded))
    if not left.size:
        return found
    rows = np.resize(left, gathered(left.size, len(problem.batch)))
    whole = len(left) == len(problem.batch)
    new = run(problem if whole else examples(problem, rows))
    found = jax.tree.map(np.array, found)
    old = jax.tree.map(lambda v: v[left], found)
    better = _better(old, jax.tree.map(lambda v: np.asarray(v)[: left.size], new))
    for all_of_them, some in zip(jax.tree.leaves(found), jax.tree.leaves(better), strict=True):
        all_of_them[left] = np.asarray(some)
    return found


def _better(old: Walk, new: Walk) -> Walk:
    """Each example's better one of two walks."""
    better = new.value > old.value
    if old.succeeded is not None:
        better = ~old.succeeded & (new.succeeded | better)
    return jax.tree.map(lambda a, b: jnp.where(along(better, b), b, a), old, new)


def _again(key: Any, restart: int) -> Any:
    return key if restart == 0 or key is None else jax.random.fold_in(key, restart)


# The steps of a chain


class ChainWalk(Walk):
    """Where the attacks stand.

    Attributes:
        memory: per leaf of `x` the state of the transformation, each example's own.
    """

    memory: Any = None


@dispatch
def begin(attack: Attack, problem):
    transform = transformation(attack)

    def point(number: int, x: jax.Array) -> jax.Array:
        if problem.key is None:
            start = jax.vmap(lambda x: start_point(attack.start, attack.region, x, None))(x)
        else:
            start = jax.vmap(functools.partial(start_point, attack.start, attack.region))(x, problem.keys(number))
        return project(attack.region, start, x)

    flat, structure = jax.tree.flatten(problem.origin)
    x = structure.unflatten([point(number, jnp.asarray(leaf)) for number, leaf in enumerate(flat)])
    return ChainWalk(**standing(problem, x), memory=[jax.vmap(transform.init)(leaf) for leaf in flat])


@dispatch
@ignores_steps
def advance(attack: Attack, problem, walk, step):
    through = views(attack)
    see = lambda x: functools.reduce(lambda x, view: shown(view, problem, walk, x, step), through, x)
    there, back = jax.vjp(see, walk.x)
    slopes, seen = problem.slopes(there, step)
    (slopes,) = back(slopes)
    if through and walk.value is not None:
        seen = problem.look(walk.x, step)  # what was seen is of other points
    walk = walk.keep(walk.x, seen, step)
    transform = optax.with_extra_args_support(transformation(attack))

    def move(slope: jax.Array, memory: Any, x: jax.Array, origin: jax.Array) -> tuple[jax.Array, Any]:
        update = lambda slope, memory, x, value: transform.update(slope, memory, x, value=value)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
            # By each example, so that norms do not couple them.
            change, after = jax.vmap(update)(slope, memory, x, -seen.value)
        after = jax.tree.map(lambda new, old: _typed(new, old.dtype), after, memory)
        return project(attack.region, x + _typed(change, x.dtype), origin), after

    flat, structure = jax.tree.flatten(walk.x)
    origins = jax.tree.leaves(problem.origin)
    moved = [move(*each) for each in zip(jax.tree.leaves(slopes), walk.memory, flat, origins, strict=True)]
    return remake(walk, {"x": structure.unflatten([x for x, _ in moved]), "memory": [memory for _, memory in moved]})


@dispatch
def finish(attack: Attack, problem, walk):
    if walk.best is None:
        return walk
    steps = attack.length if problem.steps is None else problem.steps
    return walk.keep(walk.x, problem.look(walk.x, steps), steps)


def _typed(value: Any, dtype: Any) -> Any:
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else value.astype(dtype)  # random keys stay as they are
