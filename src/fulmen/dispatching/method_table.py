"""`MethodTable`: a verb's methods, held, ordered and resolved by a plum function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import plum

from fulmen.dispatching.annotations import comparable
from fulmen.dispatching.answers import Around
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.methods import Method
from fulmen.dispatching.redefinition import mentions, moved
from fulmen.dispatching.resolution import Wrapper, settle

__all__ = ["Held", "MethodTable", "hand_on_to"]


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


def hand_on_to(verb: Callable[..., Any], contract: Contract) -> Method:
    """The method by which a verb hands a wrapper's call to the wrapper's part, which is bound to the wrapper's mode."""

    def hand_on(wrapper, *args, **options):
        return verb(wrapper.__part__, *args, **options)

    contexts = (contract.context,) if contract.context else ()
    takes = "last" if contexts and contract.bind is None else None
    return Method(contract.name, hand_on, (Wrapper,), object, contexts, takes, hands_on=True)


class MethodTable:
    """The methods of a verb.

    Attributes:
        around: functions that run around the methods, by the class of the first argument.
        by_key: the methods but `hand_on`, by their signatures. plum compares each new method with all others, so it is given
            them when it is first asked; until then this tells which method another one replaces.
    """

    def __init__(self) -> None:
        self.around: dict[type, Callable[..., Any]] = {}
        self.by_key: dict[tuple[Any, ...], Method] = {}

    def declare(self, contract: Contract, hand_on: Method | None) -> None:
        """Set the verb's contract, and the method that hands wrappers' calls to their parts; keep the others."""
        self.contract, self.hand_on = contract, hand_on
        self.replace(self.by_key.values())

    def replace(self, methods: Iterable[Method]) -> None:
        """Have these methods and no others; plum cannot take one back."""
        self.by_key = {m.key: m for m in methods}
        self._function, self._waiting = plum.Function(self.contract.function), self.candidates

    def add(self, method: Method) -> None:
        """Hold one more method, in place of one with the same signature."""
        self.by_key[method.key] = method
        self._waiting.append(method)

    @property
    def plum(self) -> plum.Function:
        """The plum function that holds the methods; the context's type is first in each signature."""
        for method in self._waiting:
            self._function.register(Held(method), signature=method.registered)
        self._waiting = []
        return self._function

    @property
    def candidates(self) -> list[Method]:
        """All methods that a call can end in."""
        return [*([] if self.hand_on is None else [self.hand_on]), *self.by_key.values()]

    def most_specific(self, context: type, args: tuple[type, ...]) -> list[Method]:
        """The method that fits best, as a list: of none, of one, or of several that are ambiguous.

        plum decides, but for what it does not know: the arguments decide first, the context only between methods that are
        equal in them; a method without `*args` comes before one that has them.
        """
        types = (context, *args) if self.contract.context else args
        if all(map(comparable, types)):
            try:
                method = self.plum.resolve_method(plum.Signature(*types))[0].method  # type: ignore[attr-defined]
            except (plum.AmbiguousLookupError, plum.NotFoundLookupError):
                pass
            else:
                if method.rest is None:
                    return [method]
        return settle([m for m in self.candidates if m.fits(context, args)], args)

    def surround(self, method: Method, kind: type, context: type | None) -> Any:
        """The method with what runs around it for a class of the first argument, that of the most derived class outermost."""
        answer: Any = method
        for base in reversed(kind.__mro__):
            if base in self.around:
                answer = Around(self.around[base], answer, context)
        return answer

    def move(self, old: type, new: type) -> None:
        """Let the methods on a class be methods on its new definition, where that has none of the same signature."""
        renewed = [moved(m, old, new) for m in self.by_key.values() if mentions(m, old)]
        if renewed:
            kept = {m.key: m for m in self.by_key.values() if not mentions(m, old)}
            self.replace([*kept.values(), *(m for m in renewed if m.key not in kept)])
        if old in self.around:
            self.around.setdefault(new, self.around.pop(old))
