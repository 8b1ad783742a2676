"""Searches before a run: a learning rate by a range test, and a batch size by its speed."""

from fulmen.train.tune.batch_speed import BatchSizeSearch, batch_size
from fulmen.train.tune.range_test import LearningRateSearch, learning_rate

__all__ = ["BatchSizeSearch", "LearningRateSearch", "batch_size", "learning_rate"]
