"""`tf.data.Dataset` as data. Its items are the batches, as `.batch(…)` makes them, converted to NumPy arrays."""

import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.iterables import refuse_drop_last
from fulmen.dispatching.registry import dispatch


@dispatch
def batches(data: tf.data.Dataset, plan, epoch, start=0):
    return data.skip(start).as_numpy_iterator()


@dispatch
def steps_per_epoch(data: tf.data.Dataset, plan):
    refuse_drop_last(data, plan)
    n = int(data.cardinality())
    return None if n < 0 else n  # negative: infinite or unknown
