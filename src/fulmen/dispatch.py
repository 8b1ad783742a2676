"""Verbs: generic functions that choose a method by the types of their positional arguments.

A `Verb` is a thin object around plum: plum orders the methods by how specific they are, the verb remembers what plum
answered, so that a call that was seen before is one dictionary look-up.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import plum

__all__ = ["AmbiguousMethodError", "Method", "MissingMethodError", "Verb", "dispatch", "verb", "verbs"]

_lock = threading.RLock()
_verbs: dict[str, Verb] = {}
_superseded: dict[type, type] = {}  # an earlier definition of a class -> the one that replaced it
_recording: list[_Recorder] = []  # what `explain` listens to


class MissingMethodError(TypeError):
    """No method of a verb fits the types of the arguments."""


class AmbiguousMethodError(TypeError):
    """Two methods of a verb fit the types of the arguments, and neither is more specific."""


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One implementation of a verb: a function and the types that select it.

    `hints` are the annotations that dispatch, one per positional argument; `rest` is that of `*args`, or None;
    `context` is the class of contexts (modes, plans) it takes; `names_context` says whether it wants to be given one.
    """

    verb: str
    function: Callable[..., Any]
    hints: tuple[Any, ...]
    rest: Any = None
    context: type | None = None
    names_context: bool = False
    written: tuple[Any, ...] = ()

    def __call__(self, args, context, options):  # unannotated: plum would look the annotations up
        if not self.names_context:
            return self.function(*args, **options)
        # A mode is told the verb, so that a component draws differently in each.
        within = getattr(context, "within", None)
        return self.function(*args, within(self.verb) if within else context, **options)

    @property
    def signature(self) -> plum.Signature:
        return plum.Signature(*self.hints, **({} if self.rest is None else {"varargs": self.rest}))

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.hints, "*", self.rest, self.context)

    @property
    def location(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.function)

    @property
    def module(self) -> str:
        return self.function.__module__

    def __str__(self) -> str:
        parts = [_name(hint) for hint in self.hints]
        if self.rest is not None:
            parts.append("*" if self.rest is object else f"*{_name(self.rest)}")
        if self.names_context and self.context is not None:
            parts.append(_name(self.context))
        return f"{self.verb}({', '.join(parts)})"


class Verb:
    """A generic function: what it does is chosen by the types of its positional arguments; options follow `*`.

    Where the contract takes a *context* (`Mode`, `Plan`), it comes last, and methods and callers may leave it out: a
    call without one reads what is bound to the first argument, or else the default. The other arguments decide first,
    and the context only between methods that are equal in them.

    **Extending.** `@dispatch def name(…)` with annotated arguments, or `@name.dispatch` on a function of any name.
    """

    def __init__(
        self,
        contract: Callable[..., Any],
        *,
        context: type | None = None,
        default: Any = None,
        bind: Callable[[Any, Any], Any] | None = None,
        hands_on: bool = True,
    ) -> None:
        functools.update_wrapper(self, contract)
        self.contract = contract
        self.context, self.default, self.bind, self.hands_on = context, default, bind, hands_on
        self._methods: dict[tuple[Any, ...], Method] = {}
        self._around: list[tuple[type, Callable[..., Any]]] = []
        self._tables: dict[tuple[type | None, bool], plum.Function] = {}
        self._answers: dict[tuple[type, ...], Callable[..., Any]] = {}
        self._plain: dict[tuple[type, ...], Callable[..., Any]] = {}  # the answers that are functions of the arguments alone

    # Calling

    def __call__(self, *args: Any, **options: Any) -> Any:
        context = None
        if self.context is not None:
            if args and isinstance(args[-1], self.context):
                args, context = args[:-1], args[-1]
                if self.bind is not None and args:
                    args = (self.bind(args[0], context), *args[1:])
                    context = getattr(args[0], "mode", None) or context
            else:
                context = (getattr(args[0], "mode", None) if args and self.bind is not None else None) or self.default
        key = (type(context), *map(type, args))
        if _recording:
            return _recording[-1].call(self, key, self._answer(key, options), args, context, options)
        plain = self._plain.get(key)
        if plain is not None:
            return plain(*args, **options)
        return (self._answers.get(key) or self._answer(key, options))(args, context, options)

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
        return functools.partial(self._invoke, signature)

    def _invoke(self, signature: tuple[Any, ...], *args: Any, **options: Any) -> Any:
        context: Any = None
        if self.context is not None:
            if args and isinstance(args[-1], self.context):
                args, context = args[:-1], args[-1]
            else:
                context = getattr(args[0], "mode", None) or self.default
        kind = type(context)
        if signature and self.context is not None and isinstance(signature[-1], type):
            if issubclass(signature[-1], self.context):
                signature, kind = signature[:-1], signature[-1]
        return self._resolve((kind, *signature), options, hand_on=False)(args, context, options)

    def method(self, *args: Any) -> Method:
        """The method that a call with these arguments ends in, following wrappers to their parts. Raises as the call."""
        if self.context is not None and isinstance(args[-1], self.context):
            args, context = args[:-1], args[-1]
        else:
            context = getattr(args[0], "mode", None) or self.default
        while True:
            answer = self._answer((type(context), *map(type, args)), {})
            answer = answer.inner if isinstance(answer, _Around) else answer
            if isinstance(answer, Method):
                return answer
            args = (args[0].__part__, *args[1:])

    def has(self, *args: Any) -> bool:
        """Whether a call with these arguments would find a method."""
        try:
            self.method(*args)
        except MissingMethodError:
            return False
        return True

    # Finding a method

    def _answer(self, key: tuple[type, ...], options: dict[str, Any]) -> Callable[..., Any]:
        with _lock:
            if key not in self._answers:
                answer = self._resolve(key, options)
                for kind, around in self._around:
                    if len(key) > 1 and issubclass(key[1], kind):
                        answer = _Around(around, answer)
                self._answers[key] = answer
                if isinstance(answer, Method) and not answer.names_context:
                    self._plain[key] = answer.function
            return self._answers[key]

    def _resolve(self, key: tuple[Any, ...], options: dict[str, Any], hand_on: bool = True) -> Callable[..., Any]:
        context, *args = key
        # A wrapper's own methods are those on wrapper types; what it has none for goes to its part.
        wrapper = hand_on and self.hands_on and bool(args) and hasattr(args[0], "__part__")
        try:
            method, _ = self._table(context, wrapper).resolve_method(plum.Signature(*args))
            return method
        except plum.NotFoundLookupError:
            if wrapper:
                return _HandOn(self)
            raise MissingMethodError(_missing(self, args, context, options)) from None
        except plum.AmbiguousLookupError as error:
            found = [m.implementation for m in error.methods]
            raise AmbiguousMethodError(_ambiguous(self, args, found)) from None

    def _table(self, context: type, wrapper: bool) -> plum.Function:
        """A plum function for one class of context: for each signature the method that is closest in the context."""
        of = context if self.context is not None and issubclass(context, self.context) else None
        if (of, wrapper) not in self._tables:
            best: dict[tuple[Any, ...], Method] = {}
            for method in self._methods.values():
                if method.context is not None and (of is None or not issubclass(of, method.context)):
                    continue
                if wrapper and not (method.hints and hasattr(_members(method.hints[0])[0], "__part__")):
                    continue
                other = best.get((method.hints, method.rest))
                if other is None or other.context is None or issubclass(_context(method), other.context):
                    best[method.hints, method.rest] = method
            table = plum.Function(self.contract)
            plum.Function._instances.remove(table)  # plum's global list is for its own reloading; ours come and go
            for method in best.values():
                table.register(method, signature=method.signature, precedence=None)
            self._tables[of, wrapper] = table
        return self._tables[of, wrapper]

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb:
        """Register a method, whatever the function's own name is; returns the verb."""
        methods = list(_methods_of(self, function, _locals_of(function)))
        with _lock:
            for method in methods:
                old = self._methods.get(method.key)
                if old is not None:
                    _refuse_twin(old, method)
                self._methods[method.key] = method
            self._refresh(methods)
        return self

    def around(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register what runs round every method whose first argument is of this kind: `f(call, *args, **options)`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._around.append((kind, function))
            return function

        return register

    def _refresh(self, changed: Sequence[Method]) -> None:
        """Forget the tables; where a remembered answer is no longer right, make compiled callers ask again."""
        self._tables.clear()
        stale = []
        for key, answer in list(self._answers.items()):
            try:
                now: Any = self._resolve(key, {})
            except TypeError:
                now = None
            inner = answer
            while isinstance(inner, _Around):
                inner = inner.inner
            if now is not inner and not (isinstance(now, _HandOn) and isinstance(inner, _HandOn)):
                del self._answers[key]
                self._plain.pop(key, None)
                stale.append(key)
        if stale:
            jax.clear_caches()
            method = changed[0]
            print(f"fulmen: {method} ({method.location}) replaces what was compiled; caches cleared", file=sys.stderr)

    # Looking

    @property
    def methods(self) -> list[Method]:
        """All methods, in the order in which they were registered."""
        return list(self._methods.values())

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self._methods)} methods>"

    def _repr_html_(self) -> str:
        from fulmen.looking import methods_table

        return methods_table(self)

    def __reduce__(self) -> str:
        return self.__name__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


@dataclasses.dataclass(frozen=True)
class _HandOn:
    """The answer of a wrapper that has no method of its own: the same verb on its part."""

    verb: Verb

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        part = args[0].__part__
        if self.verb.context is not None and self.verb.bind is None:
            return self.verb(part, *args[1:], context, **options)
        return self.verb(part, *args[1:], **options)


@dataclasses.dataclass(frozen=True)
class _Around:
    function: Callable[..., Any]
    inner: Callable[..., Any]

    def __call__(self, args: Sequence[Any], context: Any, options: dict[str, Any]) -> Any:
        return self.function(lambda *a, **kw: self.inner(a, getattr(a[0], "mode", None) or context, kw), *args, **options)


class _Recorder:
    """Notes which method each call chose, and at which depth."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Verb, tuple[type, ...], Any]] = []
        self.depth = 0

    def call(self, verb: Verb, key: tuple[type, ...], answer: Any, args: Any, context: Any, options: Any) -> Any:
        self.calls.append((self.depth, verb, key, answer.inner if isinstance(answer, _Around) else answer))
        self.depth += 1
        try:
            return answer(args, context, options)
        finally:
            self.depth -= 1


def recorded(function: Callable[[], Any]) -> list[tuple[int, Verb, tuple[type, ...], Any]]:
    """The verbs that were called while `function` ran: depth, verb, types and answer of each."""
    recorder = _Recorder()
    _recording.append(recorder)
    try:
        function()
    finally:
        _recording.remove(recorder)
    return recorder.calls


def verb(contract: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a verb of a function whose signature and docstring are its contract; its body is never run.

    Args:
        contract: the function.
        context: a class; an instance of it may follow the positional arguments.
        default: the context of a call that has none.
        bind: how a context is bound to the first argument; without it the context is passed on.
        hands_on: whether wrappers without a method of their own hand the call to their part.

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
    made = Verb(contract, **options)
    with _lock:
        _verbs[contract.__name__] = made
    return made


def verbs() -> list[Verb]:
    """All verbs, in the order in which they were made."""
    return list(_verbs.values())


def dispatch(function: Callable[..., Any]) -> Verb:
    """Register a function as a method of the verb of the same name, and return the verb.

    The verb is looked for among the names of the function's module, then among all verbs.

    Raises:
        NameError: if there is no verb of that name.
        TypeError: if its signature differs from an existing method's only in annotations that do not dispatch.
    """
    name = function.__name__
    found = function.__globals__.get(name)
    if not isinstance(found, Verb):
        found = _verbs.get(name)
    if found is None:
        near = difflib.get_close_matches(name, _verbs, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the verbs are: {', '.join(_verbs)}."
        raise NameError(f"`{name}` is not a verb; {hint} `@fm.verb` above a function makes a new verb of it.") from None
    return found.dispatch(function)


def supersede(old: type, new: type) -> None:
    """A class was defined again: its methods belong to the new definition, and old instances are told to be rebuilt."""
    with _lock:
        _superseded[old] = new
        for each in list(_verbs.values()):
            moved = [m for m in each._methods.values() if any(old in _members(h) for h in m.hints)]
            for method in moved:
                del each._methods[method.key]
                hints = tuple(_substitute(hint, old, new) for hint in method.hints)
                fresh = dataclasses.replace(method, hints=hints)
                each._methods.setdefault(fresh.key, fresh)
            if moved:
                each._refresh(moved)


# Signatures


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)


def _substitute(hint: Any, old: type, new: type) -> Any:
    members = tuple(new if member is old else member for member in _members(hint))
    return members[0] if len(members) == 1 else typing.Union[members]  # noqa: UP007 - built at run time


def dispatches(hint: Any) -> bool:
    """Whether plum can dispatch on this annotation by the argument's class alone, and so remember the answer."""
    return all(isinstance(m, type) and not typing.get_origin(m) and plum.is_faithful(m) for m in _members(hint))


def _context(method: Method) -> type:
    return object if method.context is None else method.context


def _locals_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The names around a function defined inside another, for annotations that are strings."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None and frame.f_globals is function.__globals__ else {}


def _hint(annotation: Any, function: Callable[..., Any], names: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return annotation
    if isinstance(annotation, str):
        try:
            return eval(annotation, function.__globals__, names)
        except Exception as error:
            message = f"the annotation {annotation!r} of {function.__name__} in {function.__module__} has no meaning: {error}"
            raise NameError(message) from None
    return type(None) if annotation is None else annotation


def _methods_of(verb: Verb, function: Callable[..., Any], names: dict[str, Any]) -> Iterator[Method]:
    """The methods that a function stands for: one, and one more for each positional argument with a default."""
    positional, written, rest, context, names_context = [], [], None, None, False
    parameters = list(inspect.signature(function).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    last = [p for p in parameters if p.kind in kinds][-1:]
    for p in parameters:
        hint = _hint(p.annotation, function, names)
        if p.kind in kinds:
            if verb.context is not None and p in last and _is_context(verb, p, hint):
                context = hint if isinstance(hint, type) and issubclass(hint, verb.context) else verb.context
                names_context = True
                continue
            positional.append((hint if hint is not p.empty and dispatches(hint) else object, p.default))
            written.append(hint)
        elif p.kind is p.VAR_POSITIONAL:
            rest = hint if hint is not p.empty and dispatches(hint) else object
    if not positional and rest is None:
        raise TypeError(f"a method of `{verb.__name__}` needs at least one positional argument to dispatch on.")
    hints = tuple(hint for hint, _ in positional)
    required = sum(default is inspect.Parameter.empty for _, default in positional)
    for n in range(len(hints), required - 1, -1):
        tail = rest if n == len(hints) else None
        yield Method(verb.__name__, function, hints[:n], tail, context or verb.context, names_context, tuple(written[:n]))


def _is_context(verb: Verb, parameter: inspect.Parameter, hint: Any) -> bool:
    assert verb.context is not None
    if hint is inspect.Parameter.empty:
        return parameter.name == verb.context.__name__.lower()
    return all(isinstance(member, type) and issubclass(member, verb.context) for member in _members(hint))


def _refuse_twin(old: Method, new: Method) -> None:
    """Two functions of one file that differ only in what cannot dispatch: one would hide the other unseen."""
    empty = inspect.Parameter.empty
    differ = [
        (a, b)
        for a, b in zip(old.written, new.written, strict=True)
        if a is not b and a != b and empty not in (a, b) and not (dispatches(a) and dispatches(b))
    ]
    files = [getattr(m.function, "__code__", None) and m.function.__code__.co_filename for m in (old, new)]
    if differ and files[0] == files[1]:
        a, b = differ[0]
        raise TypeError(
            f"{new} at {new.location} and at {old.location} differ only in {_name(a)} and {_name(b)}, which do not "
            "dispatch: a verb looks at classes only. Distinguish them by a class, or inside one method."
        )


# What errors say


def _name(hint: Any) -> str:
    if hint is object or hint is inspect.Parameter.empty:
        return "object"
    return " | ".join(getattr(member, "__name__", str(member)) for member in _members(hint))


def _missing(verb: Verb, args: Sequence[type], context: type, options: dict[str, Any]) -> str:
    name = verb.__name__
    old = next((c for a in args for c in a.__mro__ if c in _superseded), None)
    if old is not None:
        what = f"This instance is of an earlier definition of `{old.__name__}`, which has been defined again"
        if not any(a is old for a in args):
            return f"{what}: run the definition of its subclass again, then rebuild the instance."
        return f"{what}: rebuild the instance."
    named = [p for p in inspect.signature(verb.contract).parameters if p in options]
    if named:
        given = ", ".join([*map(_name, args), *(f"{p}=…" for p in named)])
        return (
            f"`{name}` dispatches on positional arguments, and {', '.join(f'`{p}=`' for p in named)} came as a keyword in "
            f"{name}({given}). Write the arguments by position: {name}{inspect.signature(verb.contract)}."
        )
    lines = [f"`{name}({', '.join(map(_name, args))})`: no method fits these types."]
    spelled = [f"{_variable(a)}: {_name(a)}" if a.__module__ not in ("builtins",) else _variable(a) for a in args]
    lines += ["Write one:", "", "    @dispatch", f"    def {name}({', '.join(spelled)}): …", ""]
    heads = list(dict.fromkeys(_name(m.hints[0]) for m in verb.methods if m.hints))
    if heads:
        shown = ", ".join(heads[:12]) + (f" and {len(heads) - 12} more" if len(heads) > 12 else "")
        lines.append(f"Types that have one: {shown}.")
    arities = sorted({len(m.hints) for m in verb.methods if m.rest is None})
    if arities and all(m.rest is None for m in verb.methods) and len(args) not in arities:
        lines.append(f"It takes {' or '.join(map(str, arities))} positional arguments; {len(args)} came.")
    if context is not type(None) and any(m.context not in (None, verb.context) for m in verb.methods):
        lines.append(f"The call was made in mode {context.__name__}.")
    return "\n".join(lines)


def _variable(kind: type) -> str:
    known = {"ndarray": "x", "ArrayImpl": "x", "DynamicJaxprTracer": "x", "JVPTracer": "x", "Labeled": "batch"}
    return known.get(kind.__name__, kind.__name__.lower().lstrip("_"))


def _ambiguous(verb: Verb, args: Sequence[type], found: Sequence[Method]) -> str:
    lines = [f"`{verb.__name__}({', '.join(map(_name, args))})` is ambiguous: neither method is more specific."]
    lines += [f"    {method}    {method.location}" for method in found]
    lines.append("A method for the types that both accept settles it:")
    settle = []
    for i, arg in enumerate(args):
        hints = [m.hints[i] if i < len(m.hints) else m.rest for m in found]
        settle.append(f"{_variable(arg)}: {_name(_narrowest(hints, arg))}")
    lines += ["", "    @dispatch", f"    def {verb.__name__}({', '.join(settle)}): …"]
    return "\n".join(lines)


def _narrowest(hints: Sequence[Any], arg: type) -> Any:
    best: Any = object
    for hint in hints:
        for member in _members(hint):
            if member is not None and issubclass(arg, member) and issubclass(member, best):
                best = member
    return best
