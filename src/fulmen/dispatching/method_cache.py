"""The cache of a verb: which method the types of a call select."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import plum

from fulmen.dispatching.annotations import comparable
from fulmen.dispatching.methods import Method, context_for
from fulmen.dispatching.resolution import more_specific

NO_METHOD: Any = object()
"""The cache entry of a call for which there is no method, or more than one."""


def dispatch_type(value: Any) -> type:
    """The class that selects methods: the value's, or for a proxy the class that it represents."""
    kind = type(value)
    return getattr(kind, "__stands_for__", kind)


class CallTypes(NamedTuple):
    """The types of a call: of the context and of the arguments. `invoked` calls run nothing around the method."""

    context: type
    args: tuple[type, ...]
    invoked: bool = False

    @property
    def signature(self) -> plum.Signature:
        """The types as plum compares them. It refuses a few classes, whose first base that it takes counts instead."""
        types = self.args if self.context is type(None) else (self.context, *self.args)
        return plum.Signature(*(next(filter(comparable, kind.__mro__)) for kind in types))


@dataclasses.dataclass(frozen=True)
class Around:
    """A method, or another `Around`, with a function that runs around it."""

    function: Callable[..., Any]
    when: Callable[[Any], bool] | None
    inner: Any
    context: type | None

    def call(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        if self.when is not None:
            bound = self._bound(args)
            if bound is None or not self.when(bound):
                return self.inner.call(args, context, options)

        def call(*args: Any, **options: Any) -> Any:
            bound = self._bound(args)
            return self.inner.call(args, context if bound is None else bound, options)

        return self.function(call, *args, **options)

    def _bound(self, args: Sequence[Any]) -> Any:
        bound = getattr(args[0], "mode", None)  # a module of another library may have a field of that name
        return bound if isinstance(bound, self.context or ()) else None

    def guarded(self, quick: Callable[..., Any]) -> Callable[..., Any]:
        """The function of the arguments alone: the quick one unless the condition holds for the bound context."""
        when: Any = self.when
        return lambda *args: self.call(args, args[0].mode, {}) if when(args[0].mode) else quick(*args)


def innermost(found: Any) -> Method:
    """The method that others run around."""
    while isinstance(found, Around):
        found = found.inner
    return found


def _same(a: Any, b: Any) -> bool:
    """Whether two cache entries do the same."""
    if isinstance(a, Around) and isinstance(b, Around):
        return a.function is b.function and _same(a.inner, b.inner)
    if isinstance(a, Method) and isinstance(b, Method):
        return (a.function is b.function or (a.delegates and b.delegates)) and a.takes == b.takes
    return a is b


class MethodCache(dict[CallTypes, Any]):
    """The method, the `Around` or `NO_METHOD` that the types of a call select."""

    def refresh(self, resolve: Callable[[CallTypes], Any], concerns: Callable[[CallTypes], bool]) -> bool:
        """Resolve again what a change may concern. Returns whether an entry was no longer right."""
        stale = False
        for types, old in list(self.items()):
            if concerns(types):
                try:
                    new = resolve(types)
                except TypeError:
                    new = NO_METHOD
                if _same(new, old):
                    self[types] = new
                else:
                    self.pop(types, None)
                    stale = True
        return stale

    def beats(self, types: CallTypes, method: Method) -> bool:
        """Whether the method for the types of a call is more specific than another one by the arguments alone."""
        found = innermost(self[types])
        return isinstance(found, Method) and more_specific(found.signature, method.signature)


def quick_call(found: Method | Around, bound: bool, default: Any) -> Callable[..., Any]:
    """A method, with what runs around it, as a function of the arguments alone.

    The context is the one bound to the first argument if `bound`, else the default.
    """
    if isinstance(found, Around):
        if found.when is None:
            return lambda *args: found.call(args, args[0].mode if bound else default, {})
        inner = quick_call(found.inner, bound, default)
        return found.guarded(inner) if bound else inner
    function, name, keyword = found.function, found.verb, found.takes
    if keyword is None:
        return function
    if keyword != "last":
        return lambda *args: found.call(args, args[0].mode if bound else default, {})
    if bound:
        if len(found.hints) == 2 and found.rest is None:  # most calls; naming the arguments saves a tenth
            return lambda first, second: function(first, second, first.mode.within(name))
        return lambda *args: function(*args, args[0].mode.within(name))
    context = context_for(name, default)
    return lambda *args: function(*args, context)
