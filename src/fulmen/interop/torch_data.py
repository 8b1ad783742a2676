"""PyTorch's `DataLoader` and `Dataset` as data. Batches come as NumPy arrays, and lists of them as tuples."""
# Loaded with worker processes, a loader forks after JAX has started threads, of which Python and JAX warn:
# DataLoader(…, multiprocessing_context="forkserver") does not.

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import torch  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate  # pyright: ignore[reportMissingImports]

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import batch_count, order
from fulmen.data.iterables import length, refuse_drop_last
from fulmen.dispatching.registry import dispatch

__all__: list[str] = []


@dispatch
def batches(data: DataLoader, plan, epoch, start=0):
    for sampler in (
        data.sampler,
        data.batch_sampler,
    ):  # as those of several processes have, which would else repeat an order
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return map(_plain, _from(data, start) if start else data)


@dispatch
def steps_per_epoch(data: DataLoader, plan):
    refuse_drop_last(data, plan)
    return length(data)


def _from(data: DataLoader, start: int) -> Iterator[Any]:
    """A loader's batches from one on. Those before it are drawn, as they would have been, and not loaded."""
    if isinstance(data.dataset, IterableDataset):
        return itertools.islice(data, start, None)
    drawn = (
        dict(batch_sampler=_Rest(data.batch_sampler, start))
        if data.batch_sampler
        else dict(batch_size=None, sampler=_Rest(data.sampler, start))
    )
    same = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator")
    options = {name: getattr(data, name) for name in (*same, "prefetch_factor")}
    return iter(DataLoader(data.dataset, **drawn, **options))  # type: ignore[arg-type]


class _Rest:
    """What a sampler draws after its first items."""

    def __init__(self, sampler: Any, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.sampler, self.start, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.start


@dispatch
def batches(data: Dataset, plan, epoch, start=0):
    n, size = _examples(data), plan.batch_size
    chosen = order(n, plan, epoch)[: n - n % size if plan.drop_last else n]
    return (_plain(_rows(data, chosen[i : i + size])) for i in range(start * size, len(chosen), size))


@dispatch
def steps_per_epoch(data: Dataset, plan):
    return batch_count(_examples(data), plan)


def _examples(data: Dataset) -> int:
    n = length(data)
    if n is None:
        raise TypeError(
            f"data: a Dataset with a length was expected, and {type(data).__name__} has none. Give it `__len__`, or derive it from "
            "torch.utils.data.IterableDataset."
        )
    return n


def _rows(data: Any, rows: Any) -> Any:
    if isinstance(data, TensorDataset):
        some = torch.as_tensor(rows)
        return [tensor[some] for tensor in data.tensors]
    rows = rows.tolist()
    items = data.__getitems__(rows) if hasattr(data, "__getitems__") else [data[i] for i in rows]
    return default_collate(items)


@dispatch
def batches(data: IterableDataset, plan, epoch):
    examples = iter(data)
    while some := [*itertools.islice(examples, plan.batch_size)]:
        if plan.drop_last and len(some) < plan.batch_size:
            return
        yield _plain(default_collate(some))


@dispatch
def steps_per_epoch(data: IterableDataset, plan):
    n = length(data)
    return None if n is None else batch_count(n, plan)


def _plain(batch: Any) -> Any:
    """Tensors as arrays, and the lists that `default_collate` makes of tuples as tuples again; one alone as itself."""
    if isinstance(batch, torch.Tensor):
        batch = batch.detach().cpu()
        # NumPy knows of no bfloat16 by itself.
        return batch.view(torch.int16).numpy().view(jnp.bfloat16) if batch.dtype is torch.bfloat16 else batch.numpy()
    if isinstance(batch, dict):
        return {key: _plain(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return _plain(batch[0]) if len(batch) == 1 else tuple(map(_plain, batch))
    return batch
