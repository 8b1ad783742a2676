"""`Sources`: a dict of data, such as one entry for each part of a system, whose batches are read together."""

from collections.abc import Iterator
from typing import Any

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.dispatching.registry import dispatch


class Sources(dict[str, Any]):
    """Data by name, of which some entries make their own batches. A step gets one batch of each.

    An epoch ends with the shortest entry. Its declared length is the smallest declared length; an entry without a length may
    be longer, and raises if it is shorter.

    Args:
        data: from names to any data that `batches` takes.

    Raises:
        TypeError: for an iterator, which would lose a batch where another entry ends the epoch.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.__name__ = ", ".join(data)  # for errors
        for name, own in data.items():
            if isinstance(own, Iterator):
                raise TypeError(
                    f"data, {name}: a {type(own).__name__} can be iterated only once, so it cannot be combined with other data. Give a "
                    "function that makes one for each epoch, such as the generator function itself."
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
