"""What models and systems compute, for a `Population`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.losses import as_figure, entry, reduced, total_loss
from fulmen.compose.per_member import PerMember, cut, per_member
from fulmen.compose.population import Population
from fulmen.compose.supervised import check_inputs
from fulmen.compose.vectorized import over_members
from fulmen.core.batch import Batch
from fulmen.core.marks import keeps_rows, sums_losses
from fulmen.core.mode import Mode
from fulmen.core.stacking import each, take
from fulmen.core.tree import remake, short
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
    validate,
)
from fulmen.dispatching.registry import dispatch

__all__: list[str] = []


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
    # All members have the same limits for data, except for their numbers.
    member = take(population.members, 0)
    validate(member, as_batch(member, pooled(population, batch)))


@dispatch
def check_inputs(population: Population, batch):
    member = take(population.members, 0)
    check_inputs(member, as_batch(member, pooled(population, batch)))


def pooled(population: Population, batch: Any) -> Any:
    """Shared data as it is; of `PerMember` the examples of all members."""
    if not isinstance(batch, PerMember):
        return batch
    shapes = {np.shape(v)[1:2] for v in jax.tree.leaves(batch.data)}
    if shapes != {(population.n,)}:
        raise ValueError(f"PerMember: data for each of the {population.n} members was expected, and {short(batch)} came.")
    return jax.tree.map(lambda v: np.asarray(v).reshape(-1, *np.shape(v)[2:]), batch.data)


@dispatch
def augment(population: Population, batch, mode):
    as_it_is: list[bool] = []

    def augmented(member: Any, batch: Any, mode: Mode) -> Any:
        after = augment(member, batch, mode)
        as_it_is.append(after is batch)
        return after

    after = over_members(population, population, augmented, batch, mode, axis=1)
    return batch if all(as_it_is) else per_member(after)


@dispatch
def after_update(population: Population, batch, mode):
    leaves, axes, build = cut(batch)

    def moved(member: Any, number: Any, leaves: Any) -> tuple[Any, None]:
        own = remake(mode, {"root": jax.random.fold_in(mode.root, number)})
        return after_update(member, build(member, leaves), own), None

    members, _ = each(moved, population.members, jnp.arange(population.n), leaves, axes=(0, axes))
    return remake(population, {"members": members})


@dispatch
def forward(population: Population, *inputs):
    """`(n, members, …)`: examples first, as everywhere."""
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
    return _numbered(population, _views(entry, population, batch))


@dispatch
def reduce_losses(population: Population, losses, batch):
    leaves, axes, build = cut(batch)

    def value(i: int) -> Any:
        member = take(population.members, i)
        own = build(member, [v if axis is None else v[:, i] for v, axis in zip(leaves, axes, strict=True)])
        return reduced(member, losses[str(i)], own, f"the loss of member {i}")

    return jnp.stack([value(i) for i in range(population.n)]).mean()


@dispatch
def metrics(population: Population, batch):
    def figures(member: Any, batch: Any) -> dict[str, Any]:
        return {name: as_figure(name, figure, batch) for name, figure in metrics(member, batch).items()}

    return _views(figures, population, batch)


@dispatch
def predictions(population: Population, batch):
    found = _numbered(population, _views(predictions, population, batch))
    return {f"{i}/{name}" if name else i: p for i, each in found.items() for name, p in each.items()}


def _numbered(population: Population, stacked: Any) -> dict[str, Any]:
    return {str(i): jax.tree.map(lambda v, i=i: v[i], stacked) for i in range(population.n)}
