"""Which of several methods fits best: plum orders signatures, and these rules decide where its order does not."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Sequence

import plum

from fulmen.dispatching.methods import Method
from fulmen.dispatching.warning import warn


class HasPart(abc.ABC):  # noqa: B024 - recognised by its attribute
    """Any class with a `__part__`, to which verbs delegate the calls for which the class has no method."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return hasattr(kind, "__part__") or NotImplemented


def best_by_own_rules(fitting: Sequence[Method], args: tuple[type, ...]) -> list[Method]:
    """The most specific of the methods that fit; several if they are ambiguous.

    The arguments decide first, and the context only between methods that are equal in them. A union counts as those of
    its classes that the argument is an instance of.
    """
    narrow = {m: m.narrowed(args) for m in fitting}

    def before(a: Method, b: Method) -> bool:
        if a.delegates:  # only methods on wrapper types come before delegation
            return not narrow[b] <= narrow[a]
        if narrow[a] == narrow[b]:
            return a.signature < b.signature or a.signature_with_context < b.signature_with_context
        return more_specific(narrow[a], narrow[b])

    return [m for m in fitting if not any(before(other, m) for other in fitting)]


def more_specific(a: plum.Signature, b: plum.Signature) -> bool:
    """Whether a signature is more specific; of two that differ only in the length of `*args`, the longer one is."""
    return a < b and (not b < a or len(a.types) > len(b.types))


def warn_of_override(methods: Sequence[Method], new: Method) -> None:
    """Warn, the first time only, if a new method overrides one of another package, and only for types of that package."""
    kinds = {kind for kinds in (*new.members, new.contexts) for kind in kinds} - {object}
    if any(old.key == new.key and old.module == new.module for old in methods):
        return
    for old in methods:
        home = package(old.module)
        if (
            home != package(new.module)
            and old.hints[:1] == new.hints[:1]
            and (old.key == new.key or more_specific(new.signature, old.signature))
            and kinds
            and all(package(kind.__module__) == home for kind in kinds)
        ):
            warn(f"{old}, defined at {old.place}, is overridden by {new} at {new.place}, for all who use these types.")
            return


def warn_of_every_type(new: Method) -> None:
    """Warn if a method for another package's verb is for every type: its first argument has no annotation, or a Protocol."""
    first = new.written[0] if new.written else object
    if getattr(first, "_is_protocol", False):
        warn(
            f"{new} at {new.place} is for every type, since a Protocol such as {first.__name__} does not dispatch. Annotate the first "
            "argument by a class, such as an abc.ABC with which classes are registered."
        )
    elif first is inspect.Parameter.empty:
        warn(
            f"{new} at {new.place} is for every type without a method of its own. Annotate the first argument, with `object` if intended."
        )


def package(module: str) -> str:
    """The package that a module is in."""
    return module.partition(".")[0]
