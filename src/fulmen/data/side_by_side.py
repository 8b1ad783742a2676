"""`Sources`: data of several kinds read side by side, as a dict by the names of a system's parts gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.dispatching.registry import dispatch

__all__ = ["Sources"]


class Sources(dict[str, Any]):
    """Data by name, of which some comes in batches of its own: a batch of each is one step's, and the first to end ends an epoch.

    Where some say how many batches they have, an epoch is declared to be as long as the shortest of these: what does not say it
    may go on for longer, and is an error where it ends before.

    Args:
        data: from names to what `batches` takes.

    Raises:
        TypeError: for an iterator, of which an epoch that another ended would have taken a batch for nothing.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.__name__ = ", ".join(data)  # in errors
        for name, own in data.items():
            if isinstance(own, Iterator):
                raise TypeError(
                    f"data, {name}: the {type(own).__name__} can be read but once. Beside other parts' data a function that makes it "
                    "for each epoch was expected, such as the generator function itself."
                )


@dispatch
def batches(data: Sources, plan, epoch):
    side_by_side = zip(*(_named(name, own, plan, epoch) for name, own in data.items()))
    return (dict(zip(data, each, strict=True)) for each in side_by_side)


def _named(name: str, data: Any, plan: Any, epoch: int) -> Iterator[Any]:
    try:
        yield from batches(data, plan, epoch)
    except Exception as error:
        error.add_note(f"in the data of {name!r}")
        raise


@dispatch
def steps_per_epoch(data: Sources, plan):
    known = (steps_per_epoch(own, plan) for own in data.values())
    return min((n for n in known if n is not None), default=None)
