"""`Tree`: a frozen dataclass that is a pytree, whose fields' kinds follow from their annotations."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, dataclass_transform

import jax
import numpy as np

from fulmen.dispatch import supersede

__all__ = ["Tree", "hyper", "kinds", "replace", "static"]

STATIC, HYPER, CHILD, UNCLEAR = "static", "hyperparameter", "child", "unclear"
_STATIC_TYPES = (int, bool, str, bytes, type(None), type, types.FunctionType, np.dtype, enum.Enum)

_defined: dict[tuple[str, str], type] = {}


def static(**options: Any) -> Any:
    """A field that is part of the type: never an array, compared when jit looks for a compiled program.

    Args:
        **options: those of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"fulmen": STATIC}, **options)


def hyper(**options: Any) -> Any:
    """A field that is data but never trained: it may change without recompiling.

    Args:
        **options: those of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"fulmen": HYPER}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, hyper, dataclasses.field))
class Tree:
    """The root of all that is data in Fulmen. A subclass is made a frozen dataclass and a pytree by being defined.

    Unflattening does not run `__init__` or `__post_init__`: jax does it with whatever stands for the leaves.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        _names_around(cls)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, _unflatten(cls), _flatten)
        name = (cls.__module__, cls.__qualname__)
        if "<locals>" not in cls.__qualname__:  # two functions may each have a class of one name
            old, _defined[name] = _defined.get(name), cls
            if old is not None:
                supersede(old, cls)

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.repr]
        return f"{type(self).__name__}({', '.join(f'{f.name}={short(getattr(self, f.name))}' for f in fields)})"


_around: dict[type, dict[str, Any]] = {}


def _names_around(cls: type) -> None:
    """Resolve annotations that are strings while the names around the class can still be seen."""
    annotations = cls.__dict__.get("__annotations__", {})
    if any(isinstance(a, str) for a in annotations.values()) and "<locals>" in cls.__qualname__:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__") != cls.__module__:
            frame = frame.f_back
        wanted = {word for a in annotations.values() if isinstance(a, str) for word in _words(a)}
        _around[cls] = {name: value for name, value in frame.f_locals.items() if name in wanted}


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


_kinds: dict[type, dict[str, str]] = {}
_data: dict[type, tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]] = {}


def kinds(cls: type) -> dict[str, str]:
    """What each field of a `Tree` is: `static`, `hyperparameter`, `child`, or `unclear`."""
    if cls not in _kinds:
        hints: dict[str, Any] = {}
        complete = True
        for base in reversed(cls.__mro__):
            for name, annotation in base.__dict__.get("__annotations__", {}).items():
                if isinstance(annotation, str):
                    try:
                        names = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
                        annotation = eval(annotation, dict(names), {base.__name__: base, **_around.get(base, {})})
                    except Exception:
                        complete, annotation = False, Any
                hints[name] = annotation
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        found = {f.name: f.metadata.get("fulmen") or _kind(hints.get(f.name, Any)) for f in fields}
        if not complete:
            return found  # a name that is defined later will be found later
        _kinds[cls] = found
    return _kinds[cls]


def _kind(hint: Any) -> str:
    """What an annotation makes of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, tuple, list, dict, typing.Annotated) or origin in _MAPPINGS:
        if origin is typing.Annotated:
            arguments = arguments[:1]
        if origin is dict or origin in _MAPPINGS:
            arguments = arguments[1:]
        inner = {_kind(a) for a in arguments if a is not Ellipsis and a is not type(None)}
        if inner == {STATIC} and origin in (list, dict):
            return UNCLEAR  # a list cannot be part of a type: a tuple can
        if HYPER in inner and inner <= {STATIC, HYPER}:
            return HYPER
        return inner.pop() if len(inner) == 1 else UNCLEAR
    if hint is None or origin in (typing.Literal, type) or origin is collections.abc.Callable or hint is Callable:
        return STATIC
    if hint is typing.Callable:
        return STATIC
    if hint is float or hint is complex:
        return HYPER
    if hint in (list, tuple, dict):
        return CHILD
    if isinstance(hint, typing.TypeVar):
        return _kind(hint.__bound__) if hint.__bound__ is not None else UNCLEAR
    if isinstance(origin, type):
        hint = origin
    if isinstance(hint, type):
        if issubclass(hint, (*_STATIC_TYPES, collections.abc.Hashable)) and issubclass(hint, _STATIC_TYPES):
            return STATIC
        if issubclass(hint, (Tree, jax.Array, np.ndarray)) or is_node(hint):
            return CHILD
        if issubclass(hint, float):
            return HYPER
    return CHILD if hint is jax.typing.ArrayLike else UNCLEAR


_MAPPINGS = (collections.abc.Mapping, collections.abc.Sequence)


def is_node(cls: type) -> bool:
    """Whether jax knows instances of this class as pytrees (and not as leaves)."""
    if cls is object or cls in (list, tuple, dict):
        return cls is not object
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return True
    try:
        return not jax.tree_util.all_leaves([object.__new__(cls)])
    except Exception as error:  # its flatten ran, and failed on an empty instance; an unknown class is a leaf
        return not isinstance(error, TypeError)


def _layout(cls: type) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]:
    if cls not in _data:
        found = kinds(cls)
        data = tuple(name for name, kind in found.items() if kind != STATIC)
        layout = data, tuple(n for n, k in found.items() if k == STATIC), tuple(jax.tree_util.GetAttrKey(n) for n in data)
        if cls not in _kinds:
            return layout
        _data[cls] = layout
    return _data[cls]


def _flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
    data, fixed, _ = _layout(type(tree))
    values = tree.__dict__
    return [values[name] for name in data], tuple([values[name] for name in fixed])


def _flatten_with_keys(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
    children, aux = _flatten(tree)
    return list(zip(_layout(type(tree))[2], children, strict=True)), aux


def _unflatten(cls: type) -> Callable[[Any, Any], Any]:
    def unflatten(aux: Any, children: Any) -> Any:
        data, fixed, _ = _layout(cls)
        tree = object.__new__(cls)
        tree.__dict__.update(zip(data, children, strict=True))
        tree.__dict__.update(zip(fixed, aux, strict=True))
        return tree

    return unflatten


def remake(tree: Any, changes: Mapping[str, Any]) -> Any:
    """The same tree with some fields changed; as in unflattening, `__init__` does not run."""
    fresh = object.__new__(type(tree))
    fresh.__dict__.update(tree.__dict__)
    fresh.__dict__.update(changes)
    return fresh


def get(tree: Any, path: str) -> Any:
    """What lies at a path such as `"model.layers.0.weight"`.

    Raises:
        KeyError: if nothing does, with the names that are there.
    """
    for i, name in enumerate(path.split(".") if path else []):
        inside = dict(children(tree))
        if name not in inside:
            above = ".".join(path.split(".")[:i]) or type(tree).__name__
            raise KeyError(f"no {name!r} in {above}, which has: {', '.join(inside) or 'no fields'} (in {path!r})")
        tree = inside[name]
    return tree


def replace(tree: Any, changes: Mapping[str, Any] | None = None, /, **fields: Any) -> Any:
    """The same tree with the values at some paths changed.

    Args:
        tree: a component, a state, or a list, tuple or dict of them.
        changes: from paths (`"model.layers.0.weight"`) to new values.
        **fields: the same for fields of the tree itself.

    Raises:
        KeyError: if there is nothing at a path, with the names that are there.

    >>> import fulmen as fm
    >>> fm.replace(fm.CrossEntropy(smoothing=0.1), smoothing=0.2).smoothing
    0.2
    """
    for path, value in {**(changes or {}), **fields}.items():
        get(tree, path)
        tree = _replace_at(tree, path.split("."), value)
    return tree


def _replace_at(tree: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    name, rest = path[0], path[1:]
    inner = _replace_at(dict(children(tree))[name], rest, value)
    if hasattr(tree, "__replace_field__"):
        return tree.__replace_field__(name, inner)
    if isinstance(tree, Tree):
        return remake(tree, {name: inner})
    if isinstance(tree, dict):
        return {**tree, name: inner}
    items = [inner if str(i) == name else item for i, item in enumerate(tree)]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def children(tree: Any) -> Iterator[tuple[str, Any]]:
    """The names and values directly inside: fields of a `Tree` (static ones too), items of a list, tuple or dict."""
    if hasattr(tree, "__replace_field__"):
        yield from tree.__fields__()
    elif isinstance(tree, Tree):
        yield from ((f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.repr or f.name != "mode")
    elif isinstance(tree, dict):
        yield from ((str(key), tree[key]) for key in sorted(tree))  # as jax orders them
    elif isinstance(tree, list | tuple):
        yield from ((str(i), item) for i, item in enumerate(tree))


def short(value: Any) -> str:
    """A value in a few characters: arrays by type and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).replace('float', 'f').replace('uint', 'u').replace('int', 'i')}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {short(v)}' for k, v in value.items())}}}"
    return repr(value)
