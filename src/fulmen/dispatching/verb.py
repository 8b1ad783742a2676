"""`Verb`: a generic function that chooses a method by the types of its positional arguments.

Its methods are in a plum function, which orders and resolves them. The verb remembers the answers, so that a call of types
that were seen before is one dictionary look-up, and knows which answers a new method changes.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plum

from fulmen.dispatching import errors, hooks
from fulmen.dispatching.annotations import names_around
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.errors import MissingMethodError, OutdatedInstanceError
from fulmen.dispatching.fresh_code import all_verbs, lock, recorder, start_afresh
from fulmen.dispatching.lazy_libraries import meet
from fulmen.dispatching.location import place
from fulmen.dispatching.methods import Method, context_for, plain_function, read_methods, refuse_twin
from fulmen.dispatching.redefinition import check_definitions, learn, mentions, moved
from fulmen.dispatching.resolution import Question, hand_on_to, hold, kind_of, most_specific
from fulmen.dispatching.warning import warn

__all__ = ["Verb"]

_NOTHING: Any = object()  # the answer that there is no method, or no single one


class Verb:
    """A generic function: what it does is chosen by the types of its positional arguments; options follow `*`.

    Where the contract takes a *context* (`Mode`, `Plan`), it comes last, and methods and callers may leave it out: a
    call without one reads what is bound to the first argument, or else the default. The other arguments decide first,
    and the context only between methods that are equal in them.

    **Extending.** `@dispatch def name(…)` with annotated arguments, or `@name.dispatch` on a function of any name.

    Attributes:
        contract: the function whose signature and docstring are the contract.
        context: the class of contexts, or None.
        plum: the plum function that holds the methods, with the context's type first in each signature.
    """

    __name__: str
    __qualname__: str

    def __init__(self, contract: Contract) -> None:
        self._methods: dict[tuple[Any, ...], Method] = {}  # by signature: plum registers when it is first asked
        self._around: dict[type, Callable[..., Any]] = {}
        self._answers: dict[Question, Any] = {}
        # What to call with the arguments alone, by the types of the arguments and of what is bound: the quick way.
        self._calls: dict[tuple[type, ...], Callable[..., Any]] = {}
        self._hand_on: Method | None = None
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
        hand_on = hand_on_to(self, contract) if contract.hands_on else None
        if hand_on is not None and self._hand_on is not None:
            hand_on = dataclasses.replace(hand_on, function=self._hand_on.function)
        self._hand_on = hand_on
        self._hold(self._methods.values())

    def _hold(self, methods: Iterable[Method]) -> None:
        """Have these methods and no others; plum cannot take one back."""
        self._methods = {method.key: method for method in methods}
        self.plum = plum.Function(self.contract)
        for method in self.candidates:
            hold(self.plum, method)

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
            method = _innermost(answer)
            chosen = None if method is self._hand_on else method
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
                self._calls[kinds] = _quick_call(method, reads, self._contract.default)  # type: ignore[index]

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
        found = _innermost(self._answer(Question(type(context), (*map(kind_of, split),)), (), asked=True))
        if found is self._hand_on:
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
        if answer is None or answer is _NOTHING:
            meet(question.args)  # which may register methods
            with lock:
                try:
                    answer = self.resolve(question, options)
                except TypeError:
                    if asked:  # what is compiled may rest on there being no method
                        self._answers[question] = _NOTHING
                    raise
                self._answers[question] = answer
        return answer

    def resolve(self, question: Question, options: Iterable[str] = ()) -> Any:
        """Find an answer that is not remembered. Raises where there is none, or more than one."""
        context, args = question.context, question.args
        check_definitions((context, *args))
        found = most_specific(self.plum, self.candidates, question)
        if len(found) > 1:
            raise errors.ambiguous(self._contract, args, context, found)
        if not found:
            raise errors.missing(self._contract, self.methods, args, context, [*options])
        answer: Any = found[0]
        for kind in reversed(args[0].__mro__ if args and not question.invoked else ()):
            if kind in self._around:
                answer = _Around(self._around[kind], answer)
        return answer

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb:
        """Register a method; the function may have any name. Returns the verb."""
        namespace = plain_function(function).__globals__
        added = list(read_methods(self._contract, function, functools.cache(lambda: names_around(namespace))))
        self.register(added)
        return self

    def register(self, added: Sequence[Method]) -> None:
        """Register methods, each in place of one with the same signature."""
        with lock:
            replaced = [self._methods[m.key] for m in added if m.key in self._methods]
            for old, new in zip(replaced, (m for m in added if m.key in self._methods)):
                refuse_twin(old, new)
            stale = learn({kind for m in added for hint in m.members for kind in hint})
            for method in added:
                self._methods[method.key] = method
                hold(self.plum, method)
            stale |= self._refresh(lambda q: any(m.fits(q.context, q.args) for m in added))
        where = place(added[0].location, added[0].module)
        start_afresh(stale, f"{added[0]} was {'redefined' if replaced else 'added'} at {where}")
        for old in replaced[:1]:
            if old.module != added[0].module:
                warn(f"{old}, defined at {place(old.location, old.module)}, is replaced by the one at {where}.")

    def around(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what runs around every method whose first argument is of this class: `f(call, *args, **options)`.

        Where several do, that of the most derived class is outermost. `invoke` leaves them out.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            with lock:
                self._around[kind] = function
                stale = self._refresh(lambda q: bool(q.args) and issubclass(q.args[0], kind))
            start_afresh(stale, f"{function.__name__} was defined around {self.__name__}({kind.__name__})")
            return function

        return register

    def restore(self, methods: Sequence[Method]) -> None:
        """Have these methods and no others, as `methods` gave them before; for tests that register methods."""
        with lock:
            changed = {*self._methods.values()} ^ {*methods}
            if changed:
                self._hold(methods)
            stale = self._refresh(lambda q: any(m.fits(q.context, q.args) for m in changed))
        start_afresh(stale, f"the methods of {self.__name__} were restored")

    def move(self, old: type, new: type) -> bool:
        """Let the methods on a class be methods on its new definition. Returns whether that changed an answer."""
        renewed = [moved(m, old, new) for m in self._methods.values() if mentions(m, old)]
        if renewed:
            kept = [m for m in self._methods.values() if not mentions(m, old)]
            known = {m.key for m in kept}
            self._hold([*kept, *(m for m in renewed if m.key not in known)])
        if old in self._around:
            self._around.setdefault(new, self._around.pop(old))
        return self._refresh(lambda q: any(issubclass(kind, old) for kind in (q.context, *q.args)))

    def _refresh(self, concerned: Callable[[Question], bool]) -> bool:
        """Ask again what a change may concern. Returns whether an answer that was given is no longer right."""
        stale = False
        for question, answer in list(self._answers.items()):
            if concerned(question):
                try:
                    now = self.resolve(question)
                except TypeError:
                    now = _NOTHING
                if _same(now, answer):
                    self._answers[question] = now
                else:
                    self._answers.pop(question, None)
                    stale = True
        self._calls.clear()
        return stale

    # Looking

    @property
    def methods(self) -> list[Method]:
        """All methods, in the order in which they were registered."""
        with lock:
            return list(self._methods.values())

    @property
    def candidates(self) -> list[Method]:
        """The methods that plum holds: all, and the one that hands wrappers' calls to their parts."""
        return [*([] if self._hand_on is None else [self._hand_on]), *self.methods]

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self._methods)} methods>"

    def _repr_html_(self) -> str:
        return hooks.verb_html(self)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


@dataclasses.dataclass(frozen=True)
class _Around:
    """An answer with a function that runs around it."""

    function: Callable[..., Any]
    inner: Any

    def call(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self.inner.call(args, getattr(args[0], "mode", None) or context, options)

        return self.function(call, *args, **options)


def _innermost(answer: Any) -> Method:
    """The method that others run around."""
    while isinstance(answer, _Around):
        answer = answer.inner
    return answer


def _same(a: Any, b: Any) -> bool:
    """Whether two answers do the same."""
    if isinstance(a, _Around) and isinstance(b, _Around):
        return a.function is b.function and _same(a.inner, b.inner)
    if isinstance(a, Method) and isinstance(b, Method):
        return a.function is b.function and a.takes == b.takes
    return a is b


def _quick_call(method: Method, bound: bool, default: Any) -> Callable[..., Any]:
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
