"""Methods: functions with the types that select them, read from their signatures."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import plum

from fulmen.dispatching import hooks
from fulmen.dispatching.annotations import dispatching, evaluate, members, name_of, union
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.location import place

_EMPTY = inspect.Parameter.empty
_as_set = functools.cache(frozenset)  # most methods have the same contexts


class UnknownOptionError(TypeError):
    """A call has a keyword that the method does not take."""


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One implementation of a verb: a function and the types that select it.

    Attributes:
        verb: the verb's name.
        function: the function that implements it.
        hints: the class or union of classes that each positional argument must be an instance of.
        rest: the same for `*args`, or None.
        contexts: the classes of contexts (modes, plans) that it is for; empty if the verb takes none.
        takes: how the function takes its context: `"last"` (by position), a keyword, or None for not at all.
        written: the annotations as written, one per positional argument.
        spec: the `__spec__` of its module, which changes when the module is loaded again.
        delegates: whether it delegates a wrapper's call to the part; then it comes before methods for other types.
    """

    verb: str
    function: Callable[..., Any]
    hints: tuple[Any, ...]
    rest: Any = None
    contexts: tuple[type, ...] = ()
    takes: str | None = None
    written: tuple[Any, ...] = ()
    spec: Any = None
    delegates: bool = False

    def call(self, args: Iterable[Any], context: Any, options: Mapping[str, Any]) -> Any:
        """Run the function with the arguments and, if it takes one, the context."""
        if options and self.keywords is not None and not options.keys() <= self.keywords:
            unknown = {name: value for name, value in options.items() if name not in self.keywords}
            raise UnknownOptionError(hooks.unknown_option(self.verb, unknown, self.keywords))
        if self.takes is None:
            return self.function(*args, **options)
        context = context_for(self.verb, context)
        if self.takes == "last":
            return self.function(*args, context, **options)
        return self.function(*args, **{self.takes: context}, **options)

    @functools.cached_property
    def keywords(self) -> frozenset[str] | None:
        """The names of what the function takes by keyword; None if it takes any keyword."""
        parameters = [*inspect.signature(self.function).parameters.values()]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return None
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][: -1 if self.takes == "last" else None]
        optional = [*positional[len(self.hints) :], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
        return frozenset(p.name for p in optional if p.name != self.takes)

    @property
    def members(self) -> tuple[tuple[type, ...], ...]:
        """The classes of each hint."""
        return tuple(map(members, self.hints))

    @functools.cached_property
    def signature(self) -> plum.Signature:
        """The signature for plum, without the context."""
        return self._signature(self.hints)

    @functools.cached_property
    def signature_with_context(self) -> plum.Signature:
        """The signature in the verb's plum function: the context's type is first, since plum needs `*args` to be last."""
        first = (union(self.contexts),) if self.contexts else ()
        return self._signature((*first, *self.hints), precedence=int(self.delegates))

    def narrowed(self, args: tuple[type, ...]) -> plum.Signature:
        """The signature with each union reduced to the classes that the argument is an instance of."""
        if all(len(kinds) == 1 for kinds in self.members):
            return self.signature
        return self._signature([union(k for k in kinds if issubclass(a, k)) for kinds, a in zip(self.members, args)])

    def _signature(self, hints: Iterable[Any], precedence: int = 0) -> plum.Signature:
        rest = {} if self.rest is None else {"varargs": self.rest}
        return plum.Signature(*hints, **rest, precedence=precedence)

    def is_own(self, kind: type, base: type, position: int = 0) -> bool:
        """Whether it is for a class by an argument, and not for all classes that are derived from a base of it."""
        hints = self.members[position : position + 1]
        return any(issubclass(kind, k) and k not in base.__mro__ for kinds in hints for k in kinds)

    @property
    def key(self) -> tuple[Any, ...]:
        """The key that no other method of the verb has."""
        return (*self.hints, "*", self.rest, _as_set(self.contexts))

    @property
    def location(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.function)

    @property
    def place(self) -> str:
        """The file and line in short form."""
        return place(self.location, self.module)

    @property
    def module(self) -> str:
        return self.function.__module__ or "__main__"  # None for code that was executed without a module name

    def __str__(self) -> str:
        parts = [name_of(hint) for hint in self.hints]
        if self.rest is not None:
            parts.append("*" if self.rest is object else f"*{name_of(self.rest)}")
        if self.takes is not None:
            parts.append(" | ".join(kind.__name__ for kind in self.contexts))
        return f"{self.verb}({', '.join(parts)})"


def context_for(verb: str, context: Any) -> Any:
    """The context that a verb's method gets: a mode with the verb's name, so that a component draws differently in each."""
    within = getattr(context, "within", None)
    return context if within is None else within(verb)


# Reading a signature


def require_count(contract: Contract, read: Sequence[Method]) -> None:
    """Raise if no call of the verb has as many arguments as the methods that a function defines."""
    fewest, most = contract.counts
    if any(len(m.hints) <= most and (m.rest is not None or len(m.hints) >= fewest) for m in read):
        return
    longest = max(read, key=lambda m: len(m.hints))
    raise TypeError(
        f"{longest} would never be called, since the verb is called as {contract.call}. Write `def {contract.call}:` with the first "
        "argument annotated."
    )


def plain_function(function: Any) -> types.FunctionType:
    """The plain function inside a callable, such as a jitted one.

    Raises:
        TypeError: for anything but a function outside a class.
    """
    plain = inspect.unwrap(function) if callable(function) else function
    if not isinstance(plain, types.FunctionType):
        what = f"the class {plain.__name__}" if isinstance(plain, type) else f"a {type(plain).__name__}, {plain!r}"
        raise TypeError(
            f"a method must be a function written with `def`, got {what}. Write a function that calls it: "
            "`@dispatch def forward(net: Net, x): return …`."
        )
    scope = plain.__qualname__.rpartition(".")[0]
    if scope and not scope.endswith("<locals>"):
        kind, name = scope.rpartition(".")[2], plain.__name__
        raise TypeError(
            f"{plain.__qualname__} is in the body of a class, where its arguments cannot be annotated by that class. Write it "
            f"below the class:\n\n    @dispatch\n    def {name}({kind.lower()}: {kind}, …): …"
        )
    return plain


def read_methods(
    contract: Contract, function: Callable[..., Any], plain: types.FunctionType, names: Callable[[], Mapping[str, Any]]
) -> Iterator[Method]:
    """The methods that a function defines: one, and one more for each positional argument with a default.

    `plain` is the plain function inside it, and `names` returns the local names around it.
    """
    code, count = plain.__code__, plain.__code__.co_argcount  # `inspect.signature` is slow: importing the package reads 650
    by_position, others = code.co_varnames[:count], code.co_varnames[count:]

    def annotation(name: str) -> Any:
        return evaluate(plain.__annotations__.get(name, _EMPTY), plain, names)

    written = [annotation(name) for name in by_position]
    rest = dispatching(annotation(others[code.co_kwonlyargcount])) if code.co_flags & inspect.CO_VARARGS else None
    contexts, takes, context = contract.contexts, None, _EMPTY
    if by_position and _is_context(contract, by_position[-1], written[-1]):
        takes, context = "last", written.pop()
    elif (name := contract.context_name) in others[: code.co_kwonlyargcount] and _is_context(
        contract, name, annotation(name)
    ):
        takes, context = name, annotation(name)
    if context is not _EMPTY:
        contexts = members(union(members(context)))
    required = min(count - len(plain.__defaults__ or ()), len(written))
    if not written and rest is None:
        raise TypeError(f"a method of `{contract.name}` needs at least one positional argument to dispatch on.")
    if rest is not None and takes == "last":
        raise TypeError(f"{plain.__name__}: the context must follow `*`: `*inputs, {by_position[-1]}`.")
    annotations, hints = tuple(written), tuple(map(dispatching, written))
    annotations = hints if annotations == hints else annotations  # fewer objects for the garbage collector
    for n in range(len(hints), required - 1, -1):
        # If an argument is left out, the context is not last in the call.
        how = by_position[-1] if takes == "last" and n < len(hints) else takes
        tail, spec = rest if n == len(hints) else None, plain.__globals__.get("__spec__")
        yield Method(contract.name, function, hints[:n], tail, contexts, how, annotations[:n], spec)


def _is_context(contract: Contract, name: str, annotation: Any) -> bool:
    if contract.context is None:
        return False
    if annotation is _EMPTY:
        return name == contract.context_name
    return all(isinstance(member, type) and issubclass(member, contract.context) for member in members(annotation))


def refuse_twin(old: Method, new: Method) -> None:
    """Raise for two functions of one file that differ only in annotations that do not dispatch: one would replace the other."""
    first, second = (inspect.unwrap(m.function) for m in (old, new))
    files = [getattr(getattr(f, "__code__", None), "co_filename", None) for f in (first, second)]
    run_again = old.spec is not new.spec or first.__globals__ is not second.__globals__
    if files[0] != files[1] or run_again or files[0] in ("<stdin>", "<string>"):  # the file name of all input at a prompt
        return
    for a, b in zip(old.written, new.written, strict=True):
        if name_of(a) != name_of(b):
            raise TypeError(
                f"{new} at {new.location} and at {old.location} differ only in the annotations {name_of(a)} and "
                f"{name_of(b)}, which do not dispatch: only classes do. Annotate with different classes, or write one method."
            )
