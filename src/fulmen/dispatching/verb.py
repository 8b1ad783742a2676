"""`Verb`: a generic function that chooses a method by the types of its positional arguments.

Its methods are in a plum function, which orders and resolves them. The verb remembers the answers, so that a call of types
that were seen before is one dictionary look-up, and knows which answers a new method changes.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plum

from fulmen.dispatching import errors, hooks
from fulmen.dispatching.annotations import names_around
from fulmen.dispatching.answers import NOTHING, Answers, Question, innermost, kind_of, quick_call
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.errors import MissingMethodError, OutdatedInstanceError
from fulmen.dispatching.fresh_code import all_verbs, lock, recorder, start_afresh
from fulmen.dispatching.lazy_libraries import meet
from fulmen.dispatching.method_table import MethodTable, hand_on_to
from fulmen.dispatching.methods import Method, plain_function, read_methods, refuse_twin
from fulmen.dispatching.redefinition import check_definitions, learn
from fulmen.dispatching.resolution import less, overridden, package
from fulmen.dispatching.warning import warn

__all__ = ["Verb"]


class Verb:
    """A generic function: what it does is chosen by the types of its positional arguments; options follow `*`.

    Where the contract takes a *context* (`Mode`, `Plan`), it comes last, and methods and callers may leave it out: a
    call without one reads what is bound to the first argument, or else the default. The other arguments decide first,
    and the context only between methods that are equal in them.

    **Extending.** `@dispatch def name(…)` with annotated arguments, or `@name.dispatch` on a function of any name.

    Attributes:
        contract: the function whose signature and docstring are the contract.
        context: the class of contexts, or None.
    """

    __name__: str
    __qualname__: str

    def __init__(self, contract: Contract) -> None:
        self._answers = Answers()
        # What to call with the arguments alone, by the types of the arguments and of what is bound: the quick way.
        self._calls: dict[tuple[type, ...], Callable[..., Any]] = {}
        self._table = MethodTable()
        self._declare(contract)
        all_verbs.add(self)

    def declare_again(self, contract: Contract) -> bool:
        """Take another contract and keep the methods. Returns whether an answer that was given is no longer right."""
        with lock:
            self._declare(contract)
            return self._refresh(lambda question: True)

    def _declare(self, contract: Contract) -> None:
        functools.update_wrapper(self, contract.function)
        self._contract, self.contract, self.context = contract, contract.function, contract.context
        self._binds = contract.bind is not None
        self._table.declare(contract, hand_on_to(self, contract) if contract.hands_on else None)

    # Calling

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            if args and not options:
                bound = type(getattr(args[0], "mode", None)) if self._binds else None
                # Most calls have two arguments, and `map` takes a third of the time.
                kinds = (bound, type(args[0]), type(args[1])) if len(args) == 2 else (bound, *map(type, args))
                call = self._calls.get(kinds)  # type: ignore[arg-type]
                if call is not None:
                    return call(*args)
            return self._general_call(args, options)
        except (AttributeError, TypeError, ValueError) as error:
            if self._binds:
                errors.add_advice(error, args, self.__name__)
            raise

    def _general_call(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given, contract = args, self._contract
        args, context = contract.split(args)
        if contract.prepare is not None and len(args) > 1:
            args = (args[0], contract.prepare(args[0], args[1]), *args[2:])
        question = Question(type(context), (*map(kind_of, args),))
        if contract.context_name in options:
            raise TypeError(errors.by_keyword(contract, question.args, [*options], [contract.context_name]))
        answer = self._answer(question, options)
        listening = recorder()
        if listening is not None:
            method = innermost(answer)
            chosen = None if method is self._table.hand_on else method
            kinds = (question.context, *question.args)
            return listening.call(self, kinds, chosen, lambda: answer.call(args, context, options))
        if isinstance(answer, Method) and args and len(args) == len(given) and all(map(operator.is_, args, given)):
            self._quicken(question, answer, args)
        return answer.call(args, context, options)

    def _quicken(self, question: Question, method: Method, args: tuple[Any, ...]) -> None:
        """Let calls like this one take the quick way from now on."""
        bound = getattr(args[0], "mode", None) if self._binds else None
        with lock:
            if recorder() is None and self._answers.get(question) is method:
                kinds = (type(bound) if self._binds else None, *map(type, args))
                reads = self._binds and isinstance(bound, self.context or ())
                self._calls[kinds] = quick_call(method, reads, self._contract.default)  # type: ignore[index]

    def forget_calls(self) -> None:
        """Empty the quick table."""
        self._calls.clear()

    def invoke(self, *signature: Any) -> Callable[..., Any]:
        """The method for other types than the arguments' own, as in calling the next more general method.

        Args:
            *signature: a type per positional argument; a context's type may follow.

        Returns:
            A function of the same arguments as the verb's.

        >>> import fulmen as fm
        >>> fm.loss.invoke(fm.System, object)  # doctest: +ELLIPSIS
        functools.partial(...)
        """
        kind = None
        if self.context is not None and signature and issubclass(signature[-1], self.context):
            signature, kind = signature[:-1], signature[-1]
        return functools.partial(self._invoke, signature, kind)

    def _invoke(self, signature: tuple[type, ...], kind: type | None, /, *args: Any, **options: Any) -> Any:
        args, context = self._contract.split(args)
        return self._answer(Question(kind or type(context), signature, True), options).call(args, context, options)

    def method(self, *args: Any) -> Method:
        """The method that a call with these arguments ends in, following wrappers to their parts. Raises as the call."""
        split, context = self._contract.split(args)
        found = innermost(self._answer(Question(type(context), (*map(kind_of, split),)), (), asked=True))
        if found is self._table.hand_on:
            passed = () if self.context is None or self._binds else (context,)
            return self.method(split[0].__part__, *split[1:], *passed)
        return found

    def has(self, *args: Any) -> bool:
        """Whether a call with these arguments would find a method."""
        try:
            self.method(*args)
        except OutdatedInstanceError:
            raise
        except MissingMethodError:
            return False
        return True

    # Finding a method

    def _answer(self, question: Question, options: Iterable[str], asked: bool = False) -> Any:
        answer = self._answers.get(question)
        if answer is None or answer is NOTHING:
            meet(question.args)  # which may register methods
            with lock:
                try:
                    answer = self.resolve(question, options)
                except TypeError:
                    if asked:  # what is compiled may rest on there being no method
                        self._answers[question] = NOTHING
                    raise
                self._answers[question] = answer
        return answer

    def resolve(self, question: Question, options: Iterable[str] = ()) -> Any:
        """Find an answer that is not remembered. Raises where there is none, or more than one."""
        context, args = question.context, question.args
        check_definitions((context, *args))
        found = self._table.most_specific(context, args)
        if len(found) > 1:
            raise errors.ambiguous(self._contract, args, context, found)
        if not found:
            raise errors.missing(self._contract, self.methods, args, context, [*options])
        return found[0] if question.invoked or not args else self._table.surround(found[0], args[0], self.context)

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb:
        """Register a method; the function may have any name. Returns the verb."""
        plain = plain_function(function)
        names = functools.cache(lambda: names_around(plain.__globals__))
        self.register(list(read_methods(self._contract, function, plain, names)))
        return self

    def register(self, added: Sequence[Method]) -> None:
        """Register methods, each in place of one with the same signature."""
        with lock:
            pairs = [(self._table.by_key[m.key], m) for m in added if m.key in self._table.by_key]
            for known, new in pairs:
                refuse_twin(known, new)
            old = overridden(self.methods, added[0]) if package(added[0].module) != package(self.__module__) else None
            stale = learn({kind for m in added for hint in m.members for kind in hint})
            for method in added:
                self._table.add(method)
            stale |= self._refresh(lambda q: any(m.fits(q.context, q.args) and not self._beats(q, m) for m in added))
        if stale:
            start_afresh(f"{added[0]} was {'redefined' if pairs else 'added'} at {added[0].place}")
        if old is not None:
            warn(
                f"{old}, defined at {old.place}, is overridden by {added[0]} at {added[0].place}, for all who use these types."
            )

    def _beats(self, question: Question, method: Method) -> bool:
        """Whether the answer to a question is more specific than a method by the arguments alone."""
        answer = innermost(self._answers[question])
        return isinstance(answer, Method) and less(answer.signature, method.signature)

    def around(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what runs around every method whose first argument is of this class: `f(call, *args, **options)`.

        Where several do, that of the most derived class is outermost. `invoke` leaves them out.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            with lock:
                self._table.around[kind] = function
                stale = self._refresh(lambda q: bool(q.args) and issubclass(q.args[0], kind))
            if stale:
                start_afresh(f"{function.__name__} was defined around {self.__name__}({kind.__name__})")
            return function

        return register

    def restore(self, methods: Sequence[Method]) -> None:
        """Have these methods and no others, as `methods` gave them before; for tests that register methods."""
        with lock:
            changed = {*self.methods} ^ {*methods}
            if changed:
                self._table.replace(methods)
            stale = self._refresh(lambda q: any(m.fits(q.context, q.args) for m in changed))
        if stale:
            start_afresh(f"the methods of {self.__name__} were restored")

    def move(self, old: type, new: type) -> bool:
        """Let the methods on a class be methods on its new definition. Returns whether that changed an answer."""
        self._table.move(old, new)
        return self._refresh(lambda q: any(issubclass(kind, old) for kind in (q.context, *q.args)))

    def _refresh(self, concerned: Callable[[Question], bool]) -> bool:
        """Ask again what a change may concern. Returns whether an answer that was given is no longer right."""
        self._calls.clear()
        return self._answers.refresh(self.resolve, concerned)

    # Looking

    @property
    def methods(self) -> list[Method]:
        """All methods, in the order in which they were registered."""
        with lock:
            return list(self._table.by_key.values())

    @property
    def plum(self) -> plum.Function:
        """The plum function that holds the methods, with the context's type first in each signature."""
        with lock:
            return self._table.plum

    @property
    def candidates(self) -> list[Method]:
        """The methods that plum holds: all, and the one that hands wrappers' calls to their parts."""
        return self._table.candidates

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self.methods)} methods>"

    def _repr_html_(self) -> str:
        return hooks.verb_html(self)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)
