"""Classes that are defined again, as when a notebook's cell is run again, recognised by their names."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fulmen.dispatching import errors as lookup_errors
from fulmen.dispatching.methods import Method, members, union
from fulmen.dispatching.resolution import Question

__all__ = ["check_definitions", "full_name", "mentions", "moved", "notice", "superseded"]

superseded: dict[type, type] = {}
"""From an earlier definition of a class to the one that replaced it."""

Move = Callable[[type, type], bool]
"""Gives the methods of one class to another, and says whether that changed an answer."""


def mentions(method: Method, kind: type) -> bool:
    """Whether a class is anywhere in a method's signature."""
    return any(kind in hint for hint in (*method.members, members(method.rest), method.contexts))


def moved(method: Method, old: type, new: type) -> Method:
    """The method for one class in another's place."""

    def move(hint: Any) -> Any:
        return union(new if member is old else member for member in members(hint)) if old in members(hint) else hint

    contexts = tuple(new if kind is old else kind for kind in method.contexts)
    return dataclasses.replace(method, hints=tuple(map(move, method.hints)), rest=move(method.rest), contexts=contexts)


def check_definitions(question: Question, known: Mapping[tuple[str, str], type], move: Move) -> None:
    """Raise for an instance of a class that has been defined again; learn of classes that are no `Tree`s here."""
    kinds = [k for kind in (question.context, *question.args) for k in kind.__mro__[:-1]]
    for kind in kinds:
        notice(kind, known, move)
    old = next((kind for kind in kinds if kind in superseded), None)
    if old is not None:
        raise lookup_errors.outdated((question.context, *question.args), old)


def notice(kind: type, known: Mapping[tuple[str, str], type], move: Move) -> bool:
    """Learn whether a class is a new or an old definition of one that is known. Returns whether answers changed."""
    other = known.get(full_name(kind))
    if other is None or other is kind or kind in superseded or other in superseded:
        return False
    current = _current(kind)
    if current is kind:
        return move(other, kind)
    if current is other:
        superseded[kind] = other
    return False


def full_name(kind: type) -> tuple[str, str]:
    """What tells a class from others, and its definitions not from each other."""
    return kind.__module__, kind.__qualname__


def _current(kind: type) -> Any:
    """What is to be found now under a class's name."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found
