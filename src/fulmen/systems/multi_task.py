"""`MultiTask`: one backbone, and a head for each task."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fulmen.compose.example_means import per_example
from fulmen.compose.loss_entries import entry_part, joined, part_entry
from fulmen.core import Component, Labeled, System, keeps_rows
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import as_batch, forward, losses, metrics, predictions, validate
from fulmen.dispatching.registry import dispatch


class MultiTask(System):
    """A backbone that all tasks share, and a head for each task, whose inputs are the backbone's features.

    Data is a dict with `x` and the targets of each task under its name. The loss is the sum of the heads' losses (`Weighted`
    weighs them). The outputs are a dict with those of each head.

    Args:
        backbone: a model from x to features.
        heads: from the tasks' names to systems, such as `fm.Classifier(fm.models.Dense(64, 10))`, or to models with a loss.

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
        """Whether all heads are per example."""
        return all(map(per_example, self.heads.values()))


@dispatch
@keeps_rows
def as_batch(tasks: MultiTask, raw: dict):
    y: Any = {name: v for name, v in raw.items() if name not in ("x", "weight", "index")}
    if "x" not in raw or set(y) != set(tasks.heads):
        raise ValueError(
            f"data of a MultiTask must be a dict with x and the targets of its heads, {', '.join(['x', *tasks.heads])}; got "
            f"{', '.join(map(str, raw))}."
        )
    return Labeled(raw["x"], y, weight=raw.get("weight"), index=raw.get("index"))


def _head_batch(tasks: MultiTask, name: str, features: Any, batch: Any) -> Any:
    return as_batch(tasks.heads[name], Labeled(features, batch.y[name], weight=batch.weight, index=batch.index))


def _heads(tasks: MultiTask, batch: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each task's name, its head, and the head's batch."""
    features = forward(tasks.backbone, batch.x)
    return ((name, head, _head_batch(tasks, name, features, batch)) for name, head in tasks.heads.items())


@dispatch
def entry_part(tasks: MultiTask, name, batch):
    head = tasks.heads.get(name)
    return head, batch if head is None else _head_batch(tasks, name, batch.x, batch)


@dispatch
def forward(tasks: MultiTask, x):
    features = forward(tasks.backbone, x)
    return {name: forward(head, features) for name, head in tasks.heads.items()}


@dispatch
def losses(tasks: MultiTask, batch):
    return {name: part_entry(head, own) for name, head, own in _heads(tasks, batch)}


@dispatch
def metrics(tasks: MultiTask, batch):
    return joined({name: metrics(head, own) for name, head, own in _heads(tasks, batch)})


@dispatch
def predictions(tasks: MultiTask, batch):
    return joined({name: predictions(head, own) for name, head, own in _heads(tasks, batch)})


@dispatch
def validate(tasks: MultiTask):
    if not tasks.heads:
        raise ValueError("MultiTask.heads must have at least one system, got {}.")
    taken = [name for name in tasks.heads if name in ("x", "weight", "index")]
    if taken:
        raise ValueError(
            f"MultiTask.heads must not have the name {taken[0]!r}, which is reserved in the data; rename the task."
        )


@dispatch
def validate(tasks: MultiTask, batch):
    if not isinstance(getattr(batch, "y", None), dict):
        raise TypeError(
            f"data of a MultiTask must be a dict with x and the targets of its heads, {', '.join(['x', *tasks.heads])}; got a "
            f"{type(batch).__name__} batch."
        )
    shape = output_shapes(evaluated, tasks.backbone, batch.x)
    features = np.broadcast_to(np.zeros((), shape.dtype), shape.shape)  # no memory for its rows
    for name, head in tasks.heads.items():
        validate(head, _head_batch(tasks, name, features, batch))
