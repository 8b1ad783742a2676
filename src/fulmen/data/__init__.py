"""Data: arrays and trees of arrays, cut into batches; files; and sources that make their batches themselves."""

from fulmen.data.arrays import split as split
from fulmen.data.folders import cifar10 as cifar10
from fulmen.data.folders import mnist as mnist
from fulmen.data.folders import read_idx as read_idx
from fulmen.data.mapped import open as open
from fulmen.data.prefetch import Prefetch as Prefetch
from fulmen.data.source import Source as Source  # whose method of `batches` has to be there

__all__ = ["Prefetch", "cifar10", "mnist", "open", "read_idx", "split"]
