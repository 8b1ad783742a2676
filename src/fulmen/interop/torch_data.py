"""PyTorch's `DataLoader` and `Dataset` as data. Tensors become NumPy arrays, and lists become tuples."""
# A loader with worker processes forks after JAX has started threads, so Python and JAX warn. To avoid that, use
# DataLoader(…, multiprocessing_context="forkserver").

import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import torch  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate  # pyright: ignore[reportMissingImports]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import batch_count, index_batches
from fulmen.data.iterables import length, refuse_drop_last
from fulmen.dispatching.registry import dispatch


@dispatch
def batches(data: DataLoader, plan, epoch, start=0):
    for sampler in (data.sampler, data.batch_sampler):
        if hasattr(sampler, "set_epoch"):  # a distributed sampler, which would repeat its order otherwise
            sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return map(_as_numpy, _from(data, start) if start else data)


@dispatch
def steps_per_epoch(data: DataLoader, plan):
    refuse_drop_last(data, plan)
    return length(data)


def _from(data: DataLoader, start: int) -> Iterator[Any]:
    """A loader's batches from `start` on. The indices of those before are drawn, but their examples are not loaded."""
    if isinstance(data.dataset, IterableDataset):
        return itertools.islice(data, start, None)
    samplers = dict(batch_sampler=_Skipping(data.batch_sampler, start))
    if not data.batch_sampler:
        samplers = dict(batch_size=None, sampler=_Skipping(data.sampler, start))
    same = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator")
    options = {name: getattr(data, name) for name in (*same, "prefetch_factor")}
    return iter(DataLoader(data.dataset, **samplers, **options))  # type: ignore[arg-type]


class _Skipping:
    """A sampler without its first items."""

    def __init__(self, sampler: Any, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.sampler, self.start, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.start


@dispatch
def batches(data: Dataset, plan, epoch, start=0):
    return (_as_numpy(_rows(data, indices)) for indices in index_batches(_examples(data), plan, epoch, start))


@dispatch
def steps_per_epoch(data: Dataset, plan):
    return batch_count(_examples(data), plan)


def _examples(data: Dataset) -> int:
    n = length(data)
    if n is None:
        raise TypeError(
            f"data: a Dataset must have a length, but {type(data).__name__} has none. Write `__len__`, or derive the class from "
            "torch.utils.data.IterableDataset."
        )
    return n


def _rows(data: Any, indices: Any) -> Any:
    if isinstance(data, TensorDataset):
        indices = torch.as_tensor(indices)
        return [tensor[indices] for tensor in data.tensors]
    indices = indices.tolist()
    return default_collate(data.__getitems__(indices) if hasattr(data, "__getitems__") else [data[i] for i in indices])


@dispatch
def batches(data: IterableDataset, plan, epoch):
    examples = iter(data)
    while some := [*itertools.islice(examples, plan.batch_size)]:
        if plan.drop_last and len(some) < plan.batch_size:
            return
        yield _as_numpy(default_collate(some))


@dispatch
def steps_per_epoch(data: IterableDataset, plan):
    n = length(data)
    return None if n is None else batch_count(n, plan)


def _as_numpy(batch: Any) -> Any:
    """A batch with arrays for tensors and tuples for lists, which `default_collate` makes of tuples; a single item alone."""
    if isinstance(batch, torch.Tensor):
        batch = batch.detach().cpu()
        # NumPy has no bfloat16; JAX's is used.
        return batch.view(torch.int16).numpy().view(jnp.bfloat16) if batch.dtype is torch.bfloat16 else batch.numpy()
    if isinstance(batch, dict):
        return {key: _as_numpy(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return _as_numpy(batch[0]) if len(batch) == 1 else tuple(map(_as_numpy, batch))
    return batch
