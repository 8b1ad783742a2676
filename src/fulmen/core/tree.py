"""`Tree`: a frozen dataclass that is a pytree, whose fields' kinds follow from their annotations."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, dataclass_transform

import jax
import numpy as np

from fulmen.core.fields import CHILD, HYPER, STATIC, UNCLEAR, hyper, static
from fulmen.core.pickling import Fields
from fulmen.core.suggestions import unknown_keyword
from fulmen.dispatching.annotations import names_around
from fulmen.dispatching.redefinition import define

__all__ = ["Tree", "get", "kinds", "replace"]

_STATIC_TYPES = (int, bool, str, bytes, type(None), type, types.FunctionType, np.dtype, enum.Enum)
_SEQUENCES = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)

_scopes: dict[type, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
_kinds: dict[type, dict[str, str]] = {}
_layouts: dict[type, tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(static, hyper, dataclasses.field))
class Tree:
    """The root of all that is data in Fulmen. A subclass is made a frozen dataclass and a pytree by being defined.

    Unflattening does not run `__init__` or `__post_init__`: jax does it with whatever stands for the leaves.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        generated = "__init__" not in vars(cls)  # a custom `__init__` would stay in any case; not to make another saves time
        dataclasses.dataclass(frozen=True, eq=False, repr=False, init=generated)(cls)
        cls.__dataclass_fields__ = Fields(cls, cls.__dataclass_fields__, kinds)
        if generated:
            cls.__init__ = _names_fields(cls.__init__, cls)
        _scopes[cls] = _scope(cls)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, _unflatten(cls), _flatten)
        define(cls, _by_statement(cls))

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.repr]
        return f"{type(self).__name__}({', '.join(f'{f.name}={short(getattr(self, f.name, None))}' for f in fields)})"


def _by_statement(cls: type) -> bool:
    """Whether a class statement makes the class, rather than a call of `type`: the body is in the code that runs it."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name in ("__init_subclass__", "__new__"):
        frame = frame.f_back
    return any(isinstance(code, types.CodeType) and code.co_name == cls.__name__ for code in frame.f_code.co_consts)


def _names_fields(init: Callable[..., None], cls: type) -> Any:
    """The `__init__` of a dataclass with an error for unknown keywords that names the right one."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        try:
            init(self, *args, **fields)
        except TypeError:
            names = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "mode"]
            unknown = next((name for name in fields if name not in (*names, "mode")), None)
            if unknown is None:
                raise
            raise TypeError(unknown_keyword(cls, unknown, names)) from None

    return __init__


# What the fields are


def kinds(cls: type) -> dict[str, str]:
    """What each field of a `Tree` is: `static`, `hyperparameter`, `child`, or `unclear`."""
    if cls in _kinds:
        return _kinds[cls]
    pickled = vars(cls)["__dataclass_fields__"].kinds
    if pickled is not None:
        return _kinds.setdefault(cls, pickled)
    found, complete = {}, True
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = field.metadata.get("fulmen")
        if kind is None:
            try:
                kind = _kind(field.type, _owner(cls, field))
            except NameError:  # a name that is defined later will be found later
                kind, complete = UNCLEAR, False
        found[field.name] = kind
    if complete:
        _kinds[cls] = found
    return found


def _owner(cls: type, field: Any) -> type:
    """The class that a field was declared in."""
    return next(b for b in reversed(cls.__mro__) if b.__dict__.get("__dataclass_fields__", {}).get(field.name) is field)


def resolved(hint: Any, cls: type, field: Any) -> Any:
    """An annotation of a class's field, or a part of one, with what its text stands for.

    Raises:
        NameError: if the text has a name that is not defined (yet).
    """
    return _evaluated(hint, _owner(cls, field)) if isinstance(hint, str | typing.ForwardRef) else hint


def _evaluated(hint: Any, owner: type) -> Any:
    names, around = _scopes[owner]
    text = hint if isinstance(hint, str) else hint.__forward_arg__
    return eval(text, dict(names), {owner.__name__: owner, **around})


def _scope(cls: type) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The global names where a class is defined, and the local ones that its annotations mention."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != cls.__module__:
        frame = frame.f_back
    names = frame.f_globals if frame is not None else vars(sys.modules.get(cls.__module__, typing))
    if "<locals>" not in cls.__qualname__:
        return names, {}
    words = {word for f in dataclasses.fields(cls) for word in re.findall(r"\w+", str(f.type))}  # type: ignore[arg-type]
    return names, {name: value for name, value in names_around(names).items() if name in words}


def _kind(hint: Any, owner: type) -> str:
    """What an annotation makes of a field of the class that has it."""
    if isinstance(hint, str | typing.ForwardRef):
        return _kind(_evaluated(hint, owner), owner)
    if hint == jax.typing.ArrayLike:
        return CHILD
    if hint == jax.typing.DTypeLike:
        return STATIC
    if isinstance(hint, typing.TypeVar):
        return _kind(hint.__bound__, owner) if hint.__bound__ is not None else UNCLEAR
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0], owner)
    if origin in (typing.Union, types.UnionType):
        return _merged(_kind(a, owner) for a in arguments if a is not type(None))
    if origin in _SEQUENCES or origin in _MAPPINGS:
        inside = arguments[1:] if origin in _MAPPINGS else arguments
        kind = _merged(_kind(a, owner) for a in inside if a is not Ellipsis)
        # A list cannot be part of a type: a tuple can.
        return UNCLEAR if kind == STATIC and origin is not tuple else kind
    if hint is None or origin is typing.Literal or hint is typing.Callable:
        return STATIC
    kind = origin if isinstance(origin, type) else hint
    if not isinstance(kind, type):
        return UNCLEAR
    if kind is collections.abc.Callable or issubclass(kind, _STATIC_TYPES):
        return STATIC
    if kind in (list, tuple, dict) or issubclass(kind, (Tree, jax.Array, np.ndarray)):
        return CHILD
    if issubclass(kind, float | complex):
        return HYPER
    array = getattr(kind, "array_type", None)  # jaxtyping's `Float[Array, "…"]`
    return _kind(array, owner) if array is not None else CHILD if is_node(kind) else UNCLEAR


def _merged(found: Iterator[str]) -> str:
    """The kind of what may be of several kinds."""
    some = set(found)
    if some == {STATIC, HYPER}:  # `int | float`
        return HYPER
    return some.pop() if len(some) == 1 else UNCLEAR


def is_node(cls: type) -> bool:
    """Whether jax knows instances of this class, or of the subclasses of an abstract one, as pytrees."""
    named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if jax.tree_util.default_registry.is_node(cls) or named_tuple:
        return True
    return inspect.isabstract(cls) and any(map(is_node, type.__subclasses__(cls)))


# As a pytree


def data_fields(cls: type) -> tuple[str, ...]:
    """The names of the fields that are not static, in the order of `jax.tree.leaves`."""
    return _layout(cls)[0]


def _layout(cls: type) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]:
    if cls in _layouts:
        return _layouts[cls]
    found = kinds(cls)
    data = tuple(name for name, kind in found.items() if kind != STATIC)
    layout = data, tuple(n for n, k in found.items() if k == STATIC), tuple(jax.tree_util.GetAttrKey(n) for n in data)
    if cls in _kinds:
        _layouts[cls] = layout
    return layout


def _flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
    data, fixed, _ = _layout(type(tree))
    values = tree.__dict__
    try:
        return [values[name] for name in data], tuple([values[name] for name in fixed])
    except KeyError:  # an `__init__` of its own left a field at its default
        return [_value(tree, name) for name in data], tuple(_value(tree, name) for name in fixed)


def _value(tree: Any, name: str) -> Any:
    try:
        return getattr(tree, name)
    except AttributeError:
        raise AttributeError(f"{type(tree).__name__}.__init__ did not set the field {name!r}.") from None


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


# By path


def children(tree: Any) -> Iterator[tuple[str, Any]]:
    """The names and values directly inside: fields of a `Tree` (static ones too), items of what else is a pytree."""
    if hasattr(tree, "__replace_field__"):
        yield from tree.__fields__()
    elif isinstance(tree, Tree):
        # a component's mode is hidden
        yield from ((f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.repr or f.name != "mode")
    else:
        yield from items(tree)[0]


def items(node: Any) -> tuple[list[tuple[str, Any]], Any]:
    """One level of a pytree as jax orders it: names and values, and the structure; a leaf has nothing inside."""
    found, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda value: value is not node)
    if found and not found[0][0]:
        return [], structure
    return [(jax.tree_util.keystr(path, simple=True), value) for path, value in found], structure


def _enter(inside: Mapping[str, Any], path: str) -> str | None:
    """The name that a path begins with. A dictionary's names may have dots in them."""
    return max((name for name in inside if path == name or path.startswith(f"{name}.")), key=len, default=None)


def get(tree: Any, path: str) -> Any:
    """What lies at a path such as `"model.layers.0.weight"`.

    Raises:
        KeyError: if nothing does, with the names that are there.
    """
    rest, above = path, type(tree).__name__
    while rest:
        inside = dict(children(tree))
        name = _enter(inside, rest)
        if name is None:
            raise KeyError(f"no {rest!r} in {above}, which has: {', '.join(inside) or 'no fields'} (the path is {path!r})")
        tree, rest = inside[name], rest[len(name) + 1 :]
        above = path[: len(path) - len(rest)].rstrip(".")
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
        tree = _replaced(tree, path, value)
    return tree


def _replaced(tree: Any, path: str, value: Any) -> Any:
    if not path:
        return value
    inside = dict(children(tree))
    name: Any = _enter(inside, path)
    inner = _replaced(inside[name], path[len(name) + 1 :], value)
    if hasattr(tree, "__replace_field__"):
        return tree.__replace_field__(name, inner)
    if isinstance(tree, Tree):
        return remake(tree, {name: inner})
    return items(tree)[1].unflatten([inner if key == name else item for key, item in inside.items()])


# In a few characters


def short(value: Any) -> str:
    """A value in a few characters: arrays by type and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).replace('float', 'f').replace('uint', 'u').replace('int', 'i')}{list(value.shape)}"
    if isinstance(value, Tree):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {short(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        inside = ", ".join(map(short, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if value is not None and not jax.tree_util.all_leaves([value]):
        return f"{type(value).__name__}(…)"  # somebody else's, which may print its arrays
    return repr(value)
