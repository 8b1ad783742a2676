"""What a verb remembers: the questions that it was asked, and its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fulmen.dispatching.methods import Method, context_for

__all__ = ["NOTHING", "Answers", "Around", "Question", "innermost", "kind_of", "quick_call"]

NOTHING: Any = object()
"""The answer that there is no method, or no single one."""


def kind_of(value: Any) -> type:
    """The class by which methods are chosen: a value's class, or that of the module which it stands for."""
    kind = type(value)
    return getattr(kind, "__stands_for__", kind)


class Question(NamedTuple):
    """What is asked of a verb: the types of the context and the arguments, and whether by `invoke`."""

    context: type
    args: tuple[type, ...]
    invoked: bool = False


@dataclasses.dataclass(frozen=True)
class Around:
    """An answer with a function that runs around it."""

    function: Callable[..., Any]
    inner: Any
    context: type | None

    def call(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            bound = getattr(args[0], "mode", None)  # a module of another library may have a field of that name
            return self.inner.call(args, bound if isinstance(bound, self.context or ()) else context, options)

        return self.function(call, *args, **options)


def innermost(answer: Any) -> Method:
    """The method that others run around."""
    while isinstance(answer, Around):
        answer = answer.inner
    return answer


def _same(a: Any, b: Any) -> bool:
    """Whether two answers do the same."""
    if isinstance(a, Around) and isinstance(b, Around):
        return a.function is b.function and _same(a.inner, b.inner)
    if isinstance(a, Method) and isinstance(b, Method):
        return (a.function is b.function or (a.hands_on and b.hands_on)) and a.takes == b.takes
    return a is b


class Answers(dict[Question, Any]):
    """The answers to the questions that were asked."""

    def refresh(self, resolve: Callable[[Question], Any], concerned: Callable[[Question], bool]) -> bool:
        """Ask again what a change may concern. Returns whether an answer that was given is no longer right."""
        stale = False
        for question, answer in list(self.items()):
            if concerned(question):
                try:
                    now = resolve(question)
                except TypeError:
                    now = NOTHING
                if _same(now, answer):
                    self[question] = now
                else:
                    self.pop(question, None)
                    stale = True
        return stale


def quick_call(method: Method, bound: bool, default: Any) -> Callable[..., Any]:
    """A method as a function of the arguments alone."""
    function, name, keyword = method.function, method.verb, method.takes
    if keyword is None:
        return function
    if keyword != "last":
        return lambda *args: method.call(args, args[0].mode if bound else default, {})
    if bound:
        return lambda *args: function(*args, args[0].mode.within(name))
    context = context_for(name, default)
    return lambda *args: function(*args, context)
