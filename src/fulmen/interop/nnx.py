"""Flax NNX modules: train and eval by the mode, random streams by its key, statistics as buffers.

`nnx.Param`s are trained. All other variables, such as `nnx.BatchStat`, are state: what a call in a training step leaves in
them is what they are after the step. The keys of `nnx.Rngs` are made of the mode's key, so `count`s stay as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.dispatching.lazy_libraries import missing

try:
    from flax import nnx
except ImportError:
    raise missing("flax", "Flax modules", "flax") from None

from fulmen.core.component import fold_name
from fulmen.core.fields import STATIC
from fulmen.core.leaves import BUFFER, OTHER, PARAMETER, is_array
from fulmen.core.mode import Mode, Train
from fulmen.interop.foreign import Library, register
from fulmen.interop.signatures import KEYS, flags, key_for, parameters_of

__all__: list[str] = []


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_stream(node: Any) -> bool:
    return isinstance(node, nnx.RngStream)


def _roles(module: Any) -> list[str]:
    roles: list[str] = []
    for node in jax.tree.leaves(module, is_leaf=_is_variable):
        roles += [_role(node, leaf) for leaf in jax.tree.leaves(node)]
    return roles


def _role(node: Any, leaf: Any) -> str:
    if not is_array(leaf):
        return STATIC
    if isinstance(node, nnx.Param):
        return PARAMETER if jnp.issubdtype(leaf.dtype, jnp.inexact) else OTHER
    return BUFFER if _is_variable(node) and not isinstance(node, nnx.RngState) else OTHER


def _in_mode(module: Any, mode: Mode) -> Any:
    module = jax.tree.map(lambda v: v, module)  # what NNX does to a module it does in place
    module.train() if isinstance(mode, Train) else module.eval()
    key = mode.key
    if key is None:
        return module
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    for path, node in jax.tree_util.tree_flatten_with_path(module, is_leaf=_is_stream)[0]:
        if _is_stream(node):
            own, shape = fold_name(key, jax.tree_util.keystr(path, simple=True, separator=".")), node.key.shape
            node.key.set_value(jax.random.split(own, shape) if shape else own)
            node.count.set_value(jnp.zeros(shape, jnp.uint32))
    return module


def _call(module: Any, inputs: tuple[Any, ...], mode: Mode) -> tuple[Any, Any]:
    kind = type(module).__name__
    if not callable(module):
        raise TypeError(f"{kind} has no __call__: write forward(module: {kind}, x), with @dispatch above it.")
    call = type(module).__call__
    options: dict[str, Any] = dict(flags(call, mode))
    for name, parameter in parameters_of(call).items():
        key = key_for(parameter, mode) if name in (*KEYS, "rngs") else None
        if key is not None:
            options[name] = nnx.Rngs(key) if name == "rngs" else key
    return module(*inputs, **options), module


register(Library(nnx.Module, _roles, _in_mode, _call))
