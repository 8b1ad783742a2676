"""`perturb` for attacks that are an optax chain: gradient, step, projection, each example by itself."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from fulmen.attacks.attack import Attack, looks_at_steps, start_point
from fulmen.attacks.inputs import example_losses, index, inputs, with_inputs
from fulmen.component import fold_name, still
from fulmen.dispatch import dispatch
from fulmen.leaves import components, is_array
from fulmen.mode import Eval
from fulmen.train.state import State, Structure, pack
from fulmen.tree import Tree, remake
from fulmen.verbs import as_batch, bind, perturb, project, transformation, validate

__all__ = ["last_point"]

UNROLL = 10
"""Up to so many steps a program that is being traced gets written out; convolutions are slow in loops on the CPU."""


class Walk(Tree):
    """Where the attacks on the examples of a batch stand.

    Attributes:
        x: the points, of the structure that `inputs` gives; its leaves are `(n, …)`.
        memory: per leaf of `x` the state of the transformation, each example's own.
        best: the best points so far, or None where the last one is wanted.
        value: `(n,)`, the losses there.
    """

    x: Any
    memory: Any
    best: Any = None
    value: Any = None


@perturb.around(Attack)
def _prepare(call, attack, system, batch, key, **options):
    """For every attack: a state stands for its system, raw data becomes a batch, and nothing is differentiated through."""
    system = system.system if isinstance(system, State) else system
    batch = as_batch(system, batch)
    if key is not None and not is_array(key):
        raise TypeError(f"key: a random key such as jax.random.key(0) was expected, and {key!r} came.")
    for _, part in components(attack):
        validate(part)
    if _traced((attack, system, batch, key)):
        return still(call(attack, still(system), still(batch), key, **options))
    validate(attack, batch)
    return call(attack, system, batch, key, **options)


@dispatch
def perturb(attack: Attack, system, batch, key, *, best=True):
    """`best` keeps each example's best point, for one more forward pass; without it the last point is returned."""
    if _traced((attack, system, batch, key)):
        return with_inputs(batch, _in_one_program(attack, system, batch, key, best))
    return with_inputs(batch, _step_by_step(attack, system, batch, key, best))


def last_point(attack: Attack, system: Any, batch: Any, key: Any) -> Any:
    """`perturb` for a training step: without the pass that finds the best point, where the attack's method has a choice."""
    method = perturb.method(attack, system, batch, key)
    options = {"best": False} if "best" in inspect.signature(method.function).parameters else {}
    return perturb(attack, system, batch, key, **options)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _in_one_program(attack: Attack, system: Any, batch: Any, key: Any, best: bool) -> Any:
    walk = _begin(attack, system, batch, key, best)
    advance = lambda walk: _advance(attack, system, batch, key, walk)
    if attack.steps <= UNROLL:
        for _ in range(attack.steps):
            walk = advance(walk)
    else:
        walk = jax.lax.fori_loop(0, attack.steps, lambda _, walk: advance(walk), walk)
    return _end(system, batch, key, walk)


def _step_by_step(attack: Attack, system: Any, batch: Any, key: Any, best: bool) -> Any:
    """One compiled step, called from the host: it serves any number of steps."""
    steps = attack.steps
    if not looks_at_steps(attack):
        attack = remake(attack, {"steps": 1})
    leaves, structure = pack((attack, system, batch, key), best)
    walk = _begin_program(structure, leaves)
    for _ in range(steps):
        walk = _advance_program(structure, leaves, walk)
    return _end_program(structure, leaves, walk)


@functools.partial(jax.jit, static_argnums=0)
def _begin_program(structure: Structure, leaves: list[Any]) -> Walk:
    attack, system, batch, key = structure.unpack(leaves)
    return _begin(attack, system, batch, key, *structure.extra)


@functools.partial(jax.jit, static_argnums=0)
def _advance_program(structure: Structure, leaves: list[Any], walk: Walk) -> Walk:
    attack, system, batch, key = structure.unpack(leaves)
    return _advance(attack, system, batch, key, walk)


@functools.partial(jax.jit, static_argnums=0)
def _end_program(structure: Structure, leaves: list[Any], walk: Walk) -> Any:
    _, system, batch, key = structure.unpack(leaves)
    return _end(system, batch, key, walk)


# The pieces


def _begin(attack: Attack, system: Any, batch: Any, key: Any, best: bool) -> Walk:
    places = index(batch)
    transform = transformation(attack)

    def point(number: int, x: jax.Array) -> jax.Array:
        if key is None:
            start = jax.vmap(lambda x: start_point(attack.start, attack.region, x, None))(x)
        else:
            keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, number)))(places)
            start = jax.vmap(lambda x, key: start_point(attack.start, attack.region, x, key))(x, keys)
        return project(attack.region, start, x)

    flat, structure = jax.tree.flatten(inputs(batch))
    x = structure.unflatten([point(number, leaf) for number, leaf in enumerate(flat)])
    memory = [jax.vmap(transform.init)(leaf) for leaf in flat]
    value = jnp.full(places.shape, -jnp.inf, jnp.result_type(float)) if best else None
    return Walk(x, memory, x if best else None, value)


def _advance(attack: Attack, system: Any, batch: Any, key: Any, walk: Walk) -> Walk:
    slopes, value = _slopes(system, batch, key, walk.x)
    walk = _keep_best(walk, value)
    transform = optax.with_extra_args_support(transformation(attack))

    def move(slope: jax.Array, memory: Any, x: jax.Array, origin: jax.Array) -> tuple[jax.Array, Any]:
        update = lambda slope, memory, x, value: transform.update(slope, memory, x, value=value)
        step, after = jax.vmap(update)(slope, memory, x, -value)  # by each example, so that norms do not couple them
        after = jax.tree.map(lambda new, old: _typed(new, old.dtype), after, memory)
        return project(attack.region, x + _typed(step, x.dtype), origin), after

    flat, structure = jax.tree.flatten(walk.x)
    origins = jax.tree.leaves(inputs(batch))
    moved = [move(*each) for each in zip(jax.tree.leaves(slopes), walk.memory, flat, origins, strict=True)]
    x = structure.unflatten([x for x, _ in moved])
    return remake(walk, {"x": x, "memory": [memory for _, memory in moved]})


def _end(system: Any, batch: Any, key: Any, walk: Walk) -> Any:
    if walk.best is None:
        return walk.x
    _, value = example_losses(_seen(system, key), with_inputs(batch, walk.x))
    return _keep_best(walk, value).best


def _slopes(system: Any, batch: Any, key: Any, x: Any) -> tuple[Any, jax.Array]:
    """The gradient of −loss at the inputs alone, and each example's loss. What is not finite counts as no slope."""

    def descended(x: Any) -> tuple[jax.Array, jax.Array]:
        total, each = example_losses(_seen(system, key), with_inputs(batch, x))
        return -total, each

    slopes, value = jax.grad(descended, has_aux=True)(x)
    return jax.tree.map(lambda v: jnp.where(jnp.isfinite(v), v, 0), slopes), value


def _seen(system: Any, key: Any) -> Any:
    """The system in `Eval` mode, unless it is bound to another."""
    if getattr(system, "mode", None) is not None:
        return system
    return bind(system, Eval(None if key is None else fold_name(key, "system")))


def _keep_best(walk: Walk, value: jax.Array) -> Walk:
    if walk.best is None:
        return walk
    better = value > walk.value
    keep = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return remake(walk, {"best": jax.tree.map(keep, walk.x, walk.best), "value": jnp.where(better, value, walk.value)})


def _typed(value: Any, dtype: Any) -> Any:
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else value.astype(dtype)  # random keys stay as they are
