"""Logs that are summed on the device and read later."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Ledger:
    """The layout of a step's mergeable values in one float vector, and their sums on the host.

    The device adds up the logs of some steps in one vector, which the host reads when the device has long computed it and adds up
    in float64. So no step waits, and a long epoch loses no precision. Vectors are complete after fixed numbers of steps, so that
    the sums do not depend on when they are read.

    Args:
        logs: mergeable values by name, with arrays or their shapes.

    Attributes:
        layout: the names of the metrics in the vector and how many numbers each has, in order.
    """

    def __init__(self, logs: dict[str, Any]) -> None:
        self.names = list(logs)
        self.order = sorted(logs, key=lambda name: logs[name].newest)  # values that are not summed are at the end
        leaves, self.structure = jax.tree.flatten([logs[name] for name in self.order])
        self.shapes = [leaf.shape for leaf in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)
        self.layout = [f"{name}: {sum(math.prod(v.shape) for v in jax.tree.leaves(logs[name]))}" for name in self.order]
        newest = jax.tree.leaves([v for v in logs.values() if v.newest])
        self.summed = self.size - sum(math.prod(leaf.shape) for leaf in newest)
        self.dtype = np.result_type(np.float32, *(leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)))
        self.unread: list[tuple[Any, bool]] = []
        self.clear()

    def clear(self) -> None:
        """Start from zero, as for the next epoch."""
        self.unread.clear()
        self.total = self.newest = self.shown = self.before = np.zeros(self.size)

    def zeros(self) -> np.ndarray:
        """The vector before the first step, `(size,)`."""
        return np.zeros(self.size, self.dtype)

    def add(self, vector: jax.Array, logs: dict[str, Any]) -> jax.Array:
        """The vector with a step's logs added; for the compiled step."""
        leaves = jax.tree.leaves([logs[name] for name in self.order])
        return self._sum(jnp, vector, jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in leaves]))

    def _sum(self, xp: Any, total: Any, added: Any) -> Any:
        if self.summed == self.size:
            return total + added
        return xp.concatenate([total[: self.summed] + added[: self.summed], added[self.summed :]])

    def append(self, vector: Any, complete: bool = True) -> None:
        """Take a vector, which the device may still be computing; one that is not complete is read and then replaced."""
        self.unread.append((vector, complete))

    def read(self, keep: int = 0) -> dict[str, Any]:
        """The metrics so far by name, without the newest `keep` vectors."""
        self._collect(keep)
        return self._metrics(self.shown)

    def _collect(self, keep: int = 0) -> None:
        while len(self.unread) > keep:
            vector, complete = self.unread.pop(0)
            self.newest = np.asarray(vector, np.float64)
            self.before, self.shown = self.total, self._sum(np, self.total, self.newest)
            self.total = self.shown if complete else self.total

    def discard_newest(self) -> None:
        """Take the newest vector that was read out of the sums."""
        self.total = self.shown = self.before

    def read_newest(self) -> dict[str, Any]:
        """The metrics of the newest vector alone."""
        self._collect()
        return self._metrics(self.newest)

    def _metrics(self, vector: np.ndarray) -> dict[str, Any]:
        parts = np.split(vector, np.cumsum(self.sizes)[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        values = dict(zip(self.order, self.structure.unflatten(leaves), strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {key: plain(v) for name in self.names for key, v in values[name].logged(name).items()}


def plain(value: Any) -> Any:
    """A single number as a Python float, anything else as a NumPy array."""
    return float(value) if np.ndim(value) == 0 else np.asarray(value)
