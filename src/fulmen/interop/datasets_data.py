"""Hugging Face `datasets` as data. A batch is a dict of NumPy arrays by column."""

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict  # pyright: ignore[reportMissingImports]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import batch_count, index_batches
from fulmen.dispatching.registry import dispatch


@dispatch
def batches(data: Dataset, plan, epoch, start=0):
    data = _arrays(data)
    return (data[indices] for indices in index_batches(len(data), plan, epoch, start))


@dispatch
def steps_per_epoch(data: Dataset, plan):
    return batch_count(len(data), plan)


@dispatch
def batches(data: IterableDataset, plan, epoch):
    data = _arrays(data)
    data.set_epoch(epoch)  # sets the order of a shuffled one
    return data.iter(plan.batch_size, drop_last_batch=plan.drop_last)


def _arrays(data: Any) -> Any:
    """The data set with NumPy arrays as its format; a format that the user chose, such as "jax", is kept."""
    kind = data.format["type"] if isinstance(data, Dataset) else getattr(data._formatting, "format_type", None)
    return data if kind is not None else data.with_format("numpy")


@dispatch
def steps_per_epoch(data: IterableDataset, plan):
    return None  # if PyTorch is installed, this class is a torch Dataset too, whose method would be chosen


@dispatch
def batches(data: DatasetDict | IterableDatasetDict, plan, epoch):
    return _refuse_several(data)


@dispatch
def steps_per_epoch(data: DatasetDict | IterableDatasetDict, plan):
    return _refuse_several(data)


def _refuse_several(data: Any) -> Any:
    splits = ", ".join(map(repr, data))
    raise TypeError(
        f"data must be one data set, got a dict of them: {splits}. Give one of them, such as data[{next(iter(data))!r}]."
    )
