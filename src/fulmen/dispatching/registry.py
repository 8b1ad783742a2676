"""Making verbs, finding them, and registering methods."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from fulmen.dispatching.ambiguity import ambiguities
from fulmen.dispatching.errors import AmbiguousMethodError, MissingMethodError, OutdatedInstanceError
from fulmen.dispatching.methods import Method, names_around
from fulmen.dispatching.verb import BindingVerb, Verb, generation, lock, recorded, start_afresh, supersede

__all__ = [
    "AmbiguousMethodError",
    "BindingVerb",
    "Method",
    "MissingMethodError",
    "OutdatedInstanceError",
    "Verb",
    "ambiguities",
    "dispatch",
    "generation",
    "recorded",
    "supersede",
    "verb",
    "verbs",
]

_verbs: dict[tuple[str, str], Verb] = {}  # those that can be found by name


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
    with lock:
        made = _verbs.get(name)
        if type(made) is kind:
            stale = made.declare_again(contract, **options)
        else:
            made, stale = kind(contract, **options), False
        if "<locals>" not in contract.__qualname__:
            _verbs[name] = made
    start_afresh(stale, f"the new contract of {made.__name__}")
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
