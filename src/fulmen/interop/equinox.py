"""Equinox modules: called under `vmap` over the examples, with keys, state and the inference flag from the mode.

Give a module as its constructor makes it, also a stateful one such as `eqx.nn.BatchNorm`: its state stays inside. A pair from
`eqx.nn.make_with_state` becomes one module by `with_state(model, state)`, and `eqx.nn.make_with_state(lambda: module)()` gives
the pair again.
"""

from typing import Any

import jax

from fulmen.dispatching.lazy_libraries import missing

try:
    import equinox as eqx
except ImportError:
    raise missing("equinox", "Equinox modules", "equinox") from None

from fulmen.core import BUFFER, PARAMETER, Mode, Train
from fulmen.dispatching.registry import dispatch
from fulmen.interop.foreign import Foreign, Library, key_for, parameters_of, register


def with_state(model: Any, state: Any) -> Any:
    """A module with its state inside, from the pair that `eqx.nn.make_with_state` gives.

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


def _role(node: Any) -> str:
    return BUFFER if _is_index(node) else PARAMETER


def _in_mode(module: Any, mode: Mode) -> Any:
    return eqx.nn.inference_mode(module, not isinstance(mode, Train))


def _call(module: Any, inputs: tuple[Any, ...], mode: Mode) -> tuple[Any, Any]:
    call: Any = module
    parameters = parameters_of(type(module).__call__)
    stateful = bool(_indices(module)) and "state" in parameters
    options: dict[str, Any] = {}
    if "key" in parameters:
        key = key_for(parameters["key"], mode)
        if key is not None:
            options["key"] = jax.random.split(key, _examples(inputs, type(module).__name__))
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
        raise ValueError(f"the inputs of {kind} must have a batch axis, since it is called under vmap over the examples.")
    return shapes[0][0]


def _state(module: Any) -> Any:
    if any(not jax.tree.leaves(index.init) for index in _indices(module)):
        raise ValueError(
            f"{type(module).__name__} must have its state inside, but `eqx.nn.make_with_state` removed it. Give the module as its "
            "constructor makes it, or put the state back: fulmen.interop.equinox.with_state(model, state)."
        )
    return eqx.nn.State(module)


def _axis_name(module: Any) -> Any:
    """The name of the batch axis in layers that reduce over the batch."""
    has_axis = lambda node: isinstance(node, eqx.nn.BatchNorm)
    found = {node.axis_name for node in jax.tree.leaves(module, is_leaf=has_axis) if has_axis(node)}
    names = {name for one in found for name in (one if isinstance(one, tuple | list) else (one,))}
    if len(names) > 1:
        kind = type(module).__name__
        raise ValueError(
            f"the layers of {kind} must use one batch axis, got several batch axes, {', '.join(sorted(map(repr, names)))}: use one "
            f"name, or write forward(module: {kind}, x), with @dispatch above it."
        )
    return names.pop() if names else None


def _init(module: Any, key: Any) -> Any:
    """The module with its state indices named by their paths, so that jit finds equal modules equal."""
    if not _indices(module):
        return module

    def named(path: Any, node: Any) -> Any:
        if not _is_index(node):
            return node
        fresh = eqx.nn.StateIndex(node.init)
        object.__setattr__(fresh, "marker", jax.tree_util.keystr(path))
        return fresh

    return jax.tree_util.tree_map_with_path(named, module, is_leaf=_is_index)


_IMAGE_LAYERS = (eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Pool, eqx.nn.AdaptivePool)


@dispatch
def channels_first(module: eqx.Module):
    is_layer = lambda node: isinstance(node, _IMAGE_LAYERS)
    whole = module.plain if isinstance(module, Foreign) else module
    return any(map(is_layer, jax.tree.leaves(whole, is_leaf=is_layer)))


register(Library(eqx.Module, _is_index, _role, _in_mode, _call, _init))
