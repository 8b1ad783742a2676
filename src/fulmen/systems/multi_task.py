"""`MultiTask`: one backbone, and a head for each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fulmen.compose.losses import entry, per_example
from fulmen.core.batch import Labeled
from fulmen.core.component import Component, System
from fulmen.core.marks import keeps_rows
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import as_batch, forward, losses, metrics, predictions, reduce_losses, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["MultiTask"]


class MultiTask(System):
    """A backbone that all tasks share, and a head for each: a system that sees the backbone's features as its x.

    The data are a dict with `x` and the targets of each task by its name. The loss is the sum of the heads' (`Weighted` weighs
    them), so the backbone's gradient is the sum of all tasks'. Outputs are a dict.

    Args:
        backbone: from x to features.
        heads: by the task's name, a system such as `fm.Classifier(fm.models.Dense(64, 10))`, or a model with a loss.

    >>> data = dict(x=jnp.ones((6, 4)), digit=jnp.arange(6) % 3, size=jnp.ones((6, 1)))
    >>> heads = dict(digit=fm.Classifier(fm.models.Dense(8, 3)), size=fm.Regressor(fm.models.Dense(8, 1)))
    >>> state = fm.setup(fm.MultiTask(fm.models.Dense(4, 8), heads), data, optimizer=optax.adam, lr=1e-3)
    >>> sorted(fm.evaluate(state, data))
    ['digit/accuracy', 'loss', 'loss/digit/cross_entropy', 'loss/size/mse', 'size/mean_absolute_error']
    """

    backbone: Component
    heads: dict[str, Component]

    @property
    def per_example(self) -> bool:
        """As far as all heads say so."""
        return all(map(per_example, self.heads.values()))


@dispatch
@keeps_rows
def as_batch(tasks: MultiTask, raw: dict):
    y: Any = {name: v for name, v in raw.items() if name not in ("x", "weight", "index")}
    if "x" not in raw or set(y) != set(tasks.heads):
        raise ValueError(
            f"MultiTask takes a dict with x and the targets of its heads: {', '.join(['x', *tasks.heads])}; and "
            f"{', '.join(map(str, raw))} came."
        )
    return Labeled(raw["x"], y, weight=raw.get("weight"), index=raw.get("index"))


def _tasks(tasks: MultiTask, features: Any, batch: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each task's name, head and batch."""
    for name, head in tasks.heads.items():
        yield name, head, as_batch(head, Labeled(features, batch.y[name], weight=batch.weight, index=batch.index))


@dispatch
def forward(tasks: MultiTask, x):
    features = forward(tasks.backbone, x)
    return {name: forward(head, features) for name, head in tasks.heads.items()}


@dispatch
def losses(tasks: MultiTask, batch):
    features = forward(tasks.backbone, batch.x)
    return {name: entry(head, own) for name, head, own in _tasks(tasks, features, batch)}


@dispatch
def reduce_losses(tasks: MultiTask, losses, batch):
    owns = {name: (head, own) for name, head, own in _tasks(tasks, batch.x, batch)}
    plain = {}
    for name, value in losses.items():
        head, own = owns[name]
        plain[name] = reduce_losses(head, value, own) if isinstance(value, dict) else value
    return reduce_losses.invoke(System, object, object)(tasks, plain, batch)


@dispatch
def metrics(tasks: MultiTask, batch):
    features = forward(tasks.backbone, batch.x)
    return {
        f"{name}/{key}": value
        for name, head, own in _tasks(tasks, features, batch)
        for key, value in metrics(head, own).items()
    }


@dispatch
def predictions(tasks: MultiTask, batch):
    features = forward(tasks.backbone, batch.x)
    return {
        f"{name}/{path}" if path else name: prediction
        for name, head, own in _tasks(tasks, features, batch)
        for path, prediction in predictions(head, own).items()
    }


@dispatch
def validate(tasks: MultiTask):
    if not tasks.heads:
        raise ValueError("MultiTask.heads must have at least one system, got {}.")
    taken = [name for name in tasks.heads if name in ("x", "weight", "index")]
    if taken:
        raise ValueError(f"MultiTask, heads: {taken[0]!r} names something else in the data; call that task otherwise.")


@dispatch
def validate(tasks: MultiTask, batch):
    if not isinstance(getattr(batch, "y", None), dict):
        raise TypeError(
            f"MultiTask takes the targets of each head: a dict with {', '.join(['x', *tasks.heads])}; a {type(batch).__name__} "
            "batch came."
        )
    shape = output_shapes(evaluated, tasks.backbone, batch.x)
    features = np.broadcast_to(np.zeros((), shape.dtype), shape.shape)  # no memory for its rows
    for _, head, own in _tasks(tasks, features, batch):
        validate(head, own)
