"""Data that is read by iterating: lists of batches, iterables and functions that make one; and sources of other libraries."""

import contextlib
import inspect
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from fulmen.core.verbs import batches, position, seek, steps_per_epoch
from fulmen.dispatching.registry import dispatch

_returned: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
"""By iterator, the batches that were put back."""


class BatchList:
    """The list of the batches of an epoch."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches


@dispatch
def batches(data: BatchList, plan, epoch, start=0):
    return iter(data.batches[start:])


@dispatch
def steps_per_epoch(data: BatchList, plan):
    refuse_drop_last(data, plan)
    return len(data.batches)


def iterate(data: object, plan, epoch):
    if isinstance(data, Iterator):
        return _remaining(data)
    return iter(data if isinstance(data, Iterable) else _made(data, epoch))


batches.dispatch(iterate)


@dispatch
def steps_per_epoch(data: object, plan):
    if batches.method(data, plan, 0).function is not iterate:
        return None  # the length of a type with its own `batches` method may be its number of examples
    refuse_drop_last(data, plan)
    return length(data) if isinstance(data, Iterable) else None


@dispatch
def position(source: object):
    for name in ("state_dict", "get_state"):  # of PyTorch's stateful loaders, and of grain's iterators
        if hasattr(source, name):
            state = getattr(source, name)()
            return {name: state.hex() if isinstance(state, bytes) else state}
    return None


@dispatch
def seek(source: object, position):
    data: Any = source
    if "state_dict" in position:
        data.load_state_dict(position["state_dict"])
    else:
        state, now = position["get_state"], data.get_state()
        data.set_state(bytes.fromhex(state) if isinstance(now, bytes) else state)


def length(data: Any) -> int | None:
    """The number of items of an object, or None if it is unknown."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # a loader of a stream has `__len__`, which raises
        return None


def refuse_drop_last(data: Any, plan: Any) -> None:
    """Raise for `drop_last` with data that makes its own batches."""
    if plan.drop_last:
        raise ValueError(
            f"drop_last must be False, since {describe_data(data)} makes its own batches. Drop the last one there, as in "
            "DataLoader(…, drop_last=True)."
        )


def put_back(iterator: Any, batch: Any) -> None:
    """Let the next reader of an iterator begin with a batch that was taken from it."""
    _returned.setdefault(iterator, []).append(batch)


def _remaining(iterator: Iterator[Any]) -> Iterator[Any]:
    with contextlib.suppress(TypeError):  # an iterator written in C without weak references, to which nothing is put back
        yield from _returned.pop(iterator, ())
    for batch in iterator:  # noqa: UP028 - `yield from` would close an iterator that a later run may continue
        yield batch


def _made(function: Any, epoch: int) -> Any:
    """The iterable that a function of the epoch's number, or of no argument, makes for one epoch."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function written in C without a signature
        parameters = ()
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    made = function(epoch) if len(required) == 1 else function()
    if not isinstance(made, Iterable):
        raise TypeError(f"{describe_data(function)} must make an iterable of batches, got {type(made).__name__}.")
    return made


def describe_data(data: Any) -> str:
    """The name of some data in errors, without its contents."""
    if isinstance(data, BatchList):
        return "the list of batches"
    name, kind = getattr(data, "__name__", ""), type(data).__name__
    return f"the {kind} {name}" if name else f"the {kind}"
