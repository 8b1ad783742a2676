"""Hugging Face `datasets` as data. A batch is a dict of NumPy arrays by column."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict  # pyright: ignore[reportMissingImports]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import batch_count, order
from fulmen.dispatching.registry import dispatch

__all__: list[str] = []


@dispatch
def batches(data: Dataset, plan, epoch, start=0):
    data, n, size = _arrays(data), len(data), plan.batch_size
    chosen = order(n, plan, epoch)[: n - n % size if plan.drop_last else n]
    return (data[chosen[i : i + size]] for i in range(start * size, len(chosen), size))


@dispatch
def steps_per_epoch(data: Dataset, plan):
    return batch_count(len(data), plan)


@dispatch
def batches(data: IterableDataset, plan, epoch):
    data = _arrays(data)
    data.set_epoch(epoch)  # for one that was shuffled
    return data.iter(plan.batch_size, drop_last_batch=plan.drop_last)


def _arrays(data: Any) -> Any:
    """The data set as one that gives NumPy arrays; a format of the user's own, such as "jax", stays."""
    kind = data.format["type"] if isinstance(data, Dataset) else getattr(data._formatting, "format_type", None)
    return data if kind is not None else data.with_format("numpy")


@dispatch
def steps_per_epoch(data: IterableDataset, plan):
    return None  # said here, since with PyTorch there it is one of its data sets too


@dispatch
def batches(data: DatasetDict | IterableDatasetDict, plan, epoch):
    return _refuse_several(data)


@dispatch
def steps_per_epoch(data: DatasetDict | IterableDatasetDict, plan):
    return _refuse_several(data)


def _refuse_several(data: Any) -> Any:
    splits = ", ".join(map(repr, data))
    raise TypeError(
        f"data: one data set was expected, and several came: {splits}. Give one of them, such as data[{next(iter(data))!r}]."
    )
