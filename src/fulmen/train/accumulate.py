"""Logs that add up on the device, and are read late."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Ledger"]


class Ledger:
    """How the mergeable values of a step lie in one float vector, and their sums on the host.

    The vector grows on the device and is handed over now and then, to be read when the device has long been done with it;
    the host adds up in float64. So no step waits, and no epoch is too long for float32.

    Args:
        logs: from names to mergeable values, arrays or their shapes.
    """

    def __init__(self, logs: dict[str, Any]) -> None:
        # What is not a sum lies at the end.
        order = sorted(logs, key=lambda name: logs[name].newest)
        self.names, shapes = list(logs), {name: logs[name] for name in order}
        self.order = order
        leaves, self.structure = jax.tree.flatten([shapes[name] for name in order])
        self.shapes = [leaf.shape for leaf in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.latest = sum(math.prod(leaf.shape) for v in logs.values() if v.newest for leaf in jax.tree.leaves(v))
        self.size = sum(self.sizes)
        self.dtype = np.result_type(np.float32, *(leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)))
        self.waiting: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew, as for the next epoch."""
        self.waiting.clear()
        self.total = self.newest = np.zeros(self.size)

    def zeros(self) -> np.ndarray:
        """A vector to begin with."""
        return np.zeros(self.size, self.dtype)

    def add(self, vector: jax.Array, logs: dict[str, Any]) -> jax.Array:
        """The vector with a step's logs in it; runs in the compiled step."""
        leaves = jax.tree.leaves([logs[name] for name in self.order])
        flat = jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in leaves])
        sums = self.size - self.latest
        return jnp.concatenate([vector[:sums] + flat[:sums], flat[sums:]]) if self.latest else vector + flat

    def hand_over(self, vector: Any) -> None:
        """Take a vector that the device may not be done with yet."""
        self.waiting.append(vector)

    def read(self, keep: int = 0) -> dict[str, Any]:
        """The figures so far, leaving the newest `keep` vectors unread."""
        while len(self.waiting) > keep:
            self.newest = np.asarray(self.waiting.pop(0), np.float64)
            sums = self.size - self.latest
            self.total = np.concatenate([self.total[:sums] + self.newest[:sums], self.newest[sums:]])
        return self._figures(self.total)

    def read_newest(self) -> dict[str, Any]:
        """The figures of the newest vector alone; all are read."""
        self.read()
        return self._figures(self.newest)

    def _figures(self, vector: np.ndarray) -> dict[str, Any]:
        parts = np.split(vector, np.cumsum(self.sizes)[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        figures = dict(zip(self.order, self.structure.unflatten(leaves), strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            return {key: _plain(v) for name in self.names for key, v in figures[name].logged(name).items()}


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else np.asarray(value)
