"""Methods: functions with the types that select them, read off their signatures, and which of them fits best."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import plum

if TYPE_CHECKING:
    from fulmen.dispatching.registry import Verb

__all__ = ["Method", "best", "members", "read_methods", "refuse_twin"]

_EMPTY = inspect.Parameter.empty
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One implementation of a verb: a function and the types that select it.

    Attributes:
        verb: the verb's name.
        function: what was written.
        hints: what dispatches, one class or union of classes per positional argument.
        rest: the same for `*args`, or None.
        contexts: the classes of contexts (modes, plans) that it is for; empty where the verb takes none.
        takes: how the function wants its context: `"last"` (by position), a keyword, or None for not at all.
        written: the annotations as they stand, one per positional argument.
        spec: that of the module it was written in, which is a new one when the module is loaded again.
    """

    verb: str
    function: Callable[..., Any]
    hints: tuple[Any, ...]
    rest: Any = None
    contexts: tuple[type, ...] = ()
    takes: str | None = None
    written: tuple[Any, ...] = ()
    spec: Any = None

    def __call__(self, args: Iterable[Any], context: Any, options: Mapping[str, Any]) -> Any:
        if self.takes is None:
            return self.function(*args, **options)
        context = context_for(self.verb, context)
        if self.takes == "last":
            return self.function(*args, context, **options)
        return self.function(*args, **{self.takes: context}, **options)

    @functools.cached_property
    def members(self) -> tuple[tuple[type, ...], ...]:
        """The classes of each hint."""
        return tuple(map(members, self.hints))

    @functools.cached_property
    def signature(self) -> plum.Signature:
        return plum.Signature(*self.hints, **({} if self.rest is None else {"varargs": self.rest}))

    def narrowed(self, args: tuple[type, ...]) -> plum.Signature:
        """The signature with each union reduced to what an argument of this class is of."""
        if all(len(kinds) == 1 for kinds in self.members):
            return self.signature
        hints = [union(k for k in kinds if issubclass(arg, k)) for kinds, arg in zip(self.members, args)]
        return plum.Signature(*hints, **({} if self.rest is None else {"varargs": self.rest}))

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from the verb's other methods."""
        return (*self.hints, "*", self.rest, frozenset(self.contexts))

    @property
    def location(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.function)

    @property
    def module(self) -> str:
        return self.function.__module__

    def fits(self, context: type, args: tuple[type, ...]) -> bool:
        """Whether it can be called with arguments and a context of these classes."""
        n = len(self.hints)
        if len(args) != n and (self.rest is None or len(args) < n):
            return False
        if self.contexts and not issubclass(context, self.contexts):
            return False
        hints = self.members if len(args) == n else itertools.chain(self.members, itertools.repeat(members(self.rest)))
        return all(map(issubclass, args, hints))

    def __str__(self) -> str:
        parts = [name_of(hint) for hint in self.hints]
        if self.rest is not None:
            parts.append("*" if self.rest is object else f"*{name_of(self.rest)}")
        if self.takes is not None:
            parts.append(" | ".join(kind.__name__ for kind in self.contexts))
        return f"{self.verb}({', '.join(parts)})"


def context_for(verb: str, context: Any) -> Any:
    """The context as a verb's method gets it: a mode is told the verb, so that a component draws differently in each."""
    within = getattr(context, "within", None)
    return context if within is None else within(verb)


def best(methods: Iterable[Method], context: type, args: tuple[type, ...]) -> list[Method]:
    """The most specific of the methods that fit: none, one, or several that are ambiguous.

    The arguments decide, by plum's order of signatures; the context only between methods that are equal in them.
    """
    fitting = [m for m in methods if m.fits(context, args)]
    if len(fitting) < 2:
        return fitting
    narrow = {m: m.narrowed(args) for m in fitting}

    def before(a: Method, b: Method) -> bool:
        # A method for a union counts as one for that of its classes which the argument is of.
        return narrow[a] < narrow[b] or (narrow[a] == narrow[b] and a.signature < b.signature)

    found = [m for m in fitting if not any(before(other, m) for other in fitting if other is not m)]
    return [m for m in found if not any(_closer(other, m) for other in found)]


def _closer(a: Method, b: Method) -> bool:
    """Whether the same arguments select both, and the context of `a` is the narrower one."""
    if a is b or (a.hints, a.rest) != (b.hints, b.rest):
        return False
    return _within(a.contexts, b.contexts) and not _within(b.contexts, a.contexts)


def _within(narrow: tuple[type, ...], wide: tuple[type, ...]) -> bool:
    return all(issubclass(kind, wide) for kind in narrow)


# What annotations mean


def members(hint: Any) -> tuple[Any, ...]:
    """The classes in a union, or the one class."""
    return typing.get_args(hint) if _is_union(hint) else (hint,)


def union(kinds: Iterable[type]) -> Any:
    """The union of some classes, without those that others in it contain."""
    kinds = tuple(dict.fromkeys(kinds))
    kept = tuple(k for k in kinds if not any(k is not other and issubclass(k, other) for other in kinds))
    return typing.Union[kept]  # noqa: UP007 - built at run time


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


@functools.cache
def _faithful(kind: type) -> bool:
    return plum.is_faithful(kind)


def dispatching(annotation: Any) -> Any:
    """What of an annotation can be told from an argument's class alone, so that answers can be remembered.

    A class or a union of classes stays; `list[int]` is `list`; the rest (`jax.Array`, protocols, literals) is `object`.
    """
    origin = typing.get_origin(annotation)
    if _is_union(annotation):
        return union(m for hint in typing.get_args(annotation) for m in members(dispatching(hint)))
    if origin is typing.Annotated:
        return dispatching(typing.get_args(annotation)[0])
    if isinstance(annotation, typing.TypeVar):
        return object if annotation.__bound__ is None else dispatching(annotation.__bound__)
    kind = origin if isinstance(origin, type) else type(None) if annotation is None else annotation
    # `Any` is a class, and nothing an instance of it
    return kind if isinstance(kind, type) and kind not in (_EMPTY, Any) and _faithful(kind) else object


def names_around(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The local names of the functions that are running in a namespace, for annotations that are strings."""
    found: list[Mapping[str, Any]] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is namespace and frame.f_locals is not namespace:
            found.append(frame.f_locals)
        frame = frame.f_back
    return {name: value for names in reversed(found) for name, value in names.items()}


def _evaluate(annotation: Any, function: Callable[..., Any], names: Callable[[], Mapping[str, Any]]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    function = inspect.unwrap(function)
    namespace = function.__globals__
    try:
        if "<locals>" in function.__qualname__:
            return eval(annotation, namespace, names())
        try:
            return eval(annotation, namespace)
        except NameError:  # `exec` with names of its own
            return eval(annotation, namespace, names())
    except Exception as error:
        message = f"the annotation {annotation!r} of {function.__name__} in {function.__module__} has no meaning: {error}"
        raise NameError(message) from None


# Reading a signature


def read_methods(verb: Verb, function: Callable[..., Any], names: Callable[[], Mapping[str, Any]]) -> Iterator[Method]:
    """The methods that a function stands for: one, and one more for each positional argument with a default.

    Args:
        verb: the verb.
        function: what was written.
        names: gives the names around the function.
    """
    parameters = list(inspect.signature(function).parameters.values())
    written: list[Any] = []
    required, rest, contexts, takes = 0, None, (verb.context,) if verb.context else (), None
    positional = [p for p in parameters if p.kind in _BY_POSITION]
    for p in parameters:
        if p.kind in (p.VAR_KEYWORD, p.KEYWORD_ONLY) and not (verb.context and p.name == verb.context_name):
            continue
        annotation = _evaluate(p.annotation, function, names)
        if p.kind is p.VAR_POSITIONAL:
            rest = dispatching(annotation)
        elif (p.kind is p.KEYWORD_ONLY or p is positional[-1]) and _is_context(verb, p, annotation):
            contexts = members(union(members(annotation))) if annotation is not _EMPTY else contexts
            takes = p.name if p.kind is p.KEYWORD_ONLY else "last"
        elif p.kind in _BY_POSITION:
            written.append(annotation)
            required = len(written) if p.default is _EMPTY else required
    if not written and rest is None:
        raise TypeError(f"a method of `{verb.__name__}` needs at least one positional argument to dispatch on.")
    if rest is not None and takes == "last":
        raise TypeError(f"{function.__name__}: the context comes last, and so after `*`: `*inputs, {positional[-1].name}`.")
    hints, spec = tuple(map(dispatching, written)), inspect.unwrap(function).__globals__.get("__spec__")
    for n in range(len(hints), required - 1, -1):
        # With an argument left out, the context's place is not where the call ends.
        how = positional[-1].name if takes == "last" and n < len(hints) else takes
        tail = rest if n == len(hints) else None
        yield Method(verb.__name__, function, hints[:n], tail, contexts, how, tuple(written[:n]), spec)


def _is_context(verb: Verb, parameter: inspect.Parameter, annotation: Any) -> bool:
    if verb.context is None:
        return False
    if annotation is _EMPTY:
        return parameter.name == verb.context_name
    return all(isinstance(member, type) and issubclass(member, verb.context) for member in members(annotation))


def refuse_twin(old: Method, new: Method) -> None:
    """Two functions of one file that differ only in what cannot dispatch: one would hide the other unseen."""
    first, second = (inspect.unwrap(m.function) for m in (old, new))
    files = [getattr(getattr(f, "__code__", None), "co_filename", None) for f in (first, second)]
    run_again = old.spec is not new.spec or first.__globals__ is not second.__globals__
    if files[0] != files[1] or run_again or files[0] in ("<stdin>", "<string>"):  # as a prompt calls all its input
        return
    for a, b in zip(old.written, new.written, strict=True):
        if name_of(a) != name_of(b):
            raise TypeError(
                f"{new} at {new.location} and at {old.location} differ only in {name_of(a)} and {name_of(b)}, which do not "
                "dispatch: a verb looks at classes only. Distinguish them by a class, or inside one method."
            )


def name_of(hint: Any) -> str:
    """A hint as it is written in code."""
    if hint in (object, Any, _EMPTY):
        return "object"
    return " | ".join(map(_member_name, members(hint)))


def _member_name(hint: Any) -> str:
    if hint is type(None):
        return "None"
    return str(hint) if typing.get_origin(hint) is not None else getattr(hint, "__name__", str(hint))
