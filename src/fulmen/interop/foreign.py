"""Modules of other libraries as models: the base, and which arguments a function gets in a mode."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import OTHER, PARAMETER, STATIC, Mode, Prediction, Train, is_array, outputs_for, remake, static
from fulmen.core.component import Buffer, Component, Model, record
from fulmen.core.immutable import Immutable
from fulmen.core.precision import as_type, in_precision, lowered
from fulmen.dispatching.lazy_libraries import library_of, teach
from fulmen.dispatching.registry import dispatch

_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""The names of parameters for the mode, with their values in training."""

KEYS = ("key", "rng", "rng_key", "dropout_rng")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def flags(function: Callable[..., Any], mode: Mode) -> dict[str, bool]:
    """The values of a function's parameters for the mode."""
    training = isinstance(mode, Train)
    return {name: _FLAGS[name] == training for name in parameters_of(function) if name in _FLAGS}


def key_for(parameter: inspect.Parameter, mode: Mode) -> Any:
    """The mode's key for a parameter; a fixed key if the mode has none and the parameter has no default."""
    if mode.root is None and parameter.default is parameter.empty:
        return jax.random.key(0)
    return mode.key


# pyright: reportInvalidTypeForm=false
# The methods in `register` are annotated with a variable class.


class Library(Immutable):
    """The description of another library, whose modules are pytrees.

    Attributes:
        base: the base class of its modules.
        is_node: whether a node of a module's tree has one role for all its leaves.
        role: from such a node, or any other leaf, to the role of its arrays.
        in_mode: from a module and a mode to a copy of the module in that mode, with the same arrays.
        call: from a module in its mode, inputs with a batch axis, and the mode, to the outputs and the module after the call.
        init: from a module and a key to the module that a state keeps.
    """

    base: type
    is_node: Callable[[Any], bool]
    role: Callable[[Any], str]
    in_mode: Callable[[Any, Mode], Any]
    call: Callable[[Any, tuple[Any, ...], Mode], tuple[Any, Any]]
    init: Callable[[Any, Any], Any] = lambda module, key: module

    def roles(self, module: Any) -> list[str]:
        """The role of every leaf of a module, in the order of `jax.tree.leaves`."""
        roles: list[str] = []
        for node in jax.tree.leaves(module, is_leaf=self.is_node):
            role = self.role(node)
            roles += [_role(leaf, role) for leaf in jax.tree.leaves(node)]
        return roles


def _role(leaf: Any, role: str) -> str:
    if not is_array(leaf):
        return STATIC
    return role if role != PARAMETER or jnp.issubdtype(leaf.dtype, jnp.inexact) else OTHER


class Foreign(Model):
    """Another library's module in a tree that is bound to a mode.

    `forward(module, x)` calls the module in the mode with a whole batch; `module(x)` calls it as its library does. Attributes
    are the module's. Leaves that are not arrays are static.
    """

    __stands_for__: ClassVar[type]

    values: list[jax.Array]  # the arrays among its leaves; state is in buffers
    structure: Any = static()

    @property
    def plain(self) -> Any:
        """The module of the unbound tree."""
        structure, fixed = self.structure
        leaves = [value.value if isinstance(value, Buffer) else value for value in self.values]
        for place, value in fixed:
            leaves.insert(place, value)
        return structure.unflatten(leaves)

    @property
    def module(self) -> Any:
        """A copy of the module in the mode; changes to it are lost."""
        return library_of(self.__stands_for__).in_mode(self.plain, self.mode)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "values" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.module, name)


@dispatch
def channels_first(module: Foreign):
    return channels_first(module.plain)


@functools.cache
def _foreign_class(kind: type) -> type[Foreign]:
    class Bound(Foreign):
        __stands_for__ = kind

    Bound.__name__ = kind.__name__
    return Bound


def _bound(module: Any, mode: Mode) -> Foreign:
    if isinstance(module, Foreign):
        return remake(module, {"mode": mode.over(module.mode)})
    leaves, structure = jax.tree.flatten(module, is_leaf=lambda v: isinstance(v, Buffer))
    kept = [isinstance(v, Buffer) or is_array(v) for v in leaves]
    fixed = tuple((i, v) for i, v in enumerate(leaves) if not kept[i])
    values = [v for v, is_kept in zip(leaves, kept, strict=True) if is_kept]
    return _foreign_class(type(module))(values, (structure, fixed), mode=mode.over(None))


def _call(library: Library, module: Any, inputs: tuple[Any, ...], mode: Mode) -> Any:
    bound = module if isinstance(module, Foreign) else _bound(module, mode)
    if mode.precision is not None:
        return in_precision(lambda bound, *inputs: _call(library, bound, inputs, bound.mode), bound, *inputs)
    plain = library.in_mode(bound.plain, mode)
    if not callable(plain):
        kind = type(plain).__name__
        raise TypeError(f"{kind} has no __call__: write forward(module: {kind}, x), with @dispatch above it.")
    outputs, after = library.call(plain, inputs, mode)
    if not any(isinstance(value, Buffer) for value in bound.values):
        return outputs
    new = dict(jax.tree_util.tree_flatten_with_path(after)[0])
    paths = [path for path, leaf in jax.tree_util.tree_flatten_with_path(bound.plain)[0] if is_array(leaf)]
    for path, value in zip(paths, bound.values, strict=True):
        if isinstance(value, Buffer) and new.get(path, value.value) is not value.value:
            outputs = record(outputs, value, new[path])
    return outputs


def _lowered(module: Foreign, dtype: Any) -> Foreign:
    leaves = jax.tree.leaves(module.plain)
    roles = [role for leaf, role in zip(leaves, library_of(module.__stands_for__).roles(module.plain)) if is_array(leaf)]
    values = [as_type(v, dtype) if role == PARAMETER else v for v, role in zip(module.values, roles, strict=True)]
    return remake(module, {"values": values})


def register(library: Library) -> None:
    """Register the methods for a library's modules."""
    base = library.base
    teach(base, library)

    @dispatch
    def bind(module: base, mode):
        return _bound(module, mode)

    @lowered.dispatch
    def lowered_module(module: base, dtype):
        return _lowered(module, dtype)

    @dispatch
    def init(module: base, key):
        return library.init(module, key)

    @dispatch
    def forward(module: base, *inputs, mode):
        return _call(library, module, inputs, mode)

    @dispatch
    def predictions(module: base, batch):
        return {"": Prediction(module, outputs_for(module, batch), batch)}

    @dispatch
    def evaluate(module: base, data, **options):
        return evaluate.invoke(Component, object)(module, data, **options)

    @dispatch
    def predict(module: base, data, **options):
        return predict.invoke(Component, object)(module, data, **options)
