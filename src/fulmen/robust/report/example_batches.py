"""`ExampleBatches`: a system with its data in batches, and the shape of its one prediction."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fulmen.compose.vectorized import members_of
from fulmen.core import Eval, Prediction, bound_mode, keep, pack, remake
from fulmen.core.verbs import as_batch, bind, predictions
from fulmen.data.arrays import check_arrays
from fulmen.devices.policies import Policy, on_rows
from fulmen.robust.attacks.attack_loop import bucket


class ExampleBatches:
    """A system and its data, in batches of about equal size, which are padded by repeating examples.

    Attributes:
        system: the component.
        data: the data, not yet a batch.
        whole: all examples as one batch.
        n: the number of examples.
        batch_size: the number of examples in a batch.
        devices: the policy by which the batches are distributed over devices, or None.
        leaves, structure: those of the system.
    """

    def __init__(self, system: Any, data: Any, batch_size: int, devices: Policy | None = None) -> None:
        self.leaves, self.structure = pack(system)
        keep(self.structure, system)
        self.system, self.data, self.devices = self.structure.unpack(self.leaves), check_arrays(data), devices
        self.whole: Any = as_batch(self.system, self.data)
        self.n = len(self.whole)
        self.batch_size = -(-self.n // -(-self.n // min(batch_size, self.n)))  # of equal size, with the least padding

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The classes of all examples, `(n,)`."""
        y = np.asarray(self.whole.y)
        return (y if y.ndim == 1 else y.argmax(1)).astype(np.int32)

    def chunks(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Some rows, or all, in pieces of at most the batch size."""
        rows = np.arange(self.n) if rows is None else rows
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, and copies of them, as `batch` adds them."""
        return np.resize(rows, bucket(len(rows), self.batch_size))

    def batch(self, rows: np.ndarray) -> Any:
        """The batch of some examples, with their `index`."""
        rows = self.padded(rows)
        batch = as_batch(self.system, jax.tree.map(lambda v: v[rows], self.data))
        index = rows.astype(np.int32) if batch.index is None else batch.index
        return on_rows(remake(batch, {"index": index, "weight": None}), self.devices)


def in_eval_mode(system: Any, key: Any) -> Any:
    """The system in `Eval` mode unless it is bound to another mode."""
    return bind(system, Eval(key)) if bound_mode(system) is None else system


def outputs_of(system: Any, batch: Any, key: Any) -> list[Any]:
    """The outputs of each classifier of a system in its mode."""
    return [found.outputs for found in predictions(in_eval_mode(system, key), batch).values()]


def sole_prediction(who: str, system: Any, batch: Any, key: Any, labelled: bool = True) -> Prediction:
    """The prediction of a system's one classifier for a batch, as shapes.

    Raises:
        ValueError: with the verb `who` that needs it, unless there is exactly one prediction, and labels if these are needed.
    """
    found = jax.eval_shape(lambda one: predictions(in_eval_mode(system, key), one), batch[:1])
    if len(found) != 1:
        kind, paths = type(system).__name__, ", ".join(map(repr, found)) or "none"
        remedy = f"write `forward(system: {kind}, x)` that returns its logits"
        if members_of(system, system):
            remedy = "give one of the parts, such as fm.members(state)[0]"
        elif found:
            remedy = f"give one of the parts, such as state.system.{next(iter(found)).replace('/', '.')}, or {remedy}"
        raise ValueError(
            f"{who} needs a system with one classifier, and {kind} has {len(found)} predictions ({paths}): {remedy}."
        )
    if labelled and getattr(batch, "y", None) is None:
        raise ValueError(f"{who} needs labels, and the data has no labels y: give pairs (x, y).")
    (prediction,) = found.values()
    like = lambda v: jax.ShapeDtypeStruct((len(batch), *v.shape[1:]), v.dtype)
    return remake(prediction, {"outputs": jax.tree.map(like, prediction.outputs), "batch": batch})
