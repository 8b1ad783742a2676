"""Models that compute in half precision: the outermost models of a bound tree whose mode has a `precision`."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.component import Component, Model, Parameter, is_part, map_parts
from fulmen.core.fields import HYPER, kinds
from fulmen.core.tree import data_fields, remake
from fulmen.core.verbs import forward
from fulmen.dispatching.registry import dispatch, verb

__all__: list[str] = []  # the verb is private


@verb(delegates=False)
def lowered(component, dtype):
    """The component, bound to a mode, with its parameters in another type. Buffers and hyperparameters keep theirs."""


@dispatch
def lowered(component: Component, dtype):
    component = map_parts(lambda part, path: lowered(part, dtype), component)
    trained = [name for name in data_fields(type(component)) if kinds(type(component))[name] != HYPER and name != "mode"]
    is_leaf = lambda v: is_part(v) or hasattr(v, "slot") or isinstance(v, Parameter)

    def lower(value: Any) -> Any:
        if isinstance(value, Parameter):
            return remake(value, {"value": as_type(value.value, dtype)})
        return value if is_leaf(value) or not isinstance(component, Model) else as_type(value, dtype)

    return remake(component, {n: jax.tree.map(lower, getattr(component, n), is_leaf=is_leaf) for n in trained})


def as_type(value: Any, dtype: Any) -> Any:
    """The value in another type, if it is an array of floating-point numbers."""
    is_float = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.asarray(value).astype(dtype) if is_float else value


def computing_in(dtype: Any, component: Any) -> Any:
    """The component, bound to a mode, whose outermost models compute in a type."""

    def mark(part: Any, path: str) -> Any:
        if not isinstance(part, Model):
            return map_parts(mark, part)
        return remake(part, {"mode": remake(part.mode, {"precision": dtype})})

    return mark(component, "")


def in_precision(call: Any, model: Any, *inputs: Any) -> Any:
    """The outputs of a model that computes in the precision of its mode; those in half precision become float32."""
    dtype = model.mode.precision
    model = lowered(remake(model, {"mode": remake(model.mode, {"precision": None})}), dtype)
    outputs = call(model, *jax.tree.map(lambda v: as_type(v, dtype), inputs))
    raised = lambda v: v.astype(jnp.float32) if getattr(v, "dtype", None) == dtype else v
    return jax.tree.map(raised, outputs)


forward.around(Model, when=lambda mode: mode.precision is not None)(in_precision)
