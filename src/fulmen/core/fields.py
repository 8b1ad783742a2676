"""The fields of a `Tree`: how they are declared, and the kind that each is by its declaration or annotation."""

import collections.abc
import dataclasses
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fulmen.dispatching.annotations import names_around

STATIC, HYPER, CHILD, UNCLEAR = "static", "hyperparameter", "child", "unclear"

_STATIC_TYPES = (int, bool, str, bytes, type(None), type, types.FunctionType, np.dtype, enum.Enum)
_SEQUENCES = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)

known_kinds: dict[type, dict[str, str]] = {}
"""The kinds of the fields of the classes whose annotations could all be evaluated."""

_scopes: dict[type, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}


class Limits(NamedTuple):
    """The values that a field may have: `minimum` and `maximum` are allowed, `above` and `below` are not.

    They also hold where a subclass declares the field again.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    finite: bool = False  # implied by any bound


def static(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
    **options: Any,
) -> Any:
    """A field that is part of the type: never an array, and compared when `jax.jit` looks up a compiled program.

    Args:
        minimum, maximum: the smallest and the largest value; for a tuple, of each item.
        above, below: the same, with the bound itself excluded.
        choices: all values that are allowed.
        **options: those of `dataclasses.field`.

    `validate` checks the limits; when a component is made, its values may be tracers.
    """
    return _field(STATIC, Limits(minimum, maximum, above, below, choices), options)


def hyper(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    finite: bool = False,
    **options: Any,
) -> Any:
    """A field that is data and never trained, nor is anything in it; it may change without recompiling.

    Args:
        minimum, maximum: the smallest and the largest value; for an array, of each element.
        above, below: the same, with the bound itself excluded.
        finite: whether infinity and NaN are refused; a bound always refuses them.
        **options: those of `dataclasses.field`.

    `validate` checks the limits; when a component is made, its values may be tracers.
    """
    return _field(HYPER, Limits(minimum, maximum, above, below, finite=finite), options)


def _field(kind: str, limits: Limits, options: dict[str, Any]) -> Any:
    declared = {"limits": limits} if limits != Limits() else {}
    return dataclasses.field(metadata={"fulmen": kind, **declared, **options.pop("metadata", {})}, **options)


# Kinds


def kinds(cls: type) -> dict[str, str]:
    """The kind of each field of a `Tree`: `static`, `hyperparameter`, `child`, or `unclear`."""
    if cls in known_kinds:
        return known_kinds[cls]
    pickled = vars(cls)["__dataclass_fields__"].kinds
    if pickled is not None:
        return known_kinds.setdefault(cls, pickled)
    found, complete = {}, True
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind = field.metadata.get("fulmen")
        if kind is None:
            try:
                kind = _kind(field.type, owner_of(cls, field))
            except NameError:  # the name may be defined later
                kind, complete = UNCLEAR, False
        found[field.name] = kind
    if complete:
        known_kinds[cls] = found
    return found


def owner_of(cls: type, field: Any) -> type:
    """The class that a field was declared in."""
    return next(b for b in reversed(cls.__mro__) if b.__dict__.get("__dataclass_fields__", {}).get(field.name) is field)


def plain_hint(hint: Any, owner: type) -> Any:
    """An annotation of a field that `owner` declares, or a part of one, without strings, `Annotated` and type variables.

    Raises:
        NameError: for a name that is not defined (yet).
    """
    if isinstance(hint, str | typing.ForwardRef):
        names, around = _scopes[owner]
        text = hint if isinstance(hint, str) else hint.__forward_arg__
        return plain_hint(eval(text, dict(names), {owner.__name__: owner, **around}), owner)
    if typing.get_origin(hint) is typing.Annotated:
        return plain_hint(typing.get_args(hint)[0], owner)
    if isinstance(hint, typing.TypeVar):
        return Any if hint.__bound__ is None else plain_hint(hint.__bound__, owner)
    return hint


def note_scope(cls: type) -> None:
    """Note the global names where a class is being defined, and the local names in its annotations."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != cls.__module__:
        frame = frame.f_back
    names = frame.f_globals if frame is not None else vars(sys.modules.get(cls.__module__, typing))
    if "<locals>" not in cls.__qualname__:
        _scopes[cls] = names, {}
        return
    words = {word for f in dataclasses.fields(cls) for word in re.findall(r"\w+", str(f.type))}  # type: ignore[arg-type]
    _scopes[cls] = names, {name: value for name, value in names_around(names).items() if name in words}


def _kind(hint: Any, owner: type) -> str:
    """The kind of a field by its annotation; `owner` is the class that declares it."""
    hint = plain_hint(hint, owner)
    if hint == jax.typing.ArrayLike:
        return CHILD
    if hint == jax.typing.DTypeLike:
        return STATIC
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _merged(_kind(a, owner) for a in arguments if a is not type(None))
    if origin in _SEQUENCES or origin in _MAPPINGS:
        inside = arguments[1:] if origin in _MAPPINGS else arguments
        kind = _merged(_kind(a, owner) for a in inside if a is not Ellipsis)
        # A list cannot be hashed, as static fields must be.
        return UNCLEAR if kind == STATIC and origin is not tuple else kind
    if hint is None or origin is typing.Literal or hint is typing.Callable:
        return STATIC
    kind = origin if isinstance(origin, type) else hint
    if not isinstance(kind, type):
        return UNCLEAR
    if kind is collections.abc.Callable or issubclass(kind, _STATIC_TYPES):
        return STATIC
    if kind in (list, tuple, dict) or issubclass(kind, (jax.Array, np.ndarray)):
        return CHILD
    if issubclass(kind, float | complex):
        return HYPER
    array = getattr(kind, "array_type", None)  # jaxtyping's `Float[Array, "…"]`
    return _kind(array, owner) if array is not None else CHILD if is_node(kind) else UNCLEAR


def _merged(found: Iterable[str]) -> str:
    """The kind of a field whose values may be of several kinds."""
    some = set(found)
    if some == {STATIC, HYPER}:  # `int | float`
        return HYPER
    return some.pop() if len(some) == 1 else UNCLEAR


def is_node(cls: type) -> bool:
    """Whether instances of a class are pytrees, or of an abstract class those of a subclass."""
    named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if jax.tree_util.default_registry.is_node(cls) or named_tuple:
        return True
    return inspect.isabstract(cls) and any(map(is_node, type.__subclasses__(cls)))
