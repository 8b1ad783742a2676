"""Data: arrays and trees of arrays, cut into batches."""

from fulmen.data.arrays import split as split

__all__ = ["split"]
