"""Verbs: generic functions that choose a method by the types of their positional arguments.

A `Verb` is a thin object: plum says which of two signatures is the more specific, the verb remembers the answers, so that
a call of types that were seen before is one dictionary look-up; and it knows which answers a new method changes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import itertools
import operator
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from fulmen import lookup_errors
from fulmen.lookup_errors import AmbiguousMethodError, MissingMethodError, OutdatedInstanceError
from fulmen.methods import Method, best, context_for, members, names_around, read_methods, refuse_twin, union

__all__ = ["AmbiguousMethodError", "Method", "MissingMethodError", "Verb", "dispatch", "verb", "verbs"]

_lock = threading.RLock()
_verbs: dict[tuple[str, str], Verb] = {}  # those that can be found by name
_all: weakref.WeakSet[Verb] = weakref.WeakSet()
_superseded: dict[type, type] = {}  # an earlier definition of a class -> the one that replaced it
_recording: list[_Recorder] = []  # what `explain` listens to


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
        self._answers: dict[_Question, Any] = {}
        # What to call with the arguments alone, by their types and that of the bound context: the quick way.
        self._calls: dict[tuple[type, ...], Callable[..., Any]] = {}
        self._names: dict[tuple[str, str], type] = {}  # the classes in signatures, by name
        self._declare(contract, **options)
        _all.add(self)

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
        question = _Question(type(context), (*map(type, args),))
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

    def _quicken(self, question: _Question, method: Method, args: tuple[Any, ...]) -> None:
        """Let calls like this one take the quick way from now on."""
        bound = self.bind is not None and isinstance(getattr(args[0], "mode", None), self.context or ())
        with _lock:
            if not _recording and self._answers.get(question) is method:
                self._calls[self._kinds(args)] = _quick_call(method, bound, self.default)

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
        return self._answer(_Question(kind or type(context), signature, True), options)(args, context, options)

    def method(self, *args: Any) -> Method:
        """The method that a call with these arguments ends in, following wrappers to their parts. Raises as the call."""
        args, context = self._split(args)
        answer = self._answer(_Question(type(context), (*map(type, args),)), (), asked=True)
        while isinstance(answer, _Around):
            answer = answer.inner
        return self.method(*answer.onward(args, context)) if isinstance(answer, _HandOn) else answer

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

    def _answer(self, question: _Question, options: Iterable[str], asked: bool = False) -> Any:
        answer = self._answers.get(question)
        if answer is None or answer is _NOTHING:
            with _lock:
                try:
                    answer = self._resolve(question, options)
                except TypeError:
                    if asked:  # what is compiled may rest on there being no method
                        self._answers[question] = _NOTHING
                    raise
                self._answers[question] = answer
        return answer

    def _resolve(self, question: _Question, options: Iterable[str] = ()) -> Any:
        args, methods = question.args, self._methods.values()
        _check_definitions(question, self._known_names())
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
        answer: Any = found[0] if found else _HandOn(self)
        if not question.next_method:
            for kind, around in self._around.items():
                if args and issubclass(args[0], kind):
                    answer = _Around(around, answer)
        return answer

    def _known_names(self) -> Mapping[tuple[str, str], type]:
        if not self._names:
            self._names = {_full_name(kind): kind for m in self._methods.values() for hint in m.members for kind in hint}
        return self._names

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb:
        """Register a method, whatever the function's own name is; returns the verb."""
        namespace = inspect.unwrap(function).__globals__
        added = list(read_methods(self, function, functools.cache(lambda: names_around(namespace))))
        with _lock:
            for method in added:
                if method.key in self._methods:
                    refuse_twin(self._methods[method.key], method)
            stale = False
            for kind in {kind for m in added for hint in m.members for kind in hint}:
                stale |= _notice(kind, self._known_names())
            self._methods.update((method.key, method) for method in added)
            stale |= self._refresh(lambda q: any(m.fits(q.context, q.args) for m in added))
        _start_afresh(stale, f"{added[0]} ({_place(added[0])})" if stale else "")
        return self

    def around(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what runs round every method whose first argument is of this kind: `f(call, *args, **options)`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            with _lock:
                self._around[kind] = function
                stale = self._refresh(lambda q: bool(q.args) and issubclass(q.args[0], kind))
            _start_afresh(stale, f"{function.__name__} around {self.__name__}({kind.__name__})")
            return function

        return register

    def restore(self, methods: Sequence[Method]) -> None:
        """Have these methods and no others, as `methods` gave them before; for tests that register methods."""
        with _lock:
            changed = {*self._methods.values()} ^ {*methods}
            self._methods = {m.key: m for m in methods}
            stale = self._refresh(lambda q: any(m.fits(q.context, q.args) for m in changed))
        _start_afresh(stale, f"restoring the methods of {self.__name__}")

    def _refresh(self, concerned: Callable[[_Question], bool]) -> bool:
        """Ask again what a change may concern. Returns whether an answer that was given is no longer right."""
        stale = False
        self._names = {}
        for question, answer in list(self._answers.items()):
            if concerned(question):
                try:
                    now = self._resolve(question)
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
        with _lock:
            return list(self._methods.values())

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self._methods)} methods>"

    def _repr_html_(self) -> str:
        from fulmen.looking import methods_table

        return methods_table(self)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


class BindingVerb(Verb):
    """A verb whose context is bound to the first argument, and read from there."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        if args and not options:
            bound = type(getattr(args[0], "mode", None))
            kinds = (bound, type(args[0]), type(args[1])) if len(args) == 2 else (bound, *map(type, args))
            call = self._calls.get(kinds)
            if call is not None:
                return call(*args)
        return self._general_call(args, options)

    def _kinds(self, args: tuple[Any, ...]) -> tuple[type, ...]:
        return (type(getattr(args[0], "mode", None)), *map(type, args))


# Answers


class _Question(NamedTuple):
    """What was asked: the types of the context and the arguments, and whether it was `invoke`."""

    context: type
    args: tuple[type, ...]
    next_method: bool = False


_NOTHING: Any = object()  # the answer that there is no method, or no single one


@dataclasses.dataclass(frozen=True)
class _HandOn:
    """The answer of a wrapper that has no method of its own: the same verb on its part."""

    verb: Verb

    def onward(self, args: Sequence[Any], context: Any) -> tuple[Any, ...]:
        """The arguments of the call on the part, which has its mode bound if the wrapper has."""
        passed = () if self.verb.context is None or self.verb.bind is not None else (context,)
        return (args[0].__part__, *args[1:], *passed)

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        return self.verb(*self.onward(args, context), **options)


@dataclasses.dataclass(frozen=True)
class _Around:
    function: Callable[..., Any]
    inner: Any

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self.inner(args, getattr(args[0], "mode", None) or context, options)

        return self.function(call, *args, **options)


def _quick_call(method: Method, bound: bool, default: Any) -> Callable[..., Any]:
    """A method as a function of the arguments alone."""
    function, name, keyword = method.function, method.verb, method.takes
    if keyword is None:
        return function
    if keyword != "last":
        return lambda *args: method(args, args[0].mode if bound else default, {})
    if bound:
        return lambda *args: function(*args, args[0].mode.within(name))
    context = context_for(name, default)
    return lambda *args: function(*args, context)


def _same(a: Any, b: Any) -> bool:
    """Whether two answers do the same."""
    if isinstance(a, Method) and isinstance(b, Method):
        return a.function is b.function and a.takes == b.takes
    if isinstance(a, _Around) and isinstance(b, _Around):
        return a.function is b.function and _same(a.inner, b.inner)
    return a is b or (isinstance(a, _HandOn) and isinstance(b, _HandOn))


class _Recorder:
    """Notes which method each call chose, and at which depth, in the thread that asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Verb, tuple[type, ...], Any]] = []
        self.depth, self.thread = 0, threading.get_ident()

    def call(self, verb: Verb, question: _Question, answer: Any, args: Any, context: Any, options: Any) -> Any:
        if threading.get_ident() != self.thread:
            return answer(args, context, options)
        chosen = answer.inner if isinstance(answer, _Around) else answer
        self.calls.append((self.depth, verb, (question.context, *question.args), chosen))
        self.depth += 1
        try:
            return answer(args, context, options)
        finally:
            self.depth -= 1


def recorded(function: Callable[[], Any]) -> list[tuple[int, Verb, tuple[type, ...], Any]]:
    """The verbs that were called while `function` ran: depth, verb, types and answer of each."""
    recorder = _Recorder()
    with _lock:
        _recording.append(recorder)
        for each in list(_all):
            each._calls.clear()
    try:
        function()
    finally:
        _recording.remove(recorder)
    return recorder.calls


# Making verbs, and finding them


def verb(contract: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a verb of a function whose signature and docstring are its contract; its body is never run.

    A verb that is made again, as when a notebook's cell is run again, keeps its methods.

    Args:
        contract: the function.
        context: a class; an instance of it may follow the positional arguments.
        default: the context of a call that has none.
        bind: how a context is bound to the first argument; without it the context is passed on.
        hands_on: whether wrappers without a method of their own hand the call to their part.
        prepare: `f(first, second)` gives the second argument as methods get it, as a batch made of raw data.

    >>> import fulmen as fm
    >>> @fm.verb
    ... def describe(component):
    ...     '''One word about a component.'''
    >>> @fm.dispatch
    ... def describe(component: fm.Model): return "model"
    >>> describe(fm.models.Flatten())
    'model'
    """
    if contract is None:
        return functools.partial(verb, **options)
    name = (contract.__module__, contract.__qualname__)
    kind = Verb if options.get("bind") is None else BindingVerb
    with _lock:
        made = _verbs.get(name)
        if type(made) is kind:
            made._declare(contract, **options)
            stale = made._refresh(lambda question: True)
        else:
            made, stale = kind(contract, **options), False
        if "<locals>" not in contract.__qualname__:
            _verbs[name] = made
    _start_afresh(stale, f"the new contract of {made.__name__}")
    return made


def verbs() -> list[Verb]:
    """All verbs that can be found by name, in the order in which they were made."""
    return list(_verbs.values())


def dispatch(function: Callable[..., Any]) -> Verb:
    """Register a function as a method of the verb of the same name, and return the verb.

    The verb is looked for among the names that the function sees, then among all verbs.

    Raises:
        NameError: if there is no verb of that name.
        TypeError: if its signature differs from an existing method's only in annotations that do not dispatch.
    """
    return _find(inspect.unwrap(function)).dispatch(function)


def _find(function: Any) -> Verb:
    name = function.__name__
    if "<locals>" in function.__qualname__:
        found = names_around(function.__globals__).get(name)
        if isinstance(found, Verb):
            return found
    found = function.__globals__.get(name)
    if isinstance(found, Verb):
        return found
    named = [v for v in verbs() if v.__name__ == name]
    own = [v for v in named if v.__module__.partition(".")[0] == __name__.partition(".")[0]] or named
    if len(own) == 1:
        return own[0]
    if own:
        where = ", ".join(v.__module__ for v in own)
        raise NameError(f"there is more than one verb `{name}`, in {where}: import the one that is meant.")
    names = [v.__name__ for v in verbs()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"the verbs are: {', '.join(names)}."
    raise NameError(f"`{name}` is not a verb; {hint} `@fm.verb` above a function makes a new verb of it.")


# Fresh code


def generation() -> int:
    """A number that rises when compiled code is dropped; for what is remembered on the host of what tracing found."""
    return _generation


_generation = 0


def _place(method: Method) -> str:
    from fulmen.looking.text import place

    return place(method.location, method.module)


def _start_afresh(stale: bool, what: str) -> None:
    """Make compiled callers ask again. Not under the lock: JAX has locks of its own, and may be tracing elsewhere."""
    global _generation
    if stale:
        _generation += 1
        jax.clear_caches()
        print(f"fulmen: {what} replaces what was compiled; caches cleared", file=sys.stderr)


def supersede(old: type, new: type) -> None:
    """A class was defined again: its methods belong to the new definition, and old instances are told to be rebuilt."""
    _start_afresh(_move_methods(old, new), f"the new definition of {new.__name__} ({new.__module__})")


def _move_methods(old: type, new: type) -> bool:
    stale = False
    with _lock:
        _superseded[old] = new
        for each in list(_all):
            for method in [m for m in each._methods.values() if _mentions(m, old)]:
                del each._methods[method.key]
                moved = _moved(method, old, new)
                each._methods.setdefault(moved.key, moved)
            if old in each._around:
                each._around.setdefault(new, each._around.pop(old))
            stale |= each._refresh(lambda q: any(issubclass(kind, old) for kind in (q.context, *q.args)))
    return stale


def _mentions(method: Method, kind: type) -> bool:
    return any(kind in hint for hint in (*method.members, members(method.rest), method.contexts))


def _moved(method: Method, old: type, new: type) -> Method:
    def move(hint: Any) -> Any:
        return union(new if member is old else member for member in members(hint)) if old in members(hint) else hint

    contexts = tuple(new if kind is old else kind for kind in method.contexts)
    return dataclasses.replace(method, hints=tuple(map(move, method.hints)), rest=move(method.rest), contexts=contexts)


def _check_definitions(question: _Question, known: Mapping[tuple[str, str], type]) -> None:
    """Raise for an instance of a class that has been defined again; learn of classes that are no `Tree`s here."""
    kinds = [k for kind in (question.context, *question.args) for k in kind.__mro__[:-1]]
    for kind in kinds:
        _notice(kind, known)
    old = next((kind for kind in kinds if kind in _superseded), None)
    if old is not None:
        raise lookup_errors.outdated((question.context, *question.args), old)


def _notice(kind: type, known: Mapping[tuple[str, str], type]) -> bool:
    """Learn whether a class is a new or an old definition of one that is known. Returns whether answers changed."""
    other = known.get(_full_name(kind))
    if other is None or other is kind or kind in _superseded or other in _superseded:
        return False
    current = _current(kind)
    if current is kind:
        return _move_methods(other, kind)
    if current is other:
        _superseded[kind] = other
    return False


def _full_name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _current(kind: type) -> Any:
    """What is to be found now under a class's name."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


# Ambiguities


def ambiguities(verb: Verb) -> Iterator[tuple[Method, Method, tuple[type, ...]]]:
    """Pairs of methods that some arguments would select both, with no method that settles it.

    Yields:
        The two methods and the types of such arguments; classes that are in both only by a common subclass count where
        one exists.
    """
    for a, b in itertools.combinations(verb.methods, 2):
        clash = _clash(verb, a, b)
        if clash is not None:
            yield a, b, clash


def _clash(verb: Verb, a: Method, b: Method) -> tuple[type, ...] | None:
    sizes = {len(m.hints) for m in (a, b)}
    if a.rest is not None and b.rest is not None:
        sizes.add(max(sizes) + 1)
    contexts = _meets(a.contexts, b.contexts) if verb.context else [type(None)]
    for n in sizes:
        hints = [[*m.members, *[members(m.rest)] * (n - len(m.hints))] for m in (a, b)]
        if any(len(h) != n or (None,) in h for h in hints):
            continue
        for args in itertools.product(*(_meets(x, y) for x, y in zip(*hints))):
            for context in contexts:
                try:
                    verb._resolve(_Question(context, args))
                except AmbiguousMethodError:
                    if {a, b} <= {*best(verb.methods, context, args)}:
                        return args
                except MissingMethodError:
                    pass
    return None


def _meets(a: Sequence[type], b: Sequence[type]) -> list[type]:
    """The classes in both unions: the narrower of two where one contains the other, else their common subclasses."""
    found: dict[type, None] = {}
    for x, y in itertools.product(a, b):
        if issubclass(x, y) or issubclass(y, x):
            found[x if issubclass(x, y) else y] = None
        else:
            found.update(dict.fromkeys(k for k in _subclasses(x) if issubclass(k, y)))
    return list(found)


def _subclasses(kind: type) -> Iterator[type]:
    for below in type.__subclasses__(kind):
        yield below
        yield from _subclasses(below)
