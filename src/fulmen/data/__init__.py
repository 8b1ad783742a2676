"""Data: arrays and trees of arrays that are cut into batches, files, and sources of ready batches."""

from fulmen.core import Attacked, Batch, Labeled, PartBatches, Unlabeled
from fulmen.core.verbs import position, seek
from fulmen.data.arrays import split
from fulmen.data.folders import cifar10, mnist, read_idx
from fulmen.data.mapped import open
from fulmen.data.mixed import Mixed
from fulmen.data.prefetch import Prefetch
from fulmen.data.source import Source as Source  # registers a method of `batches`

__all__ = [
    "Attacked", "Batch", "Labeled", "Mixed", "PartBatches", "Prefetch", "Unlabeled", "cifar10", "mnist", "open",
    "position", "read_idx", "seek", "split",
]  # fmt: skip
