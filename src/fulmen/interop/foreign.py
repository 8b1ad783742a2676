"""Modules of other libraries: what has to be known of a library, and what stands for its modules in a bound tree.

A module stays what it is in a tree that the user makes and in a state. In a bound tree a `Foreign` stands for it, which has
the mode; verbs choose methods for it by the module's own class. State that a call changes, such as running statistics, is
recorded like that of a `Buffer`, and so moves in training steps only.
"""
# pyright: reportInvalidTypeForm=false
# The methods in `register` are for a class that is a variable.

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from fulmen.core.component import Buffer, Component, Model, record
from fulmen.core.fields import static
from fulmen.core.leaves import is_array
from fulmen.core.mode import Mode
from fulmen.core.prediction import Prediction, outputs_for
from fulmen.core.tree import remake
from fulmen.dispatching.lazy_libraries import library_of, teach
from fulmen.dispatching.registry import dispatch

__all__ = ["Foreign", "Library", "register"]


def _as_it_is(module: Any, key: Any) -> Any:
    return module


@dataclasses.dataclass(frozen=True)
class Library:
    """What the verbs have to know of another library's modules, which are pytrees.

    Attributes:
        base: the base class of its modules.
        roles: from a module to the role of every leaf, in the order of `jax.tree.leaves`.
        in_mode: from a module and a mode to the module in that mode, with the same arrays: a copy.
        call: from a module in its mode, inputs that have a batch axis, and the mode, to the outputs and the module as the
            call left it.
        init: from a module and a key to the module as a state keeps it.
    """

    base: type
    roles: Callable[[Any], list[str]]
    in_mode: Callable[[Any, Mode], Any]
    call: Callable[[Any, tuple[Any, ...], Mode], tuple[Any, Any]]
    init: Callable[[Any, Any], Any] = _as_it_is


class Foreign(Model):
    """What stands for another library's module in a tree that is bound to a mode.

    `forward(module, x)` is Fulmen's call, of a whole batch, in the mode; `module(x)` is the library's own, of the module in
    the mode, and its attributes are the module's. What in it is no array is static.
    """

    __stands_for__: ClassVar[type]

    values: list[jax.Array]  # the arrays among its leaves; those that a step may move are in buffers
    structure: Any = static()

    @property
    def plain(self) -> Any:
        """The module as it is in an unbound tree."""
        structure, fixed = self.structure
        leaves = [value.value if isinstance(value, Buffer) else value for value in self.values]
        for place, value in fixed:
            leaves.insert(place, value)
        return structure.unflatten(leaves)

    @property
    def module(self) -> Any:
        """The module in the mode: a copy, so that what changes in it is lost."""
        return library_of(self.__stands_for__).in_mode(self.plain, self.mode)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "values" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.module, name)


_standing: dict[type, type[Foreign]] = {}


def _standing_for(kind: type) -> type[Foreign]:
    if kind not in _standing:

        class Standing(Foreign):
            __stands_for__ = kind

        Standing.__name__ = kind.__name__
        _standing[kind] = Standing
    return _standing[kind]


def _bound(module: Any, mode: Mode) -> Foreign:
    if isinstance(module, Foreign):
        return remake(module, {"mode": mode.over(module.mode)})
    leaves, structure = jax.tree.flatten(module, is_leaf=lambda v: isinstance(v, Buffer))
    kept = [isinstance(v, Buffer) or is_array(v) for v in leaves]
    fixed = tuple((i, v) for i, v in enumerate(leaves) if not kept[i])
    values = [v for v, is_kept in zip(leaves, kept, strict=True) if is_kept]
    return _standing_for(type(module))(values, (structure, fixed), mode=mode.over(None))


def _call(library: Library, module: Any, inputs: tuple[Any, ...], mode: Mode) -> Any:
    bound = module if isinstance(module, Foreign) else _bound(module, mode)
    outputs, after = library.call(library.in_mode(bound.plain, mode), inputs, mode)
    if not any(isinstance(value, Buffer) for value in bound.values):
        return outputs
    new = dict(jax.tree_util.tree_flatten_with_path(after)[0])
    paths = [path for path, leaf in jax.tree_util.tree_flatten_with_path(bound.plain)[0] if is_array(leaf)]
    for path, value in zip(paths, bound.values, strict=True):
        if isinstance(value, Buffer) and new.get(path, value.value) is not value.value:
            outputs = record(outputs, value, new[path])
    return outputs


def register(library: Library) -> None:
    """Teach the verbs the modules of a library."""
    base = library.base
    teach(base, library)

    @dispatch
    def bind(module: base, mode):
        return _bound(module, mode)

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
        return _of_component(evaluate, module, data, options)

    @dispatch
    def predict(module: base, data, **options):
        return _of_component(predict, module, data, options)


def _of_component(verb: Any, module: Any, data: Any, options: dict[str, Any]) -> Any:
    return verb.invoke(Component, object)(module, data, **options)
