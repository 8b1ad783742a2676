"""Components, states and arrays on the devices of a policy, on the host and in compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.leaves import described, is_array
from fulmen.core.state import State
from fulmen.core.verbs import init
from fulmen.devices.array_layouts import layouts_of, state_layouts
from fulmen.devices.policies import Policy, require_policy


def copied(arrays: Any) -> Any:
    """A tree of arrays, copied; without a program for each shape if this process has them as a whole."""
    whole = all(v.is_fully_addressable for v in jax.tree.leaves(arrays) if isinstance(v, jax.Array))
    return jax.device_put(arrays, may_alias=False) if whole else jax.tree.map(jnp.copy, arrays)


def placed(state: State) -> State:
    """The state with its arrays on the devices of its policy; arrays that are there already are not copied."""
    *arrays, raw_key = jax.device_put([*state.arrays, state.raw_key], [*state_layouts(state), state.devices.layout()])
    return State.of(arrays, raw_key, state.step, state.structure)


def on_devices(state: State, devices: Policy | None) -> State:
    """The state under a policy; as it is for None, with the policy that it may have."""
    require_policy(devices)
    return state if devices is None else placed(state.replace(devices=devices))


def spread(component: Any, policy: Policy | None) -> Any:
    """An unbound component with its arrays on the devices of a policy; as it is for None."""
    require_policy(policy)
    if policy is None:
        return component
    flat, structure = jax.tree.flatten(component)
    pairs = zip(flat, layouts_of(component, policy), strict=True)
    return structure.unflatten([jax.device_put(v, layout) if is_array(v) else v for v, layout in pairs])


def pinned(before: State, after: State) -> list[Any]:
    """The arrays after a step, those that changed in their layout; for compiled code.

    XLA would choose other layouts, and the next step would be another program.
    """
    if before.devices is None:
        return after.arrays
    pairs = zip(before.arrays, after.arrays, state_layouts(before), strict=True)
    return [new if new is old else pinned_to(new, layout) for old, new, layout in pairs]


def pinned_to(arrays: Any, layouts: Any) -> Any:
    """Arrays in their layouts, as they are for None; for compiled code."""
    return arrays if layouts is None else jax.lax.with_sharding_constraint(arrays, layouts)


def split_rows(raw: Any, policy: Policy | None) -> Any:
    """The batch with its rows over the axis "data"; for compiled code."""
    return raw if policy is None else jax.lax.with_sharding_constraint(raw, policy.of_batch(raw))


def replicated(tree: Any, policy: Policy | None = None) -> Any:
    """The tree with all arrays on every device; for compiled code."""
    return tree if policy is None else jax.lax.with_sharding_constraint(tree, policy.layout())


# Arrays that are computed in their layout, so that no device holds more than its part


def initialized(component: Any, key: Any, policy: Policy | None) -> Any:
    """`init(component, key)`."""
    if policy is None:
        return init(component, key)
    shapes, _ = described(component)
    flat, structure = jax.tree.flatten(component)
    given = {i: v for i, v in enumerate(flat) if is_array(v)}

    def draw(given: dict[int, Any], key: Any) -> dict[int, Any]:
        drawn = init(structure.unflatten([given.get(i, v) for i, v in enumerate(flat)]), key)
        return {i: v for i, v in enumerate(jax.tree.leaves(drawn)) if is_array(v)}

    filled, whole = jax.tree.flatten(shapes)
    wanted = {i: layout for i, layout in enumerate(layouts_of(shapes, policy)) if is_array(filled[i])}
    arrays = jax.jit(draw, out_shardings=wanted)(given, key)
    return whole.unflatten([arrays.get(i, v) for i, v in enumerate(filled)])


def computed(function: Callable[[State], State], state: State) -> State:
    """`function(state)`, for a function that changes arrays alone or adds some."""
    if state.devices is None:
        return function(state)
    shapes = jax.eval_shape(function, state)
    run = lambda state: function(state).arrays
    arrays = jax.jit(run, out_shardings=state_layouts(shapes))(placed(state))
    return placed(State.of(arrays, state.raw_key, state.step, shapes.structure))
