"""Ambiguous methods, found before they are called."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from fulmen.dispatching.annotations import members
from fulmen.dispatching.methods import Method
from fulmen.dispatching.verb import Verb


def ambiguities(verb: Verb, first: Collection[type] | None = None) -> Iterator[tuple[Method, Method, tuple[type, ...]]]:
    """Pairs of methods that are equally specific for some arguments, with no method that is more specific for these.

    Yields the two methods and the types of such arguments, whose first is one of `first` if that is given. A common subclass of
    two classes counts if it exists.
    """
    methods = verb.methods
    if first is not None:
        methods = [m for m in methods if any(issubclass(kind, _first_members(m)) for kind in first)]
    for a, b in itertools.combinations(methods, 2):
        types = _ambiguous_types(verb, a, b, first)
        if types is not None:
            yield a, b, types


def _ambiguous_types(verb: Verb, a: Method, b: Method, first: Collection[type] | None) -> tuple[type, ...] | None:
    sizes = {len(m.hints) for m in (a, b)}
    if a.rest is not None and b.rest is not None:
        sizes.add(max(sizes) + 1)
    contexts = _common(a.contexts, b.contexts) if a.contexts else [type(None)]
    for n in sizes:
        hints = [[*m.members, *[members(m.rest)] * (n - len(m.hints))] for m in (a, b)]
        if any(len(h) != n or (None,) in h for h in hints):
            continue
        common = [_common(x, y) for x, y in zip(*hints)]
        if first is not None:
            common[:1] = [[kind for kind in first if any(issubclass(kind, found) for found in common[0])]]
        for args in itertools.product(*common):
            for context in contexts:
                if {a, b} <= {*verb.table.best(context, args)}:
                    return args
    return None


def _first_members(method: Method) -> tuple[type, ...]:
    """The classes that a method takes as its first argument."""
    return method.members[0] if method.members else () if method.rest is None else members(method.rest)


def _common(a: Sequence[type], b: Sequence[type]) -> list[type]:
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
