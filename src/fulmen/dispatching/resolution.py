"""Which method fits best: plum's order of signatures, and what decides where that order does not."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import plum

from fulmen.dispatching.annotations import comparable
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.methods import Method

__all__ = ["Held", "Question", "Wrapper", "hand_on_to", "hold", "kind_of", "most_specific", "settle"]


class Wrapper(abc.ABC):  # noqa: B024 - recognised by what it has
    """Anything with a part: what a verb has no method for goes to `__part__`."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return hasattr(kind, "__part__")


def kind_of(value: Any) -> type:
    """The class by which methods are chosen: a value's class, or that of the module which it stands for."""
    kind = type(value)
    return getattr(kind, "__stands_for__", kind)


class Question(NamedTuple):
    """What is asked of a verb: the types of the context and the arguments, and whether by `invoke`."""

    context: type
    args: tuple[type, ...]
    invoked: bool = False


class Held:
    """A method as plum holds it: a function of the context, if the verb takes one, and the arguments."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.__name__, self.__module__, self.__wrapped__ = method.verb, method.module, inspect.unwrap(method.function)

    def __call__(self, *args, **options):  # plum would convert to an annotated result
        if self.method.contexts:
            return self.method.call(args[1:], args[0], options)
        return self.method.call(args, None, options)

    @property
    def __signature__(self) -> inspect.Signature:
        method, by_position = self.method, inspect.Parameter.POSITIONAL_ONLY
        names = ["context"] * bool(method.contexts) + [f"argument_{i}" for i, _ in enumerate(method.hints)]
        rest = [] if method.rest is None else [inspect.Parameter("rest", inspect.Parameter.VAR_POSITIONAL)]
        return inspect.Signature([*(inspect.Parameter(name, by_position) for name in names), *rest])


def hold(function: plum.Function, method: Method) -> None:
    """Give plum a method."""
    function.register(Held(method), signature=method.registered)


def hand_on_to(verb: Callable[..., Any], contract: Contract) -> Method:
    """The method by which a verb hands a wrapper's call to the wrapper's part, which is bound to the wrapper's mode."""

    def hand_on(wrapper, *args, **options):
        return verb(wrapper.__part__, *args, **options)

    contexts = (contract.context,) if contract.context else ()
    takes = "last" if contexts and contract.bind is None else None
    return Method(contract.name, hand_on, (Wrapper,), object, contexts, takes, hands_on=True)


def most_specific(function: plum.Function, methods: Iterable[Method], question: Question) -> list[Method]:
    """The method that fits best, as a list: of none, of one, or of several that are ambiguous.

    plum decides, but for what it does not know: the arguments decide first, the context only between methods that are
    equal in them; a method without `*args` comes before one that has them.
    """
    context, args = question.context, question.args
    types = args if context is type(None) else (context, *args)
    if all(map(comparable, types)):
        try:
            method = function.resolve_method(plum.Signature(*types))[0].method  # type: ignore[attr-defined]
        except (plum.AmbiguousLookupError, plum.NotFoundLookupError):
            pass
        else:
            if method.rest is None:
                return [method]
    return settle([m for m in methods if m.fits(context, args)], args)


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
        return _less(narrow[a], narrow[b]) or (narrow[a] == narrow[b] and _less(a.signature, b.signature))

    found = [m for m in fitting if not any(before(other, m) for other in fitting if other is not m)]
    return [m for m in found if not any(_closer(other, m) for other in found)]


def _wraps(kind: type, arg: type) -> bool:
    return issubclass(kind, Wrapper) and issubclass(arg, kind)


def _less(a: plum.Signature, b: plum.Signature) -> bool:
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
