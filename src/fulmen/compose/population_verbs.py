"""The verbs' methods for a `Population`: each member is set up, trained and evaluated independently of the others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.example_means import as_metric, total_loss
from fulmen.compose.loss_entries import entry_part, joined, part_entry, reduced_entries
from fulmen.compose.per_member import PerMember, cut, per_member, pooled
from fulmen.compose.population import Population, require_one_per_member
from fulmen.compose.supervised import check_inputs
from fulmen.compose.vectorized import Members, around, check_setup, inside, members_of, over_members, over_states, seeded
from fulmen.core import Batch, Mode, State, concrete, fold_name, keeps_rows, remake, standard_step, sums_losses, unwrapped
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.mergeable import Mean, Mergeable, Spread
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.verbs import (
    after_update,
    as_batch,
    augment,
    bind,
    forward,
    loss,
    losses,
    metrics,
    predictions,
    reduce_losses,
    sample,
    update,
    validate,
)
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
    if isinstance(augment(unwrapped(component), batch, mode.at("augment")), PerMember):
        name = type(component).__name__
        raise ValueError(
            f"{name} around a population attacks one batch for all members, but each member augments the batch differently. "
            f"Put it inside: fm.Population({name}(system, …), n)."
        )
    return update.invoke(object, State, Batch, Mode)(component, state, batch, mode)


def _own_step(one: State, batch: Any, mode: Mode) -> tuple[State, dict[str, Any]]:
    one, logs = update(one.system, one, batch, mode)
    return one, {name: v if isinstance(v, Mergeable) else Mean(v) for name, v in logs.items()}


# Models and systems


def _views(function: Callable[..., Any], population: Population, *inputs: Any, axis: int = 0) -> Any:
    """`function(member, *inputs)` of every member in the population's mode."""
    mode = population.mode
    if mode is None:
        return over_members(population, population, function, *inputs, axis=axis)
    bound = lambda member, mode, *inputs: function(bind(member, mode), *inputs)
    return over_members(population, population, bound, mode, *inputs, axis=axis)


@dispatch
def bind(population: Population, mode):
    # The members are bound where they run: a mode inside them would need an axis for the members like their arrays.
    return remake(population, {"mode": mode.over(population.mode)})


@dispatch
@keeps_rows
def as_batch(population: Population, raw):
    return raw if isinstance(raw, Batch) else as_batch(take(population.members, 0), raw)


@dispatch
def validate(population: Population, batch):
    validate(*_first_member(population, batch))


@dispatch
def check_inputs(population: Population, batch):
    check_inputs(*_first_member(population, batch))


def _first_member(population: Population, batch: Any) -> tuple[Any, Any]:
    # Members differ only in numbers, so data that is valid for one is valid for all.
    member = take(population.members, 0)
    return member, as_batch(member, pooled(batch, population.n))


@dispatch
def augment(population: Population, batch, mode):
    unchanged: list[bool] = []

    def augmented(member: Any, batch: Any, mode: Mode) -> Any:
        after = augment(member, batch, mode)
        unchanged.append(after is batch)
        return after

    after = over_members(population, population, augmented, batch, mode, axis=1)
    return batch if all(unchanged) else per_member(after)


@dispatch
def after_update(population: Population, batch, mode):
    leaves, axes, build = cut(batch)

    def updated(member: Any, number: Any, leaves: Any) -> tuple[Any, None]:
        own = remake(mode, {"root": jax.random.fold_in(mode.root, number)})
        return after_update(member, build(member, leaves), own), None

    members, _ = each(updated, population.members, jnp.arange(population.n), leaves, axes=(0, axes))
    return remake(population, {"members": members})


@dispatch
def forward(population: Population, *inputs):
    """`(n, members, …)`: examples first, as in all outputs."""
    return _views(forward, population, *inputs, axis=1)


@dispatch
def sample(population: Population, key, shape):
    return _views(lambda member: sample(member, key, shape), population)


@dispatch
@sums_losses
def loss(population: Population, batch):
    return _views(total_loss, population, batch).mean()


@dispatch
def losses(population: Population, batch):
    return _numbered(population, _views(part_entry, population, batch))


@dispatch
def entry_part(population: Population, name, batch):
    if name not in map(str, range(population.n)):
        return None, batch
    i, (leaves, axes, build) = int(name), cut(batch)
    member = take(population.members, i)
    return member, build(member, [v if axis is None else v[:, i] for v, axis in zip(leaves, axes, strict=True)])


@dispatch
def reduce_losses(population: Population, losses, batch):
    return jnp.stack(reduced_entries(population, losses, batch, "of Population")).mean()


@dispatch
def metrics(population: Population, batch):
    def mergeable(member: Any, batch: Any) -> dict[str, Any]:
        return {name: as_metric(name, value, batch) for name, value in metrics(member, batch).items()}

    return _views(mergeable, population, batch)


@dispatch
def predictions(population: Population, batch):
    return joined(_numbered(population, _views(predictions, population, batch)))


def _numbered(population: Population, stacked: Any) -> dict[str, Any]:
    return {str(i): take(stacked, i) for i in range(population.n)}
