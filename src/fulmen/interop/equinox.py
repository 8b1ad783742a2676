"""Equinox modules: called under `vmap` over the examples, with keys, state and the inference flag by the mode.

A module is given as its constructor makes it, also one with state such as `eqx.nn.BatchNorm`: its state stays in it, where
`eqx.nn.make_with_state` would take it out. A pair that was made so becomes one module by `with_state(model, state)`, and
`eqx.nn.make_with_state(lambda: module)()` gives the pair again.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.dispatching.lazy_libraries import missing

try:
    import equinox as eqx
except ImportError:
    raise missing("equinox", "Equinox modules", "equinox") from None

from fulmen.core.fields import STATIC
from fulmen.core.leaves import BUFFER, OTHER, PARAMETER, is_array
from fulmen.core.mode import Mode, Train
from fulmen.interop.foreign import Library, register
from fulmen.interop.signatures import key_for, parameters_of

__all__ = ["with_state"]


def with_state(model: Any, state: Any) -> Any:
    """A module with its state in it, from the pair that `eqx.nn.make_with_state` gives.

    Args:
        model: an Equinox module, or a tree of them.
        state: its `eqx.nn.State`.

    >>> import equinox as eqx
    >>> pair = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    >>> norm = with_state(*pair)
    >>> fm.forward(norm, jnp.ones((5, 3))).shape
    (5, 3)
    """

    def put(node: Any) -> Any:
        return eqx.tree_at(lambda index: index.init, node, state.get(node)) if _is_index(node) else node

    return jax.tree.map(put, model, is_leaf=_is_index)


def _is_index(node: Any) -> bool:
    return isinstance(node, eqx.nn.StateIndex)


def _indices(module: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(module, is_leaf=_is_index) if _is_index(node)]


def _roles(module: Any) -> list[str]:
    roles: list[str] = []
    for node in jax.tree.leaves(module, is_leaf=_is_index):
        roles += [_role(leaf, BUFFER if _is_index(node) else PARAMETER) for leaf in jax.tree.leaves(node)]
    return roles


def _role(leaf: Any, role: str) -> str:
    if not is_array(leaf):
        return STATIC
    return role if role == BUFFER or jnp.issubdtype(leaf.dtype, jnp.inexact) else OTHER


def _in_mode(module: Any, mode: Mode) -> Any:
    return eqx.nn.inference_mode(module, not isinstance(mode, Train))


def _call(module: Any, inputs: tuple[Any, ...], mode: Mode) -> tuple[Any, Any]:
    kind = type(module).__name__
    if not callable(module):
        raise TypeError(f"{kind} has no __call__: write forward(module: {kind}, x), with @dispatch above it.")
    call: Any = module
    parameters = parameters_of(type(module).__call__)
    stateful = bool(_indices(module)) and "state" in parameters
    options: dict[str, Any] = {}
    if "key" in parameters:
        key = key_for(parameters["key"], mode)
        if key is not None:
            options["key"] = jax.random.split(key, _examples(inputs, kind))
    name = _axis_name(module)
    if not stateful:
        each = lambda inputs, options: call(*inputs, **options)
        return jax.vmap(each, axis_name=name)(inputs, options), module
    state = _state(module)
    each = lambda inputs, options, state: call(*inputs, state, **options)
    outputs, state = jax.vmap(each, in_axes=(0, 0, None), out_axes=(0, None), axis_name=name)(inputs, options, state)
    return outputs, with_state(module, state)


def _examples(inputs: tuple[Any, ...], kind: str) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    if not shapes or not all(shapes):
        raise ValueError(f"{kind} is called for each example by itself: inputs with a batch axis were expected.")
    return shapes[0][0]


def _state(module: Any) -> Any:
    if any(not jax.tree.leaves(index.init) for index in _indices(module)):
        raise ValueError(
            f"{type(module).__name__} came without its state, which `eqx.nn.make_with_state` took out of it. Give the module as "
            "its constructor makes it, or put the state back: fulmen.interop.equinox.with_state(model, state)."
        )
    return eqx.nn.State(module)


def _axis_name(module: Any) -> Any:
    """The name that the layers which look at the whole batch know its axis by."""
    has_axis = lambda node: isinstance(node, eqx.nn.BatchNorm)
    found = {node.axis_name for node in jax.tree.leaves(module, is_leaf=has_axis) if has_axis(node)}
    names = {name for one in found for name in (one if isinstance(one, tuple | list) else (one,))}
    if len(names) > 1:
        kind = type(module).__name__
        raise ValueError(
            f"{kind} has layers for several batch axes, {', '.join(sorted(map(repr, names)))}, and a batch has one: write "
            f"forward(module: {kind}, x), with @dispatch above it."
        )
    return names.pop() if names else None


def _init(module: Any, key: Any) -> Any:
    """With its state indices named by their paths: those of two modules made alike are equal then, as jit has to find."""
    if not _indices(module):
        return module

    def named(path: Any, node: Any) -> Any:
        if not _is_index(node):
            return node
        fresh = eqx.nn.StateIndex(node.init)
        object.__setattr__(fresh, "marker", jax.tree_util.keystr(path))
        return fresh

    return jax.tree_util.tree_map_with_path(named, module, is_leaf=_is_index)


register(Library(eqx.Module, _roles, _in_mode, _call, _init))
