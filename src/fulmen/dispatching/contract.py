"""`Contract`: the name and signature of a verb, and how it treats contexts, wrappers and data."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contract:
    """The declaration of a verb.

    Attributes:
        function: the function whose signature and docstring are the contract; its body is never run.
        context: a class; an instance of it may follow the positional arguments.
        default: the context of a call that has none.
        bind: how a context is bound to the first argument; without it the context is passed to the method.
        delegates: whether a wrapper without a method delegates the call to its part.
        prepare: `f(first, second)` returns the second argument that methods get.
    """

    function: Callable[..., Any]
    context: type | None = None
    default: Any = None
    bind: Callable[[Any, Any], Any] | None = None
    delegates: bool = True
    prepare: Callable[[Any, Any], Any] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    @functools.cached_property
    def context_name(self) -> str:
        """The name of the parameter that takes the context."""
        return self.context.__name__.lower() if self.context else ""

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
