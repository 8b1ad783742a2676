"""Trees with a leading axis: several trees of one kind as one, each array in front of the others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ["each", "is_own", "join", "split", "take"]


def is_own(leaf: Any) -> bool:
    """Whether each tree has its own: what has axes has the leading one first. What is a mere number, all share."""
    return np.ndim(leaf) > 0


def take(tree: Any, i: Any) -> Any:
    """The tree at a place on the leading axis."""
    return jax.tree.map(lambda v: v[i] if is_own(v) else v, tree)


def split(tree: Any) -> tuple[list[Any], list[Any], Any]:
    """The leaves that each tree has its own of, those that all share (None in the others' places), and the structure."""
    leaves, structure = jax.tree.flatten(tree)
    return [v if is_own(v) else None for v in leaves], [None if is_own(v) else v for v in leaves], structure


def join(varying: list[Any], shared: list[Any], structure: Any) -> Any:
    """One of the trees, of its own leaves and the shared ones."""
    return structure.unflatten([s if v is None else v for v, s in zip(varying, shared, strict=True)])


def each(function: Callable[..., tuple[Any, Any]], tree: Any, *arguments: Any, axes: Any = 0) -> tuple[Any, Any]:
    """The trees after `function(one, *arguments) -> (new, extra)` of each, and the extras with a leading axis.

    Args:
        function: what it leaves of the new tree as it is and all share stays shared.
        tree: with the leading axis.
        *arguments: mapped over, as `jax.vmap` does.
        axes: where the arguments' leading axis is, as `in_axes` of `jax.vmap`; one for each, or one for all.
    """
    varying, shared, structure = split(tree)
    found: list[Any] = []

    def run(varying: Any, *arguments: Any) -> tuple[list[Any], Any]:
        new, extra = function(join(varying, shared, structure), *arguments)
        leaves, after = jax.tree.flatten(new)
        kept = [v if not hasattr(v, "shape") or any(v is s for s in shared) else None for v in leaves]
        found[:] = kept, after
        return [v for v, k in zip(leaves, kept, strict=True) if k is None], extra

    axes = axes if isinstance(axes, tuple) else (axes,) * len(arguments)
    moved, extra = jax.vmap(run, in_axes=(0, *axes))(varying, *arguments)
    new = iter(moved)
    kept, after = found
    return after.unflatten([next(new) if k is None else k for k in kept]), extra
