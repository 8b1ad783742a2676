"""grain's `MapDataset` as data. Its items are the batches, as `.batch(…)` makes them. Other grain loaders are iterables."""

from grain import MapDataset  # pyright: ignore[reportMissingImports]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.iterables import refuse_drop_last
from fulmen.dispatching.registry import dispatch


@dispatch
def batches(data: MapDataset, plan, epoch, start=0):
    n = len(data)
    return (data[epoch * n + i] for i in range(start, n))  # an index past the end is an item of the next epoch


@dispatch
def steps_per_epoch(data: MapDataset, plan):
    refuse_drop_last(data, plan)
    return len(data)
