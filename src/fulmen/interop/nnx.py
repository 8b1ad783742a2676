"""Flax NNX modules: `train()` or `eval()` by the mode, random streams from its key, statistics as buffers.

`nnx.Param`s are trained. All other variables, such as `nnx.BatchStat`, are state: a training step keeps the values that its
call leaves in them. The keys of `nnx.Rngs` are folded from the mode's key, so their `count`s do not change.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.dispatching.lazy_libraries import missing

try:
    from flax import nnx
except ImportError:
    raise missing("flax", "Flax modules", "flax") from None

from fulmen.core import BUFFER, OTHER, PARAMETER, Mode, Train, fold_name
from fulmen.interop.foreign import KEYS, Library, flags, key_for, parameters_of, register


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_stream(node: Any) -> bool:
    return isinstance(node, nnx.RngStream)


def _role(node: Any) -> str:
    if isinstance(node, nnx.Param):
        return PARAMETER
    return BUFFER if _is_variable(node) and not isinstance(node, nnx.RngState) else OTHER


def _in_mode(module: Any, mode: Mode) -> Any:
    module = jax.tree.map(lambda v: v, module)  # a copy, since NNX changes modules in place
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
    call = type(module).__call__
    options: dict[str, Any] = dict(flags(call, mode))
    for name, parameter in parameters_of(call).items():
        key = key_for(parameter, mode) if name in (*KEYS, "rngs") else None
        if key is not None:
            options[name] = nnx.Rngs(key) if name == "rngs" else key
    return module(*inputs, **options), module


register(Library(nnx.Module, _is_variable, _role, _in_mode, _call))
