"""`Verb`: a generic function that chooses a method by the types of its positional arguments.

It is a thin object: plum says which of two signatures is the more specific, the verb remembers the answers, so that
a call of types that were seen before is one dictionary look-up; and it knows which answers a new method changes.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from fulmen.dispatching import errors as lookup_errors
from fulmen.dispatching.errors import MissingMethodError, OutdatedInstanceError
from fulmen.dispatching.lazy_libraries import meet
from fulmen.dispatching.methods import Method, best, names_around, read_methods, refuse_twin
from fulmen.dispatching.redefinition import check_definitions, full_name, mentions, moved, notice, superseded
from fulmen.dispatching.resolution import NOTHING, Around, HandOn, Question, Recorder, innermost, kind_of, quick_call, same

__all__ = ["BindingVerb", "Verb", "generation", "lock", "recorded", "start_afresh", "supersede"]

lock = threading.RLock()
_all: weakref.WeakSet[Verb] = weakref.WeakSet()
_recording: list[Recorder] = []  # what `explain` listens to


class Verb:
    """A generic function: what it does is chosen by the types of its positional arguments; options follow `*`.

    Where the contract takes a *context* (`Mode`, `Plan`), it comes last, and methods and callers may leave it out: a
    call without one reads what is bound to the first argument, or else the default. The other arguments decide first,
    and the context only between methods that are equal in them.

    **Extending.** `@dispatch def name(…)` with annotated arguments, or `@name.dispatch` on a function of any name.
    """

    __name__: str
    __qualname__: str

    def __init__(self, contract: Callable[..., Any], **options: Any) -> None:
        self._methods: dict[tuple[Any, ...], Method] = {}
        self._around: dict[type, Callable[..., Any]] = {}
        self._answers: dict[Question, Any] = {}
        # What to call with the arguments alone, by their types and that of the bound context: the quick way.
        self._calls: dict[tuple[type, ...], Callable[..., Any]] = {}
        self._names: dict[tuple[str, str], type] = {}  # the classes in signatures, by name
        self._declare(contract, **options)
        _all.add(self)

    def declare_again(self, contract: Callable[..., Any], **options: Any) -> bool:
        """Take another contract and keep the methods. Returns whether an answer that was given is no longer right."""
        self._declare(contract, **options)
        return self._refresh(lambda question: True)

    def _declare(
        self,
        contract: Callable[..., Any],
        *,
        context: type | None = None,
        default: Any = None,
        bind: Callable[[Any, Any], Any] | None = None,
        hands_on: bool = True,
        prepare: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, contract)
        self.prepare = prepare
        self.contract = contract
        self.context, self.default, self.bind, self.hands_on = context, default, bind, hands_on
        self.context_name = context.__name__.lower() if context else ""
        parameters = inspect.signature(contract).parameters.values()
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.positions = {p.name for p in parameters if p.kind in by_position} | {self.context_name}

    # Calling

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not options:
            # Most calls have two arguments, and `map` takes a third of the time.
            kinds = (type(args[0]), type(args[1])) if len(args) == 2 else (*map(type, args),)
            call = self._calls.get(kinds)
            if call is not None:
                return call(*args)
        return self._general_call(args, options)

    def _general_call(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = args
        args, context = self._split(args)
        if self.prepare is not None and len(args) > 1:
            args = (args[0], self.prepare(args[0], args[1]), *args[2:])
        question = Question(type(context), (*map(kind_of, args),))
        if self.context is not None and self.context_name in options:
            raise TypeError(lookup_errors.by_keyword(self, question.args, [*options], [self.context_name]))
        answer = self._answer(question, options)
        if _recording:
            return _recording[-1].call(self, question, answer, args, context, options)
        if isinstance(answer, Method) and args and len(args) == len(given) and all(map(operator.is_, args, given)):
            self._quicken(question, answer, args)
        return answer(args, context, options)

    def _split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
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

    def _quicken(self, question: Question, method: Method, args: tuple[Any, ...]) -> None:
        """Let calls like this one take the quick way from now on."""
        bound = self.bind is not None and isinstance(getattr(args[0], "mode", None), self.context or ())
        with lock:
            if not _recording and self._answers.get(question) is method:
                self._calls[self._kinds(args)] = quick_call(method, bound, self.default)

    def _kinds(self, args: tuple[Any, ...]) -> tuple[type, ...]:
        return (*map(type, args),)

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
        args, context = self._split(args)
        return self._answer(Question(kind or type(context), signature, True), options)(args, context, options)

    def method(self, *args: Any) -> Method:
        """The method that a call with these arguments ends in, following wrappers to their parts. Raises as the call."""
        args, context = self._split(args)
        answer = innermost(self._answer(Question(type(context), (*map(kind_of, args),)), (), asked=True))
        return self.method(*answer.onward(args, context)) if isinstance(answer, HandOn) else answer

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
        meet(question.args)  # which may register methods
        args, methods = question.args, self._methods.values()
        check_definitions(question, self._known_names(), _move_methods)
        wrapper = not question.next_method and self.hands_on and bool(args) and hasattr(args[0], "__part__")
        if wrapper:
            # A wrapper's own methods are those on wrapper types; what it has none for goes to its part.
            own = (m for m in methods if m.hints)
            methods = [m for m in own if any(hasattr(k, "__part__") and issubclass(args[0], k) for k in m.members[0])]
        found = best(methods, question.context, args)
        if len(found) > 1:
            raise lookup_errors.ambiguous(self, args, question.context, found)
        if not found and not wrapper:
            raise lookup_errors.missing(self, args, question.context, [*options])
        answer: Any = found[0] if found else HandOn(self)
        if not question.next_method:
            for kind, around in self._around.items():
                if args and issubclass(args[0], kind):
                    answer = Around(around, answer)
        return answer

    def _known_names(self) -> Mapping[tuple[str, str], type]:
        if not self._names:
            self._names = {full_name(kind): kind for m in self._methods.values() for hint in m.members for kind in hint}
        return self._names

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb:
        """Register a method, whatever the function's own name is; returns the verb."""
        namespace = inspect.unwrap(function).__globals__
        added = list(read_methods(self, function, functools.cache(lambda: names_around(namespace))))
        with lock:
            for method in added:
                if method.key in self._methods:
                    refuse_twin(self._methods[method.key], method)
            stale = False
            for kind in {kind for m in added for hint in m.members for kind in hint}:
                stale |= notice(kind, self._known_names(), _move_methods)
            self._methods.update((method.key, method) for method in added)
            if self._names:
                self._names.update((full_name(kind), kind) for m in added for hint in m.members for kind in hint)
            stale |= self._refresh(lambda q: any(m.fits(q.context, q.args) for m in added))
        start_afresh(stale, f"{added[0]} ({_place(added[0])})" if stale else "")
        return self

    def around(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what runs round every method whose first argument is of this kind: `f(call, *args, **options)`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            with lock:
                self._around[kind] = function
                stale = self._refresh(lambda q: bool(q.args) and issubclass(q.args[0], kind))
            start_afresh(stale, f"{function.__name__} around {self.__name__}({kind.__name__})")
            return function

        return register

    def restore(self, methods: Sequence[Method]) -> None:
        """Have these methods and no others, as `methods` gave them before; for tests that register methods."""
        with lock:
            changed = {*self._methods.values()} ^ {*methods}
            self._methods, self._names = {m.key: m for m in methods}, {}
            stale = self._refresh(lambda q: any(m.fits(q.context, q.args) for m in changed))
        start_afresh(stale, f"restoring the methods of {self.__name__}")

    def _refresh(self, concerned: Callable[[Question], bool]) -> bool:
        """Ask again what a change may concern. Returns whether an answer that was given is no longer right."""
        stale = False
        for question, answer in list(self._answers.items()):
            if concerned(question):
                try:
                    now = self.resolve(question)
                except TypeError:
                    now = NOTHING
                if same(now, answer):
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

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self._methods)} methods>"

    def _repr_html_(self) -> str:
        from fulmen.inspect import methods_table

        return methods_table(self)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


class BindingVerb(Verb):
    """A verb whose context is bound to the first argument, and read from there."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            if args and not options:
                bound = type(getattr(args[0], "mode", None))
                kinds = (bound, type(args[0]), type(args[1])) if len(args) == 2 else (bound, *map(type, args))
                call = self._calls.get(kinds)
                if call is not None:
                    return call(*args)
            return self._general_call(args, options)
        except (AttributeError, TypeError, ValueError) as error:
            self._explain(error, args)
            raise

    def _explain(self, error: Exception, args: tuple[Any, ...]) -> None:
        """Raise something better where what NumPy or JAX says is due to arrays that are not there yet."""
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        if BindingVerb.__call__.__code__ in codes[1:] or codes[-1].co_filename == __file__ or "fm.init" in str(error):
            return  # an inner call has looked already, or it says itself what is wrong
        from fulmen.core.leaves import Component, missing, require_arrays

        if args and isinstance(args[0], Component):
            try:
                absent = missing(args[0])
            except Exception:  # what keeps its arrays from being drawn is another matter
                return
            if absent:
                require_arrays(args[0], self.__name__)

    def _kinds(self, args: tuple[Any, ...]) -> tuple[type, ...]:
        return (type(getattr(args[0], "mode", None)), *map(type, args))


def recorded(function: Callable[[], Any]) -> list[tuple[int, Verb, tuple[type, ...], Any]]:
    """The verbs that were called while `function` ran: depth, verb, types and answer of each."""
    recorder = Recorder()
    with lock:
        _recording.append(recorder)
        for each in list(_all):
            each._calls.clear()
    try:
        function()
    finally:
        _recording.remove(recorder)
    return recorder.calls


# Fresh code


def generation() -> int:
    """A number that rises when compiled code is dropped; for what is remembered on the host of what tracing found."""
    return _generation


_generation = 0


def _place(method: Method) -> str:
    from fulmen.inspect.text import place

    return place(method.location, method.module)


def start_afresh(stale: bool, what: str) -> None:
    """Make compiled callers ask again. Not under the lock: JAX has locks of its own, and may be tracing elsewhere."""
    global _generation
    if stale:
        _generation += 1
        for each in list(_all):
            each._calls.clear()  # what is prepared for one verb may rest on another's answers
        jax.clear_caches()
        print(f"fulmen: {what} replaces what was compiled; caches cleared", file=sys.stderr)


def supersede(old: type, new: type) -> None:
    """A class was defined again: its methods belong to the new definition, and old instances are told to be rebuilt."""
    start_afresh(_move_methods(old, new), f"the new definition of {new.__name__} ({new.__module__})")


def _move_methods(old: type, new: type) -> bool:
    stale = False
    with lock:
        superseded[old] = new
        for each in list(_all):
            for method in [m for m in each._methods.values() if mentions(m, old)]:
                del each._methods[method.key]
                fresh = moved(method, old, new)
                each._methods.setdefault(fresh.key, fresh)
                each._names = {}
            if old in each._around:
                each._around.setdefault(new, each._around.pop(old))
            stale |= each._refresh(lambda q: any(issubclass(kind, old) for kind in (q.context, *q.args)))
    return stale
