"""Searches before a run: a learning rate by a range test, and a batch size by its speed."""

from fulmen.train.tune.range_test import LearningRateSearch, learning_rate
from fulmen.train.tune.throughput import BatchSizeSearch, batch_size

__all__ = ["BatchSizeSearch", "LearningRateSearch", "batch_size", "learning_rate"]
