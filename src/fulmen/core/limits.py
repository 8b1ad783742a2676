"""Checks that the values of a component's fields are what annotations and declared limits allow."""

import collections.abc
import dataclasses
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from fulmen.core.component import Component, Model, Wrapper, first_field, is_foreign
from fulmen.core.fields import Limits, owner_of, plain_hint
from fulmen.core.leaves import is_array
from fulmen.core.naming import concrete, number
from fulmen.core.tree import Tree, short, with_article
from fulmen.core.verbs import validate
from fulmen.dispatching.lazy_libraries import hint

_LONGEST = 60  # characters of a value in a message
_NUMBERS = (int, float, complex, np.generic)


class Kind(NamedTuple):
    """The values that an annotation allows: a test, a description, and an example to write."""

    allows: Callable[[Any], bool]
    name: str
    example: str = ""
    error: type[Exception] = TypeError


# The name of each field that is checked, with its kind, limits and example.
_checks: dict[type, list[tuple[str, Kind | None, tuple[Limits, ...], str]]] = {}


@validate.around(Component)
def _limits_first(call, component):
    check_limits(component)
    return call(component)


def check_limits(component: Component, field: str = "") -> None:
    """Raise for values that the annotation or the declared limits of a field, or of all, do not allow, except for tracers.

    Raises:
        TypeError: for a value of another type, with an example of what to write.
        ValueError: for a number outside the limits.
    """
    cls = type(component)
    for name, kind, limits, example in _checks.get(cls) or _checks_of(cls):
        if field not in ("", name):
            continue
        value = getattr(component, name, None)
        if kind is not None and not kind.allows(value):
            raise kind.error(_not_of_kind(cls, name, kind, value, example or kind.example))
        if value is not None:
            for each in limits:
                _check_limits(f"{cls.__name__}.{name}", value, each, _write(example))


def _checks_of(cls: type) -> list[Any]:
    found, complete = [], True
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name == "mode":
            continue
        try:
            kind = _kind_of(field.type, owner_of(cls, field))
        except NameError:  # the name may be defined later
            kind, complete = None, False
        if kind is not None and field.default is None and not kind.allows(None):  # as in `size: int = None`
            kind = _any_of([kind, _simple(None)])
        declared = [vars(base).get("__dataclass_fields__", {}).get(field.name) for base in cls.__mro__]
        limits = tuple(dict.fromkeys(each.metadata["limits"] for each in declared if each and "limits" in each.metadata))
        if kind is not None or limits:
            found.append((field.name, kind, limits, field.metadata.get("example", "")))
    if complete:
        _checks[cls] = found
    return found


def _not_of_kind(cls: type, name: str, kind: Kind, value: Any, example: str) -> str:
    made = isinstance(value, type) and issubclass(value, Tree)
    got, example = (f"the class {value.__name__}", f"{value.__name__}(…)") if made else (_printed(value), example)
    if isinstance(value, list) and kind.allows(tuple(value)):
        example = f"a tuple, {_printed(tuple(value))}"
    return f"{cls.__name__}.{name} must be {kind.name}, got {got}{_write(example)}. {hint(type(value))}".strip()


def _printed(value: Any) -> str:
    """A value in a message, by its type alone if it is long, such as a component with its parts."""
    text = short(value)
    return text if len(text) <= _LONGEST else f"{type(value).__name__}(…)"


def _write(example: str) -> str:
    return f"; write {example}" if example else ""


# Annotations


def _kind_of(annotation: Any, owner: type) -> Kind | None:
    """The values that an annotation allows, of a class that declares it; None for one that is not checked, such as an array's."""
    annotation = plain_hint(annotation, owner)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return Kind(lambda value: value in arguments, " or ".join(map(repr, arguments)), error=ValueError)
    if origin in (typing.Union, types.UnionType):
        return _any_of([_kind_of(argument, owner) for argument in arguments])
    if origin is tuple or origin is list:
        return _sequence(origin, arguments, owner)
    if origin is dict:
        return _mapping(_kind_of(arguments[1], owner))
    return _simple(origin or annotation)


def _simple(hint: Any) -> Kind | None:
    hint = types.NoneType if hint is None else hint
    if not isinstance(hint, type):
        return None
    if hint in _PLAIN:
        return _PLAIN[hint]
    if issubclass(hint, Tree):
        return Kind(lambda value: _is_tree(value, hint), with_article(hint), vars(hint).get("__example__", ""))
    if issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return Kind(lambda value: isinstance(value, hint), with_article(hint))
    return None


def _is_integer(value: Any) -> bool:
    if is_array(value):  # a hyperparameter may be one
        return bool(np.issubdtype(value.dtype, np.integer))
    return hasattr(value, "__index__") and not isinstance(value, bool)


_PLAIN = {
    types.NoneType: Kind(lambda value: value is None, "None"),
    collections.abc.Callable: Kind(callable, "a function"),
    int: Kind(_is_integer, "an integer"),
    float: Kind(lambda value: isinstance(value, _NUMBERS) or is_array(value), "a number"),
    bool: Kind(lambda value: isinstance(value, bool | np.bool_), "True or False"),
    str: Kind(lambda value: isinstance(value, str), "a string"),
}


def _is_tree(value: Any, cls: type) -> bool:
    """Whether a value, or the part of a wrapper, is of a class; modules of other libraries are models."""
    if isinstance(value, cls):
        return True
    if isinstance(value, Wrapper):
        return _is_tree(first_field(value), cls)
    return cls in (Component, Model) and is_foreign(value)


def _any_of(kinds: list[Kind | None]) -> Kind | None:
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    allows = lambda value: any(kind.allows(value) for kind in known)
    example = next((kind.example for kind in known if kind.example), "")
    return Kind(allows, " or ".join(kind.name for kind in known), example, known[0].error)


def _sequence(origin: type, arguments: tuple[Any, ...], owner: type) -> Kind:
    inside = [_kind_of(argument, owner) for argument in arguments if argument is not Ellipsis]
    fixed = origin is tuple and Ellipsis not in arguments

    def allows(value: Any) -> bool:
        if not isinstance(value, origin) or (fixed and len(value) != len(inside)):
            return False
        kinds = inside if fixed else inside * len(value)
        return all(kind is None or kind.allows(item) for kind, item in zip(kinds, value, strict=True))

    if fixed:
        return Kind(allows, f"a tuple ({', '.join('anything' if kind is None else kind.name for kind in inside)})")
    example = inside[0].example if inside and inside[0] is not None else ""
    written = f"({example},)" if origin is tuple else f"[{example}]"
    return Kind(allows, f"a {origin.__name__} of {_several(inside)}", written if example else "")


def _mapping(inside: Kind | None) -> Kind:
    def allows(value: Any) -> bool:
        return isinstance(value, dict) and (inside is None or all(map(inside.allows, value.values())))

    return Kind(allows, f"a dict of {_several([inside])}")


def _several(inside: list[Kind | None]) -> str:
    """The plural: "a Metric" becomes "Metrics"."""
    return "anything" if not inside or inside[0] is None else f"{inside[0].name.partition(' ')[2]}s"


# Limits


def _check_limits(who: str, value: Any, limits: Limits, write: str) -> None:
    if limits.choices is not None:
        if value not in limits.choices:
            raise ValueError(f"{who} must be {' or '.join(map(repr, limits.choices))}, got {value!r}{write}.")
        return
    for each in value if isinstance(value, tuple) else (value,):
        array = concrete(each)
        if array is None:
            if not isinstance(each, Tracer | jax.ShapeDtypeStruct):
                raise TypeError(f"{who} must be a number or an array, got {_printed(each)}; write jnp.array(…) for several.")
            continue
        allowed = np.isfinite(array) & _within(array, limits)
        if not allowed.all():
            first = array[~allowed].flat[0]
            wanted = "finite" if np.isinf(first) else _range(limits)
            among = f" in {short(each)}" if array.shape else ""
            raise ValueError(f"{who} must be {wanted}, got {number(first)}{among}{write}.")


def _within(array: np.ndarray, limits: Limits) -> Any:
    """Which elements are within the bounds."""
    allowed: Any = True
    for bound, holds in zip(limits[:4], (operator.ge, operator.le, operator.gt, operator.lt)):
        if bound is not None:
            allowed = allowed & holds(array, bound)
    return allowed


def _range(limits: Limits) -> str:
    if limits.minimum is not None and limits.maximum is not None:
        return f"between {limits.minimum} and {limits.maximum}"
    low, high = ("at least", limits.minimum), ("at most", limits.maximum)
    bounds = [low, ("above", limits.above), high, ("below", limits.below)]
    return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None) or "finite"
