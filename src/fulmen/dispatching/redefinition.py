"""Classes that are defined again, as when a notebook cell is run again; they are recognised by their names."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Iterable
from typing import Any

from fulmen.dispatching.annotations import members, union
from fulmen.dispatching.compiled_code import all_verbs, drop_compiled, lock
from fulmen.dispatching.errors import outdated
from fulmen.dispatching.methods import Method

_definitions: dict[tuple[str, str], type] = {}  # the newest definition of each class, by module and qualified name
_superseded: dict[type, type] = {}  # from an earlier definition of a class to the one that replaced it
_made_by_call: weakref.WeakSet[type] = weakref.WeakSet()


def define(kind: type, by_statement: bool) -> None:
    """Note that a class was defined. A class statement replaces an earlier class of the same name.

    Several classes made by calling `type` may have one name.
    """
    if not by_statement:
        _made_by_call.add(kind)
    elif "<locals>" not in kind.__qualname__:  # several functions may have a class of the same name
        old = _definitions.get(_full_name(kind))
        _definitions[_full_name(kind)] = kind
        if old is not None and _supersede(old, kind):
            drop_compiled(f"{kind.__module__}.{kind.__name__} was defined again")


def newest(kind: type) -> type:
    """The newest definition of a class: itself, unless it was defined again."""
    while kind in _superseded:
        kind = _superseded[kind]
    return kind


def check_definitions(kinds: Iterable[type]) -> None:
    """Raise for types of instances whose class, or a base of it, has been defined again."""
    kinds = tuple(kinds)
    above = [base for kind in kinds for base in kind.__mro__[:-1]]
    note_classes(base for base in above if _full_name(base) in _definitions)
    old = next((base for base in above if base in _superseded), None)
    if old is not None:
        raise outdated(kinds, old)


def note_classes(kinds: Iterable[type]) -> bool:
    """Note the classes that methods are for; `Tree` notes its subclasses by itself.

    Returns:
        Whether one of them is a new definition that changes the method of a cached call.
    """
    stale = False
    for kind in kinds:
        if kind in _made_by_call or kind in _superseded or "<locals>" in kind.__qualname__:
            continue
        known = _definitions.setdefault(_full_name(kind), kind)
        current = _current(kind) if known is not kind else known
        if current is kind and known is not kind:
            _definitions[_full_name(kind)] = kind
            stale |= _supersede(known, kind)
        elif current is known and known is not kind:
            _superseded[kind] = known
    return stale


def _supersede(old: type, new: type) -> bool:
    """Make the methods on a class methods on its new definition. Returns whether a cached method is no longer right."""
    with lock:
        _superseded[old] = new
        changed = [verb.move(old, new) for verb in list(all_verbs)]
    return any(changed)


def mentions(method: Method, kind: type) -> bool:
    """Whether a class is in a method's signature."""
    return any(kind in hint for hint in (*method.members, members(method.rest), method.contexts))


def moved(method: Method, old: type, new: type) -> Method:
    """The method with one class replaced by another."""

    def move(hint: Any) -> Any:
        return union(new if member is old else member for member in members(hint)) if old in members(hint) else hint

    contexts = tuple(new if kind is old else kind for kind in method.contexts)
    return dataclasses.replace(method, hints=tuple(map(move, method.hints)), rest=move(method.rest), contexts=contexts)


def _full_name(kind: type) -> tuple[str, str]:
    """The name that all definitions of a class share."""
    return kind.__module__, kind.__qualname__


def _current(kind: type) -> Any:
    """The value that a class's name has now."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found
