"""Which of several methods fits best, where plum's order of signatures does not decide."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import plum

from fulmen.dispatching.methods import Method

__all__ = ["Wrapper", "less", "settle"]


class Wrapper(abc.ABC):  # noqa: B024 - recognised by what it has
    """Anything with a part: what a verb has no method for goes to `__part__`."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return hasattr(kind, "__part__")


def settle(fitting: Sequence[Method], args: tuple[type, ...]) -> list[Method]:
    """The most specific of the methods that fit: by their arguments, a union counted as the classes in it that fit."""
    if any(m.hands_on for m in fitting):
        # A wrapper's own methods are those on wrapper types.
        own = [m for m in fitting if not m.hands_on and m.hints and any(_wraps(kind, args[0]) for kind in m.members[0])]
        fitting = own or [m for m in fitting if m.hands_on]
    if len(fitting) < 2:
        return list(fitting)
    narrow = {m: m.narrowed(args) for m in fitting}

    def before(a: Method, b: Method) -> bool:
        return less(narrow[a], narrow[b]) or (narrow[a] == narrow[b] and less(a.signature, b.signature))

    found = [m for m in fitting if not any(before(other, m) for other in fitting if other is not m)]
    return [m for m in found if not any(_closer(other, m) for other in found)]


def _wraps(kind: type, arg: type) -> bool:
    return issubclass(kind, Wrapper) and issubclass(arg, kind)


def less(a: plum.Signature, b: plum.Signature) -> bool:
    """Whether a signature is narrower; of two that differ only in how many arguments `*args` takes, the longer one is."""
    if a < b:
        return len(a.types) > len(b.types) if b < a else True
    return False


def _closer(a: Method, b: Method) -> bool:
    """Whether the same arguments select both, and the context of `a` is the narrower one."""
    if a is b or (a.hints, a.rest) != (b.hints, b.rest):
        return False
    return _within(a.contexts, b.contexts) and not _within(b.contexts, a.contexts)


def _within(narrow: tuple[type, ...], wide: tuple[type, ...]) -> bool:
    return all(issubclass(kind, wide) for kind in narrow)
