"""Annotations as a verb reads them: only classes and unions of classes dispatch, the rest is documentation."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import plum


def members(hint: Any) -> tuple[Any, ...]:
    """The classes in a union, or the one class."""
    return typing.get_args(hint) if _is_union(hint) else (hint,)


def union(kinds: Iterable[type]) -> Any:
    """The union of some classes, without the subclasses of others in it."""
    kinds = tuple(dict.fromkeys(kinds))
    kept = tuple(k for k in kinds if not any(k is not other and _contains(other, k) for other in kinds))
    return typing.Union[kept]  # noqa: UP007 - built at run time


def _contains(wide: type, narrow: type) -> bool:
    """Whether every instance of `narrow` is an instance of `wide`, whose virtual subclasses do not count."""
    return issubclass(narrow, wide) and type(narrow).__subclasscheck__ is type.__subclasscheck__


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or (not isinstance(hint, type) and typing.get_origin(hint) is typing.Union)


@functools.cache
def comparable(kind: type) -> bool:
    """Whether plum can order the class; beartype refuses a few, such as `types.GenericAlias`."""
    if type(kind) is type and not hasattr(kind, "__args__") and isinstance(kind.__module__, str):
        return True  # most classes, without the time of a comparison
    try:
        return plum.Signature(kind) <= plum.Signature(object)
    except Exception:
        return False


@functools.cache
def _class_decides(kind: type) -> bool:
    return comparable(kind) and plum.is_faithful(kind)


def dispatching(annotation: Any) -> Any:
    """The part of an annotation that an argument's class alone decides, so that the method can be cached.

    A class or a union of classes is kept; `list[int]` becomes `list`; the rest (`jax.Array`, protocols, literals) `object`.
    """
    if type(annotation) is type:  # most annotations
        return annotation if annotation not in (inspect.Parameter.empty, Any) and _class_decides(annotation) else object
    origin = typing.get_origin(annotation)
    if _is_union(annotation):
        return union(m for hint in typing.get_args(annotation) for m in members(dispatching(hint)))
    if origin is typing.Annotated:
        return dispatching(typing.get_args(annotation)[0])
    if isinstance(annotation, typing.TypeVar):
        return object if annotation.__bound__ is None else dispatching(annotation.__bound__)
    kind = origin if isinstance(origin, type) else type(None) if annotation is None else annotation
    # `Any` is a class without instances.
    return kind if isinstance(kind, type) and kind not in (inspect.Parameter.empty, Any) and _class_decides(kind) else object


def names_around(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The local names of the functions that are running in a namespace, for annotations that are strings."""
    found: list[Mapping[str, Any]] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is namespace and frame.f_locals is not namespace:
            found.append(frame.f_locals)
        frame = frame.f_back
    return {name: value for names in reversed(found) for name, value in names.items()}


def evaluate(annotation: Any, function: Callable[..., Any], names: Callable[[], Mapping[str, Any]]) -> Any:
    """The value of an annotation of a function that is a string, with the local names around it; another annotation as it is."""
    if not isinstance(annotation, str):
        return annotation
    namespace = function.__globals__
    try:
        if "<locals>" in function.__qualname__:
            return eval(annotation, namespace, names())
        try:
            return eval(annotation, namespace)
        except NameError:  # `exec` with separate local names
            return eval(annotation, namespace, names())
    except Exception as error:
        message = (
            f"the annotation {annotation!r} of {function.__name__} in {function.__module__} cannot be evaluated: {error}"
        )
        raise NameError(message) from None


def name_of(hint: Any) -> str:
    """A hint as it is written in code."""
    if hint in (object, Any, inspect.Parameter.empty):
        return "object"
    return " | ".join(map(_member_name, members(hint)))


def _member_name(hint: Any) -> str:
    if hint is type(None):
        return "None"
    return str(hint) if typing.get_origin(hint) is not None else getattr(hint, "__name__", str(hint))
