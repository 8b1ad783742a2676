"""Trees with a leading axis: several trees of the same structure as one, with their arrays stacked."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def is_own(leaf: Any) -> bool:
    """Whether a leaf has the leading axis: each tree then has its own. All trees share leaves without axes."""
    return np.ndim(leaf) > 0


def take(tree: Any, i: Any) -> Any:
    """The tree at an index of the leading axis."""
    varying, shared, structure = split(tree)
    return join(_at(varying, i), shared, structure)


@jax.jit
def _at(varying: Any, i: Any) -> Any:
    """One program for all arrays and indices, instead of two for each shape."""
    return jax.tree.map(lambda v: v[i], varying)


def split(tree: Any) -> tuple[list[Any], list[Any], Any]:
    """The stacked leaves, the shared leaves (with None in place of the others), and the structure."""
    leaves, structure = jax.tree.flatten(tree)
    return [v if is_own(v) else None for v in leaves], [None if is_own(v) else v for v in leaves], structure


def join(varying: list[Any], shared: list[Any], structure: Any) -> Any:
    """The tree of given stacked and shared leaves."""
    return structure.unflatten([s if v is None else v for v, s in zip(varying, shared, strict=True)])


def each(function: Callable[..., tuple[Any, Any]], tree: Any, *arguments: Any, axes: Any = 0) -> tuple[Any, Any]:
    """The new trees and extras of `function(one, *arguments) -> (new, extra)` for each tree, with a leading axis.

    Shared leaves that the function returns unchanged remain shared. The arguments are mapped over along `axes`, one for all or
    one for each, as by `jax.vmap`.
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
