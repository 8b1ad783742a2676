"""Making verbs, finding them, and registering methods."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any, overload

from fulmen.dispatching import hooks
from fulmen.dispatching.annotations import names_around
from fulmen.dispatching.compiled_code import drop_compiled, lock
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.methods import plain_function
from fulmen.dispatching.verb import P, Verb

_verbs: dict[tuple[str, str], Verb[...]] = {}  # verbs that can be found by name


@overload
def verb(contract: Callable[P, Any]) -> Verb[P]: ...
@overload
def verb(**options: Any) -> Callable[[Callable[P, Any]], Verb[P]]: ...
def verb(contract: Any = None, **options: Any) -> Any:
    """Make a verb of a function, whose signature and docstring are the contract; its body is never run.

    A verb that is made again, as when a notebook cell is run again, keeps its methods.

    Args:
        contract: the function.
        context: a class; an instance of it may follow the positional arguments. A call without one gets the default of the
            contract's parameter of that name, such as `mode=fm.Eval()`.
        bind: how a context is bound to the first argument; without it the context is passed to the method.
        delegates: whether a wrapper without a method delegates the call to its part.
        prepare: `f(first, second)` returns the second argument that methods get, such as a batch made of raw data.

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
    declared, name = Contract(contract, **options), (contract.__module__, contract.__qualname__)
    if declared.context is not None and declared.context_name not in declared.signature.parameters:
        raise TypeError(
            f"the contract of a verb with a context must have a parameter that takes it, called {declared.context_name!r}: write "
            f"{declared.context_name}={declared.context.__name__}() as the last one of {contract.__name__}."
        )
    with lock:
        made = _verbs.get(name)
        stale = made is not None and made.declare_again(declared)
        if made is None:
            made = Verb(declared)
        if "<locals>" not in contract.__qualname__:
            _verbs[name] = made
    if stale:
        drop_compiled(f"the contract of {made.__name__} was defined again")
    return made


def all_named_verbs() -> list[Verb[...]]:
    """All verbs that are not local to a function, oldest first."""
    return list(_verbs.values())


def verbs() -> list[Verb[...]]:
    """All public verbs, oldest first. A verb that its module's `__all__` leaves out is private."""
    return [v for v in all_named_verbs() if is_public(v)]


def is_public(verb: Verb[...]) -> bool:
    """Whether the `__all__` of a verb's module, if there is one, contains the verb."""
    return verb.__name__ in verb.contract.__globals__.get("__all__", [verb.__name__])


def dispatch(function: Callable[..., Any]) -> Verb[...]:
    """Register a function as a method of the verb of the same name, and return the verb.

    The verb is searched among the names in the function's scope, then among the public verbs.

    Raises:
        NameError: if there is no verb of that name.
        TypeError: for anything but a function outside a class, and for a signature that differs from an existing method's
            only in annotations that do not dispatch.
    """
    return _find(plain_function(function)).dispatch(function)


def _find(function: Any) -> Verb[...]:
    name = function.__name__
    if "<locals>" in function.__qualname__:
        found = names_around(function.__globals__).get(name)
        if isinstance(found, Verb):
            return found
    found = function.__globals__.get(name)
    if isinstance(found, Verb):
        return found
    named = [v for v in verbs() if v.__name__ == name]
    if len(named) == 1:
        return named[0]
    if named:
        where = ", ".join(v.__module__ for v in named)
        raise NameError(f"there is more than one verb `{name}`, in {where}: import the one that is meant.")
    if answer := hooks.unknown_verb(name):
        raise NameError(f"`{name}` is not a verb: {answer}")
    names = [v.__name__ for v in verbs()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"the verbs are: {', '.join(names)}."
    raise NameError(f"`{name}` is not a verb; {hint} write `@fm.verb` above a function to make a new verb.")
