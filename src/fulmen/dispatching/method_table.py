"""`MethodTable`: the methods of a verb, and which of them the types of a call select."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import plum

from fulmen.dispatching import errors
from fulmen.dispatching.compiled_code import lock
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.method_cache import Around, CallTypes
from fulmen.dispatching.methods import Method
from fulmen.dispatching.redefinition import check_definitions, mentions, moved
from fulmen.dispatching.resolution import HasPart, best_by_own_rules


class PlumMethod:
    """A method as plum calls it: a function of the context, if the verb takes one, and the arguments."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.__name__, self.__module__, self.__wrapped__ = method.verb, method.module, inspect.unwrap(method.function)

    def __call__(self, *args, **options):  # unannotated, since plum converts results to an annotated type
        if self.method.contexts:
            return self.method.call(args[1:], args[0], options)
        return self.method.call(args, None, options)

    @property
    def __signature__(self) -> inspect.Signature:
        method, by_position = self.method, inspect.Parameter.POSITIONAL_ONLY
        names = ["context"] * bool(method.contexts) + [f"argument_{i}" for i, _ in enumerate(method.hints)]
        rest = [] if method.rest is None else [inspect.Parameter("rest", inspect.Parameter.VAR_POSITIONAL)]
        return inspect.Signature([*(inspect.Parameter(name, by_position) for name in names), *rest])


def delegate_to_part(verb: Callable[..., Any], contract: Contract) -> Method:
    """The method by which a verb delegates a wrapper's call to the wrapper's part, which has the wrapper's mode bound."""

    def delegate(wrapper, *args, **options):
        return verb(wrapper.__part__, *args, **options)

    takes = "last" if contract.context and contract.bind is None else None
    return Method(contract.name, delegate, (HasPart,), object, contract.contexts, takes, delegates=True)


class MethodTable:
    """The methods of a verb.

    Attributes:
        around: functions that run around the methods and when they do, by the class of the first argument.
        by_key: the methods by their signatures, without `delegate`.
        delegate: the method that delegates wrappers' calls to their parts, or None.
    """

    def __init__(self) -> None:
        self.around: dict[type, tuple[Callable[..., Any], Callable[[Any], bool] | None]] = {}
        self.by_key: dict[tuple[Any, ...], Method] = {}

    def declare(self, contract: Contract, delegate: Method | None) -> None:
        """Set the contract; the methods stay."""
        self.contract, self.delegate, self._plum = contract, delegate, plum.Function(contract.function)

    def replace(self, methods: Iterable[Method]) -> None:
        """Have these methods and no others."""
        self.by_key = {m.key: m for m in methods}
        self._plum.clear_cache()

    def add(self, method: Method) -> None:
        """Add a method; it replaces one with the same signature."""
        self.by_key[method.key] = method
        self._plum.clear_cache()

    @property
    def plum(self) -> plum.Function:
        """The methods as a plum function; the context's type is first in each signature.

        `register` is not used, since it compares each method with all others to find the one that it replaces.
        """
        with lock:
            if not self._plum.methods:
                self._plum.methods.extend(
                    plum.Method(PlumMethod(m), m.signature_with_context, function_name=m.verb, return_type=Any)
                    for m in self.candidates
                )
        return self._plum

    @property
    def candidates(self) -> list[Method]:
        """All methods that a call can select."""
        return [*([] if self.delegate is None else [self.delegate]), *self.by_key.values()]

    def best(self, context: type, args: tuple[type, ...]) -> list[Method]:
        """The method that fits best, as a list: of none, of one, or of several that are ambiguous."""
        function, target = self.plum, CallTypes(context, args).signature
        try:
            found = function.resolve_method(target)[0].method  # type: ignore[attr-defined]
            if found.rest is None:
                return [found]
        except plum.NotFoundLookupError:
            return []
        except plum.AmbiguousLookupError:
            pass
        # plum lets the context decide before `*args`, and among methods with `*args` the last one that was registered.
        return best_by_own_rules([m.implementation.method for m in function.methods if target <= m.signature], args)

    def resolve(self, types: CallTypes, options: Iterable[str] = ()) -> Any:
        """The method for the types of a call, with what runs around it. Raises where there is none, or more than one."""
        context, args, invoked = types
        check_definitions((context, *args))
        found = self.best(context, args)
        if len(found) > 1:
            raise errors.ambiguous(self.contract, args, context, found)
        if not found:
            raise errors.missing(self.contract, [*self.by_key.values()], args, context, [*options])
        resolved: Any = found[0]
        bases = () if invoked or not args else reversed(args[0].__mro__)
        for function, when in (self.around[base] for base in bases if base in self.around):
            if _takes(function, len(args)):  # the function for the most derived class is outermost
                resolved = Around(function, when, resolved, self.contract.context)
        return resolved

    def move(self, old: type, new: type) -> None:
        """Make the methods on a class methods on its new definition, unless that has one with the same signature."""
        renewed = [moved(m, old, new) for m in self.by_key.values() if mentions(m, old)]
        if renewed:
            kept = {m.key: m for m in self.by_key.values() if not mentions(m, old)}
            self.replace([*kept.values(), *(m for m in renewed if m.key not in kept)])
        if old in self.around:
            self.around.setdefault(new, self.around.pop(old))


def _takes(around: Callable[..., Any], n: int) -> bool:
    """Whether a function takes `call` and `n` arguments."""
    kinds = [p.kind for p in inspect.signature(around).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds or kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == n + 1
