"""The verbs of models and systems for a `Population`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.example_means import as_metric, total_loss
from fulmen.compose.loss_entries import entry_part, joined, part_entry, reduced
from fulmen.compose.per_member import cut, per_member, pooled
from fulmen.compose.population import Population
from fulmen.compose.supervised import check_inputs
from fulmen.compose.vectorized import over_members
from fulmen.core import Batch, Mode, each, keeps_rows, remake, sums_losses, take
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
    parts = {name: entry_part(population, name, batch) for name in losses}
    means = [reduced(part, losses[name], own, "of Population", name) for name, (part, own) in parts.items()]
    return jnp.stack(means).mean()


@dispatch
def metrics(population: Population, batch):
    def mergeable(member: Any, batch: Any) -> dict[str, Any]:
        return {name: as_metric(name, value, batch) for name, value in metrics(member, batch).items()}

    return _views(mergeable, population, batch)


@dispatch
def predictions(population: Population, batch):
    return joined(_numbered(population, _views(predictions, population, batch)))


def _numbered(population: Population, stacked: Any) -> dict[str, Any]:
    return {str(i): jax.tree.map(lambda v, i=i: v[i], stacked) for i in range(population.n)}
