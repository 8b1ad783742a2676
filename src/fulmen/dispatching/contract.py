"""`Contract`: the name and signature of a verb, and how it treats contexts, wrappers and data."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contract:
    """The declaration of a verb.

    Attributes:
        function: the function whose signature and docstring are the contract; its body is never run.
        context: a class; an instance of it may follow the positional arguments.
        bind: how a context is bound to the first argument; without it the context is passed to the method.
        delegates: whether a wrapper without a method delegates the call to its part.
        prepare: `f(first, second)` returns the second argument that methods get.
    """

    function: Callable[..., Any]
    context: type | None = None
    bind: Callable[[Any, Any], Any] | None = None
    delegates: bool = True
    prepare: Callable[[Any, Any], Any] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    @functools.cached_property
    def contexts(self) -> tuple[type, ...]:
        """The classes of contexts of a method that names none."""
        return (self.context,) if self.context else ()

    @functools.cached_property
    def context_name(self) -> str:
        """The name of the parameter that takes the context."""
        return self.context.__name__.lower() if self.context else ""

    @functools.cached_property
    def default(self) -> Any:
        """The context of a call that has none: the default of the parameter that takes it."""
        taken = self.signature.parameters.get(self.context_name)
        return None if taken is None or taken.default is taken.empty else taken.default

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The defaults of the keyword options, by name."""
        keywords = (p for p in self.signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
        return {p.name: p.default for p in keywords if p.name != self.context_name}

    @functools.cached_property
    def call(self) -> str:
        """How the verb is called, for messages: the arguments by position."""
        parameters = [p for p in self.signature.parameters.values() if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
        context = [self.context_name] if self.context_name in self.signature.parameters else []
        names = [f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name for p in parameters if p.name != self.context_name]
        return f"{self.name}({', '.join([*names, *context, *['…'] * bool(self.options)])})"

    @functools.cached_property
    def counts(self) -> tuple[int, float]:
        """The smallest and the largest number of positional arguments without the context."""
        names = [p for name, p in self.signature.parameters.items() if name in self.positions and name != self.context_name]
        several = any(p.kind is p.VAR_POSITIONAL for p in self.signature.parameters.values())
        return sum(p.default is p.empty for p in names), math.inf if several else len(names)

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @functools.cached_property
    def positions(self) -> set[str]:
        """The names of the arguments that must be positional."""
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {p.name for p in self.signature.parameters.values() if p.kind in by_position} | {self.context_name}

    def split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        """The arguments without the context, and the context: given (and now bound), bound before, or the default."""
        if self.context is None:
            return args, None
        given = None
        if args and isinstance(args[-1], self.context):
            args, given = args[:-1], args[-1]
        if self.bind is None or not args:
            return args, given or self.default
        if given is not None:
            args = (self.bind(args[0], given), *args[1:])
        bound = getattr(args[0], "mode", None)
        return args, bound if isinstance(bound, self.context) else given or self.default
