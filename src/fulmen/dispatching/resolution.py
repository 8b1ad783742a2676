"""What a verb remembers: the questions it was asked, and what it answered."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fulmen.dispatching.methods import Method, context_for

if TYPE_CHECKING:
    from fulmen.dispatching.registry import Verb

__all__ = ["NOTHING", "Around", "HandOn", "Question", "Recorder", "innermost", "kind_of", "quick_call", "same"]


def kind_of(value: Any) -> type:
    """The class by which methods are chosen: a value's own, or that of the module which it stands for."""
    kind = type(value)
    return getattr(kind, "__stands_for__", kind)


class Question(NamedTuple):
    """What was asked: the types of the context and the arguments, and whether it was `invoke`."""

    context: type
    args: tuple[type, ...]
    next_method: bool = False


NOTHING: Any = object()  # the answer that there is no method, or no single one


@dataclasses.dataclass(frozen=True)
class HandOn:
    """The answer of a wrapper that has no method of its own: the same verb on its part."""

    verb: Verb

    def onward(self, args: Sequence[Any], context: Any) -> tuple[Any, ...]:
        """The arguments of the call on the part, which has its mode bound if the wrapper has."""
        passed = () if self.verb.context is None or self.verb.bind is not None else (context,)
        return (args[0].__part__, *args[1:], *passed)

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        return self.verb(*self.onward(args, context), **options)


@dataclasses.dataclass(frozen=True)
class Around:
    """An answer with a function that runs round it."""

    function: Callable[..., Any]
    inner: Any

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self.inner(args, getattr(args[0], "mode", None) or context, options)

        return self.function(call, *args, **options)


def innermost(answer: Any) -> Any:
    """The method, or the handing on, that others run round."""
    while isinstance(answer, Around):
        answer = answer.inner
    return answer


def quick_call(method: Method, bound: bool, default: Any) -> Callable[..., Any]:
    """A method as a function of the arguments alone."""
    function, name, keyword = method.function, method.verb, method.takes
    if keyword is None:
        return function
    if keyword != "last":
        return lambda *args: method(args, args[0].mode if bound else default, {})
    if bound:
        return lambda *args: function(*args, args[0].mode.within(name))
    context = context_for(name, default)
    return lambda *args: function(*args, context)


def same(a: Any, b: Any) -> bool:
    """Whether two answers do the same."""
    if isinstance(a, Method) and isinstance(b, Method):
        return a.function is b.function and a.takes == b.takes
    if isinstance(a, Around) and isinstance(b, Around):
        return a.function is b.function and same(a.inner, b.inner)
    return a is b or (isinstance(a, HandOn) and isinstance(b, HandOn))


class Recorder:
    """Notes which method each call chose, and at which depth, in the thread that asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Verb, tuple[type, ...], Any]] = []
        self.depth, self.thread = 0, threading.get_ident()

    def call(self, verb: Verb, question: Question, answer: Any, args: Any, context: Any, options: Any) -> Any:
        if threading.get_ident() != self.thread:
            return answer(args, context, options)
        self.calls.append((self.depth, verb, (question.context, *question.args), innermost(answer)))
        self.depth += 1
        try:
            return answer(args, context, options)
        finally:
            self.depth -= 1
