"""Which of several methods fits best, where plum's order of signatures does not decide."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import plum

from fulmen.dispatching.methods import Method

__all__ = ["Wrapper", "less", "overridden", "package", "settle"]


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


def overridden(methods: Iterable[Method], new: Method) -> Method | None:
    """A method of another package, for types of that package alone, that a new method comes before; None if it did so already."""
    kinds = {kind for kinds in (*new.members, new.contexts) for kind in kinds} - {object}
    found = None
    for old in methods:
        if old.key == new.key and old.module == new.module:
            return None
        if old.hints[:1] == new.hints[:1] and (old.key == new.key or less(new.signature, old.signature)):
            home = package(old.module)
            if home != package(new.module) and kinds and all(package(kind.__module__) == home for kind in kinds):
                found = found or old
    return found


def package(module: str) -> str:
    """The package that a module is in."""
    return module.partition(".")[0]
