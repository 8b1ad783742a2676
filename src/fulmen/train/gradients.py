"""The parts of a step: `differentiate` a loss, `apply_gradients` by the optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.compose.example_means import total_weight
from fulmen.compose.microbatches import microbatches_of, require_one_weight, summed
from fulmen.compose.vectorized import members_of, over_states
from fulmen.core import Buffer, Last, Mode, State, remake, still
from fulmen.core.leaves import BUFFER, PARAMETER, leaves
from fulmen.optimizers import groups
from fulmen.optimizers.update_schedule import NOBODY
from fulmen.train.step_logs import measured


def differentiate(component: Any, batch: Any, mode: Mode) -> tuple[jax.Array, Any, Any, dict[str, Any]]:
    """The loss, its gradient, and the component with its buffers updated.

    Args:
        component: an unbound component that has a loss.
        batch: a `Batch`, already augmented.
        mode: the mode to bind, a `Train`. The paths in `mode.resting` are neither differentiated nor recorded. With
            `mode.microbatches` the batch is computed in parts.

    Returns:
        `(value, gradients, component, logs)`: the loss, `()`; a tree like the component with the gradients of the parameters
        and None elsewhere; the component after `record`; the loss, its entries and the metrics, as mergeable values.

    Raises:
        ValueError: if the loss is neither one number nor one per example.
    """
    flat, structure = jax.tree.flatten(component, is_leaf=lambda v: isinstance(v, Buffer))
    roles, known, resting = [], iter(leaves(component)), getattr(mode, "resting", NOBODY)
    for item in flat:
        mine = [next(known) for _ in jax.tree.leaves(item)]
        roles.append([leaf.role for leaf in mine if leaf.path not in resting])
    trained = {i: v for i, v in enumerate(flat) if roles[i] == [PARAMETER] and not isinstance(v, Buffer)}
    # In another library's module a buffer is a leaf like any other.
    buffers = {i: v if isinstance(v, Buffer) else Buffer(v) for i, v in enumerate(flat) if BUFFER in roles[i]}
    slots = {i: jax.tree.map(_empty_slot, buffer.value) for i, buffer in buffers.items()}

    def objective(trained: Any, slots: Any, batch: Any, mode: Mode) -> tuple[jax.Array, dict[str, Any]]:
        # No gradient flows through the value of a buffer.
        seen = {i: remake(v, {"value": still(v.value), "slot": slots[i]}) for i, v in buffers.items()}
        filled = {**dict(enumerate(flat)), **trained, **seen}
        return measured(structure.unflatten(filled.values()), batch, mode)

    differentiated = jax.value_and_grad(objective, (0, 1), has_aux=True)
    run = lambda batch, mode: differentiated(trained, slots, batch, mode)
    (value, logs), (slopes, recorded) = run(batch, mode) if microbatches_of(batch, mode) == 1 else _merged(run, batch, mode)
    # A buffer keeps its node, so that the gradients have the component's structure.
    gradients = structure.unflatten(
        [slopes[i] if i in slopes else jax.tree.map(lambda _: None, v) for i, v in enumerate(flat)]
    )
    for i, buffer in buffers.items():
        new = jax.tree.map(_mean_or_old, buffer.value, recorded[i])
        flat[i] = remake(buffer, {"value": new}) if isinstance(flat[i], Buffer) else new
    return value, gradients, structure.unflatten(flat), logs


def _merged(run: Any, batch: Any, mode: Mode) -> Any:
    """What `run(batch, mode)` returns for a whole batch, from its microbatches: each counts by the weight of its examples."""
    require_one_weight(batch)

    def weighed(part: Any, mode: Mode) -> Any:
        (value, logs), (slopes, recorded) = run(part, mode)
        weight = total_weight(part)
        # A part with padding only may have any loss.
        times = lambda v: jnp.where(weight == 0, 0, jnp.asarray(weight).astype(v.dtype) * v)
        by_rows = jax.tree.map(lambda v: len(part) * v, recorded)
        return times(value), logs, jax.tree.map(times, slopes), by_rows, jnp.asarray(weight, jnp.float32)

    value, logs, slopes, recorded, weight = summed(weighed, batch, mode)
    divided = lambda v: v / weight.astype(v.dtype)
    return (divided(value), logs), (jax.tree.map(divided, slopes), recorded)


# Buffers: while a loss is differentiated, each has a slot of zeros, and `record` is written so that the gradient with respect to the
# slot is the sum and the count of the recorded values. The buffer's next value is their mean, or the old one if nothing was recorded.


def _empty_slot(value: Any) -> tuple[jax.Array, jax.Array]:
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    # One count per number: in a stack of blocks, only some may record.
    return jnp.zeros(value.shape, dtype), jnp.zeros(value.shape)


def _mean_or_old(old: jax.Array, recorded: Any) -> jax.Array:
    total, count = recorded
    mean = total / jnp.maximum(count, 1).astype(total.dtype)
    return jnp.where(count > 0, mean.astype(old.dtype), old)


# Optimizers


def apply_gradients(state: State, gradients: Any, *, value: Any = None) -> State:
    """The state after each parameter group's transformation updated its parameters and optimizer state.

    Args:
        state: a `State`.
        gradients: as `differentiate` returns them. A group without gradients keeps its parameters and optimizer state.
        value: the loss, `()`, for transformations that use it.

    Raises:
        ValueError: if the state is a population's, which is updated member by member.
    """
    system, updated = state.system, []
    if members_of(system, system):
        raise ValueError(
            f"{type(system).__name__}: a custom training step updates one system, not a population. Put it inside the population: "
            "fm.Population(fm.defences.SAM(system), n)."
        )
    for group, before in zip(groups(system, state.optimizer, state.plan), state.optimizer_state, strict=True):
        slopes, parameters = group.select(gradients, system), group.select(system, system)
        if not jax.tree.leaves(slopes):
            updated.append(before)
            continue
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
            changes, after = group.built.transformation.update(slopes, before, parameters, value=value)
            moved = optax.apply_updates(parameters, changes)
        system = jax.tree.map(lambda old, new: old if new is None else new, system, moved)
        updated.append(after)
    return state.replace(system=system, optimizer_state=tuple(updated))


def start_optimizer(state: State) -> State:
    """The state with the optimizer's initial state."""
    return over_states(state.system, state, _start_optimizer)[0]


def _start_optimizer(state: State) -> tuple[State, None]:
    system = state.system
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        found = groups(system, state.optimizer, state.plan)
        started = tuple(g.built.transformation.init(g.select(system, system)) for g in found)
    return state.replace(optimizer_state=started), None


def learning_rates(before: State, after: State) -> dict[str, Any]:
    """The learning rate of each group in the first update between two states, where it is known."""
    both = before.replace(optimizer_state=(before.optimizer_state, after.optimizer_state))
    return over_states(before.system, both, _learning_rates)[1]


def _learning_rates(state: State) -> tuple[State, dict[str, Any]]:
    found = groups(state.system, state.optimizer, state.plan)
    rates = {}
    for group, before, after in zip(found, *state.optimizer_state, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            rate = group.built.rate(before, after)
        if rate is not None:
            rates[f"lr/{group.path}" if len(found) > 1 and group.path else "lr"] = Last(jnp.asarray(rate, jnp.float32))
    return state, rates
