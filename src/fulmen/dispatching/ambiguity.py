"""Methods that clash: the mistake that dispatch brings, found before somebody calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from fulmen.dispatching.annotations import members
from fulmen.dispatching.methods import Method
from fulmen.dispatching.resolution import settle
from fulmen.dispatching.verb import Verb

__all__ = ["ambiguities"]


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
    contexts = _meets(a.contexts, b.contexts) if a.contexts else [type(None)]
    for n in sizes:
        hints = [[*m.members, *[members(m.rest)] * (n - len(m.hints))] for m in (a, b)]
        if any(len(h) != n or (None,) in h for h in hints):
            continue
        for args in itertools.product(*(_meets(x, y) for x, y in zip(*hints))):
            for context in contexts:
                if {a, b} <= {*settle([m for m in verb.candidates if m.fits(context, args)], args)}:
                    return args
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
