"""`Verb`: a generic function that chooses a method by the types of its positional arguments.

A verb caches the method for the types of each call, so that a call of types that were seen before is one dictionary
look-up, and knows for which of them a new method changes the result.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

import plum

from fulmen.dispatching import errors, hooks
from fulmen.dispatching.annotations import names_around
from fulmen.dispatching.compiled_code import all_verbs, drop_compiled, lock, recorder
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.errors import MissingMethodError, OutdatedInstanceError
from fulmen.dispatching.lazy_libraries import load_libraries
from fulmen.dispatching.method_cache import NO_METHOD, CallTypes, MethodCache, dispatch_type, innermost, quick_call
from fulmen.dispatching.method_table import MethodTable, delegate_to_part
from fulmen.dispatching.methods import Method, plain_function, read_methods, refuse_twin, require_count
from fulmen.dispatching.redefinition import note_classes
from fulmen.dispatching.resolution import package, warn_of_every_type, warn_of_override

P = ParamSpec("P")

if TYPE_CHECKING:
    # Each method redefines the verb's name. pyright reports that unless the old and the new value are the same property,
    # so that is what a verb is for type checkers.
    _Redefinable = property
else:
    _Redefinable = object


class Verb(Generic[P], _Redefinable):
    """A generic function: the types of its positional arguments choose the method; options follow `*`.

    Where the contract takes a *context* (`Mode`, `Plan`), it comes last, and methods and callers may leave it out: a
    call without one reads the context bound to the first argument, or else the default. The other arguments decide first,
    and the context only between methods that are equal in them.

    **Extending.** `@dispatch def name(…)` with annotated arguments, or `@name.dispatch` on a function of any name.

    Attributes:
        contract: the function whose signature and docstring are the contract.
        context: the class of contexts, or None.
        table: the methods.
    """

    __name__: str
    __qualname__: str

    def __init__(self, contract: Contract) -> None:
        self._cache = MethodCache()
        # The quick calls: functions of the arguments alone, by the types of the bound context and of the arguments.
        self._calls: dict[tuple[type, ...], Callable[..., Any]] = {}
        self.table = MethodTable()
        self._declare(contract)
        all_verbs.add(self)

    def declare_again(self, contract: Contract) -> bool:
        """Take another contract and keep the methods. Returns whether a cached method is no longer right."""
        with lock:
            self._declare(contract)
            return self._refresh(lambda types: True)

    def _declare(self, contract: Contract) -> None:
        functools.update_wrapper(self, contract.function)
        self._contract, self.contract, self.context = contract, contract.function, contract.context
        self._binds = contract.bind is not None
        self.table.declare(contract, delegate_to_part(self, contract) if contract.delegates else None)

    # Calling

    def __call__(self, *args: P.args, **options: P.kwargs) -> Any:
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
                hooks.annotate(error, self.__name__, args, options)
            raise

    def _general_call(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given, contract = args, self._contract
        args, context = contract.split(args)
        prepares = False
        if contract.prepare is not None and len(args) > 1:
            prepares, args = True, (args[0], contract.prepare(args[0], args[1]), *args[2:])
        types = CallTypes(type(context), (*map(dispatch_type, args),))
        if contract.context_name in options:
            raise TypeError(errors.by_keyword(contract, types.args, [*options], [contract.context_name]))
        found = self._find(types, options)
        listening = recorder()
        if listening is not None:
            method = innermost(found)
            chosen = None if method is self.table.delegate else method
            return listening.call(
                self, (types.context, *types.args), chosen, args, lambda: found.call(args, context, options)
            )
        # What is prepared is checked at every call, for its values and not only its type.
        if args and not prepares and len(args) == len(given) and all(map(operator.is_, args, given)):
            self._add_quick_call(types, found, args)
        return found.call(args, context, options)

    def _add_quick_call(self, types: CallTypes, found: Any, args: tuple[Any, ...]) -> None:
        bound = getattr(args[0], "mode", None) if self._binds else None
        with lock:
            if recorder() is None and self._cache.get(types) is found:
                kinds = (type(bound) if self._binds else None, *map(type, args))
                reads = self._binds and isinstance(bound, self.context or ())
                self._calls[kinds] = quick_call(found, reads, self._contract.default)  # type: ignore[index]

    def forget_calls(self) -> None:
        """Remove the quick calls."""
        self._calls.clear()

    def invoke(self, *signature: Any) -> Callable[..., Any]:
        """The method for given types instead of the arguments' own, such as the next more general method.

        Args:
            *signature: a type per positional argument; a context's type may follow.

        Returns:
            A function with the verb's arguments.

        >>> import fulmen as fm
        >>> fm.loss.invoke(fm.System, object)  # doctest: +ELLIPSIS
        functools.partial(...)
        """
        return functools.partial(self._invoke, signature)

    def _invoke(self, signature: tuple[type, ...], /, *args: Any, **options: Any) -> Any:
        args, context = self._contract.split(args)
        kind = type(context)
        if self.context is not None and signature and issubclass(signature[-1], self.context):
            signature, kind = signature[:-1], signature[-1]
        return self._find(CallTypes(kind, signature, True), options).call(args, context, options)

    def method(self, *args: Any) -> Method:
        """The method that a call with these arguments selects, through wrappers to their parts. Raises as the call does."""
        split, context = self._contract.split(args)
        found = innermost(self._find(CallTypes(type(context), (*map(dispatch_type, split),)), (), keep_missing=True))
        if found is self.table.delegate:
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

    def _find(self, types: CallTypes, options: Iterable[str], keep_missing: bool = False) -> Any:
        found = self._cache.get(types, NO_METHOD)
        if found is NO_METHOD:
            load_libraries(types.args)  # which may register methods
            with lock:
                try:
                    found = self._cache[types] = self.table.resolve(types, options)
                except TypeError:
                    if keep_missing:  # compiled code may depend on there being no method
                        self._cache[types] = NO_METHOD
                    raise
        return found

    # Registering

    def dispatch(self, function: Callable[..., Any]) -> Verb[...]:
        """Register a method; the function may have any name. Returns the verb."""
        plain = plain_function(function)
        names = functools.cache(lambda: names_around(plain.__globals__))
        read = list(read_methods(self._contract, function, plain, names))
        require_count(self._contract, read)
        self.register(read)
        return self

    def register(self, added: Sequence[Method]) -> None:
        """Register methods; each replaces one with the same signature."""
        with lock:
            before = self.methods
            replaced = {m: self.table.by_key[m.key] for m in added if m.key in self.table.by_key}
            for new, known in replaced.items():
                refuse_twin(known, new)
            stale = note_classes({kind for m in added for hint in m.members for kind in hint})
            for method in added:
                self.table.add(method)
            stale |= self._refresh(
                lambda types: any(
                    types.signature <= m.signature_with_context and not self._cache.beats(types, m) for m in added
                )
            )
        if stale:
            drop_compiled(f"{added[0]} was {'redefined' if replaced else 'added'} at {added[0].place}")
        if package(added[0].module) != package(self.__module__):
            warn_of_override(before, added[0])
            warn_of_every_type(added[0])

    def around(
        self, kind: type, when: Callable[[Any], bool] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function that runs around every method whose first argument is of a class: `f(call, *args, **options)`.

        It runs for calls with as many arguments as it takes: `f(call, one)` for calls with one. Of several, the function for the
        most derived class is outermost. `invoke` does not run them.

        Args:
            kind: the class.
            when: whether to run the function, by the context that is bound to the first argument; calls without one do not run it.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            with lock:
                self.table.around[kind] = function, when
                stale = self._refresh(lambda types: bool(types.args) and issubclass(types.args[0], kind))
            if stale:
                drop_compiled(f"{function.__name__} was defined around {self.__name__}({kind.__name__})")
            return function

        return register

    def restore(self, methods: Sequence[Method]) -> None:
        """Have these methods and no others, as `methods` returned them; for tests that register methods."""
        with lock:
            changed = {*self.methods} ^ {*methods}
            if changed:
                self.table.replace(methods)
            stale = self._refresh(lambda types: any(types.signature <= m.signature_with_context for m in changed))
        if stale:
            drop_compiled(f"the methods of {self.__name__} were restored")

    def move(self, old: type, new: type) -> bool:
        """Make the methods on a class methods on its new definition. Returns whether a cached method is no longer right."""
        self.table.move(old, new)
        return self._refresh(lambda types: any(issubclass(kind, old) for kind in (types.context, *types.args)))

    def _refresh(self, concerns: Callable[[CallTypes], bool]) -> bool:
        """Resolve again what a change may concern. Returns whether a cached method is no longer right."""
        self._calls.clear()
        return self._cache.refresh(self.table.resolve, concerns)

    # Inspecting

    @property
    def methods(self) -> list[Method]:
        """All methods, in the order in which they were registered."""
        return list(self.table.by_key.values())

    @property
    def plum(self) -> plum.Function:
        """The methods as a plum function, with the context's type first in each signature."""
        return self.table.plum

    def __repr__(self) -> str:
        return f"<verb {self.__name__}: {len(self.methods)} methods>"

    def _repr_html_(self) -> str:
        return hooks.verb_html(self)

    def __get__(self, instance: Any, owner: type | None = None) -> Verb[P]:
        """A verb in a class is the verb itself. With this method, `help` shows its signature as it does for a function."""
        return self

    def __reduce__(self) -> str:
        return self.__qualname__
