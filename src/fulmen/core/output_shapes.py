"""`output_shapes`: the shapes of a component's outputs for a batch, traced once."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fulmen.core.leaves import is_array
from fulmen.core.mode import Eval
from fulmen.core.structure import pack
from fulmen.core.verbs import forward
from fulmen.dispatching.compiled_code import generation

_SETTINGS = ("jax_numpy_dtype_promotion", "jax_enable_x64")


def evaluated(component: Any, inputs: Any) -> Any:
    """The outputs in evaluation for an input, or for a tuple of positional inputs of `forward`."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return forward(component, *inputs, Eval(jax.random.key(0)))


def output_shapes(function: Callable[[Any, Any], Any], component: Any, batch: Any, *, rows: int = 1) -> Any:
    """The shapes that `function(component, batch)` returns, traced once for equal structures, shapes and types.

    The function is defined at the top level, since it is part of the cache's key, and gets a batch of `rows` rows; outputs with
    that many rows get those of the batch. The batch may be any tree of arrays with the same leading axis.

    Returns:
        `jax.ShapeDtypeStruct`s.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    example = jax.tree.map(lambda v: jax.ShapeDtypeStruct((min(rows, n), *v.shape[1:]), v.dtype), batch)
    flat, treedef = jax.tree.flatten((component, example))
    types = tuple((v.shape, v.dtype, getattr(v, "weak_type", False)) if is_array(v) else (type(v), v) for v in flat)
    found = _traced(function, treedef, types, generation(), tuple(getattr(jax.config, name) for name in _SETTINGS))
    whole = lambda v: jax.ShapeDtypeStruct((n, *v.shape[1:]), v.dtype) if v.shape[:1] == (rows,) else v
    return jax.tree.map(whole, found)


@functools.lru_cache(maxsize=256)
def _traced(function: Callable[[Any, Any], Any], treedef: Any, types: tuple[Any, ...], *settings: Any) -> Any:
    flat = [jax.ShapeDtypeStruct(t[0], t[1], weak_type=t[2]) if len(t) == 3 else t[1] for t in types]
    component, example = treedef.unflatten(flat)
    leaves, structure = pack(component)
    return jax.eval_shape(lambda leaves, one: function(structure.unpack(leaves), one), leaves, example)
