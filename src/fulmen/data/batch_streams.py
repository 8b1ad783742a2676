"""Generators of batches made of others, which they close."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

from fulmen.data.epoch_reader import Batches


def starting_with(batch: Any, reading: Batches) -> Batches:
    """A batch, and then the others."""
    with contextlib.closing(reading):
        yield batch
        yield from reading


def placed(reading: Batches, place: Callable[[Any], Any]) -> Batches:
    """The batches on the devices, which copy them while the steps before run."""
    with contextlib.closing(reading):
        for batch in reading:
            yield place(batch)


def limited(reading: Batches, limit: int) -> Batches:
    """The first batches; no more are read."""
    with contextlib.closing(reading):
        yield from itertools.islice(reading, limit)
