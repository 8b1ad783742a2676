"""What Python can go through: iterables of batches, iterators, functions that make them."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.libraries import teach
from fulmen.dispatching.registry import dispatch

__all__ = ["Listed", "iterate", "length", "own_cuts", "put_back", "told"]

_looked_at: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
"""What was taken out of an iterator only to be looked at."""


class Listed:
    """Batches that are all there, in a list.

    Args:
        batches: a list of batches.
    """

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches


@dispatch
def batches(data: Listed, plan, epoch, start=0):
    return iter(data.batches[start:])


@dispatch
def steps_per_epoch(data: Listed, plan):
    own_cuts(data, plan)
    return len(data.batches)


def iterate(data: object, plan, epoch):
    if teach(type(data)):
        return batches(data, plan, epoch)
    if isinstance(data, Iterator):
        return _rest(data)
    return iter(data if isinstance(data, Iterable) else _made(data, epoch))


batches.dispatch(iterate)


@dispatch
def steps_per_epoch(data: object, plan):
    if teach(type(data)):
        return steps_per_epoch(data, plan)
    if batches.method(data, plan, 0).function is not iterate:
        return None  # the length of a type with another method for `batches` may be its number of examples
    own_cuts(data, plan)
    return length(data) if isinstance(data, Iterable) else None


def length(data: Any) -> int | None:
    """How many items something has, where it can tell."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # a loader of a stream has the method, and raises in it
        return None


def own_cuts(data: Any, plan: Any) -> None:
    """Raise where data that comes in batches would have to be cut."""
    if plan.drop_last:
        raise ValueError(
            f"drop_last: {told(data)} comes in batches, whose sizes are its own. Leave the last one out there, as in "
            "DataLoader(…, drop_last=True)."
        )


def put_back(iterator: Any, batch: Any) -> None:
    """Let the next reader of an iterator have a batch that was taken to be looked at."""
    _looked_at.setdefault(iterator, []).append(batch)


def _rest(iterator: Iterator[Any]) -> Iterator[Any]:
    with contextlib.suppress(TypeError):  # of C, and put nothing back into
        yield from _looked_at.pop(iterator, ())
    for batch in iterator:  # noqa: UP028 - `yield from` would close it with this one, and a later run may go on with it
        yield batch


def _made(function: Any, epoch: int) -> Any:
    """What a function of the epoch's number, or of nothing, makes for one epoch."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of C, without a signature
        parameters = ()
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    made = function(epoch) if len(wanted) == 1 else function()
    if not isinstance(made, Iterable):
        raise TypeError(f"{told(function)} should make an iterable of batches, and gave a {type(made).__name__}.")
    return made


def told(data: Any) -> str:
    """What data is called in errors: never its contents."""
    if isinstance(data, Listed):
        return "the list of batches"
    name, kind = getattr(data, "__name__", ""), type(data).__name__
    return f"the {kind} {name}" if name else f"the {kind}"
