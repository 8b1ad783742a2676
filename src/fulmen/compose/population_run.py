"""How a `Population` is set up, trained and evaluated: each member independently of the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.per_member import PerMember, cut
from fulmen.compose.population import Population, require_one_per_member
from fulmen.compose.vectorized import Members, around, check_setup, inside, members_of, over_members, over_states, seeded
from fulmen.core import Batch, Mode, State, concrete, fold_name, remake
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.marks import standard_step
from fulmen.core.mergeable import Mean, Mergeable, Spread
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.verbs import augment, update
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn


@dispatch
def members_of(population: Population, whole):
    return Members(population.n, lambda i: around(whole, take(population.members, i)))


@dispatch
def members_of(population: Population, state: State):
    tree = _own(population, state)
    return Members(population.n, lambda i: _member_state(state, take(tree, i)))


def _own(population: Population, state: State) -> Any:
    """The parts of a state that have a per-member axis."""
    return population.members, population.seeds, state.optimizer_state, state.optimizer


def _member_state(state: State, own: Any) -> State:
    member, seed, optimizer_state, optimizer = own
    key = fold_name(jax.random.key(seed), "run")
    system = around(state.system, member)
    return State(
        system, optimizer_state, optimizer=optimizer, step=state.step, key=key, plan=state.plan, devices=state.devices
    )


@dispatch
def over_members(population: Population, whole, function, *inputs, axis=0):
    varying, shared, structure = split(population.members)
    leaves, axes, build = cut(inputs)

    def run(varying: Any, number: Any, leaves: Any) -> Any:
        one = around(whole, join(varying, shared, structure))
        return function(one, *_keyed(build(one, leaves), lambda key: jax.random.fold_in(key, number)))

    numbers = jnp.arange(population.n)
    return _spread(jax.vmap(run, in_axes=(0, 0, axes), out_axes=axis)(varying, numbers, leaves))


@dispatch
def over_states(population: Population, state, function, *inputs):
    system, optimizer = state.system, state.optimizer
    leaves, axes, build = cut(inputs)

    def run(own: Any, leaves: Any) -> tuple[Any, Any]:
        one = _member_state(state, own)
        inputs = _keyed(build(one.system, leaves), lambda _: jax.random.fold_in(one.key, one.step))
        new, extra = function(one, *inputs)
        return (inside(system, new.system), own[1], new.optimizer_state, optimizer), extra

    (members, _, optimizer_state, _), extra = each(run, _own(population, state), leaves, axes=(axes,))
    moved = around(system, remake(population, {"members": members}))
    return state.replace(system=moved, optimizer_state=optimizer_state), _spread(extra)


def _keyed(inputs: Any, key: Callable[[Any], Any]) -> list[Any]:
    """The inputs with the member's key in every mode that has one."""
    drawing = lambda v: isinstance(v, Mode) and v.root is not None
    return [remake(v, {"root": key(v.root)}) if drawing(v) else v for v in inputs]


def _spread(found: Any) -> Any:
    """Mergeable values with a leading axis for the members, as `Spread`s."""
    mergeable = lambda v: isinstance(v, Mergeable)
    return jax.tree.map(lambda v: Spread(v) if mergeable(v) else v, found, is_leaf=mergeable)


# Setup


@dispatch
def seeded(population: Population, whole, seed):
    if population.seeds is not None:
        return whole
    return around(whole, remake(population, {"seeds": jnp.arange(population.n) + seed}))


@dispatch
def check_setup(population: Population, state, raw):
    for leaf in leaves(around(state.system, remake(population, {"members": None}))):
        if leaf.role == PARAMETER:
            raise ValueError(
                f"{leaf.path} is a parameter outside the population, which its members would share. Put "
                f"{type(state.system).__name__} inside: fm.Population({type(state.system).__name__}(system, …), n)."
            )
    require_one_per_member("", state.optimizer, population.n)
    differ = isinstance(raw, PerMember) or any(map(is_own, jax.tree.leaves(state.optimizer)))
    if not differ and _are_copies(population):
        warn(
            f"Population: its {population.n} members start with the same arrays, so only their randomness in training (dropout, "
            "augmentations) makes them differ. Give a description without arrays, which is drawn for each member with its own "
            "seed, or, for modules of another library, a list: fm.Population([fm.Classifier(make(seed)) for seed in range(n)])."
        )


def _are_copies(population: Population) -> bool:
    """Whether there are several members with the same numbers and arrays."""
    own = [v for v in jax.tree.leaves(population.members) if is_own(v) and jnp.issubdtype(v.dtype, jnp.number)]
    return population.n > 1 and all(v is not None and (v[1:] == v[:1]).all() for v in map(concrete, own))


# Training


@dispatch
@standard_step
def update(population: Population, state, batch, mode):
    """One step of each member. A wrapper around a population gets one batch for all members, and augments it once."""
    component: Any = population  # or a wrapper around one
    if isinstance(component, Population) or isinstance(batch, PerMember):
        return over_states(component, state, _own_step, batch, mode)
    if isinstance(augment(inside(component, component), batch, mode.at("augment")), PerMember):
        name = type(component).__name__
        raise ValueError(
            f"{name} around a population attacks one batch for all members, but each member augments the batch differently. "
            f"Put it inside: fm.Population({name}(system, …), n)."
        )
    return update.invoke(object, State, Batch, Mode)(component, state, batch, mode)


def _own_step(one: State, batch: Any, mode: Mode) -> tuple[State, dict[str, Any]]:
    one, logs = update(one.system, one, batch, mode)
    return one, {name: v if isinstance(v, Mergeable) else Mean(v) for name, v in logs.items()}
