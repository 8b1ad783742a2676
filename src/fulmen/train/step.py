"""`update`: what one training step does, and what may follow it."""

from __future__ import annotations

from typing import Any

import jax

from fulmen.compose.example_means import total_loss
from fulmen.compose.part_defaults import augmented
from fulmen.compose.vectorized import over_states
from fulmen.core import Component, Frozen, Mode, State, Train, Wrapper, first_field, named_parts, standard_step
from fulmen.core.leaves import leaves
from fulmen.core.verbs import after_update, as_batch, bind, update
from fulmen.dispatching.registry import dispatch
from fulmen.train.gradients import apply_gradients, differentiate


@dispatch
@standard_step
def update(component: object, state, batch, mode):
    require_standard_steps(component, state, batch, mode)
    batch = augmented(component, batch, mode.at("augment"))
    state, logs = over_states(component, state, _gradient_step, batch, mode)
    return end_step(state, batch, mode), logs


def _gradient_step(state: State, batch: Any, mode: Mode) -> tuple[State, dict[str, Any]]:
    value, gradients, recorded, logs = differentiate(state.system, batch, mode)
    return apply_gradients(state.replace(system=recorded), gradients, value=value), logs


@standard_step
def update_as_part(wrapper: Wrapper, state, batch, mode):
    """The step of the wrapper's part, applied to the wrapper: it differentiates the wrapper's loss."""
    part: Any = first_field(wrapper)
    while update.method(part, state, batch, mode).function is update_as_part:
        part = first_field(part)
    return update.method(part, state, batch, mode).function(wrapper, state, batch, mode)


update.dispatch(update_as_part)


def require_standard_steps(component: Any, state: State, batch: Any, mode: Mode) -> None:
    """Raise if a part defines its own training step, which the component's step would ignore."""
    for part in named_parts(component).values() if isinstance(component, Component) else ():
        if isinstance(part, Frozen):
            continue
        if not standard_step.on(update.method(part, state, batch, mode)):
            raise ignored_step(type(part), component)
        require_standard_steps(part, state, batch, mode)


def training_loss(component: Any, raw: Any, mode: Train) -> jax.Array:
    """The loss of a training step, `()`, of an unbound component on raw data."""
    batch = augmented(component, as_batch(component, raw), mode.at("augment"))
    return total_loss(bind(component, mode), batch)


def ignored_step(kind: type, outer: Any) -> ValueError:
    """The error for a component around one that defines its own training step."""
    return ValueError(
        f"{kind.__name__} defines its own training step and must be the outermost component; inside {type(outer).__name__} its "
        "`update` would be ignored."
    )


def end_step(state: State, batch: Any, mode: Train) -> State:
    """The state after `after_update`, which does not change the leaves in `mode.resting`; the batch is already augmented."""
    new = after_update(state.system, batch, mode.at("after_update"))
    if mode.resting and jax.tree.structure(new) == jax.tree.structure(state.system):
        found = zip(leaves(state.system), jax.tree.leaves(new), strict=True)
        new = jax.tree.structure(new).unflatten([old.value if old.path in mode.resting else v for old, v in found])
    return state.replace(system=new)


@dispatch
def after_update(component: object, batch, mode):
    return component
