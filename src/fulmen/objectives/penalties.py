"""Objectives that look at the model's parameters alone, and which of those are kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.fields import static
from fulmen.core.leaves import PARAMETER, components, leaves
from fulmen.core.paths import covers
from fulmen.core.prediction import at_least_float32
from fulmen.core.tree import items
from fulmen.core.verbs import loss
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective, total

__all__ = ["L1", "L2", "kernels"]


class L2(Objective):
    """Half the sum of squares of the model's weights, ½ Σ w².

    Args:
        kernels_only: count only parameters with two axes or more, which leaves out biases and the scales of
            normalizations.
    """

    per_example: ClassVar[bool] = True

    kernels_only: bool = static(default=True)


class L1(Objective):
    """The sum of the sizes of the model's weights, Σ |w|.

    Args:
        kernels_only: count only parameters with two axes or more, which leaves out biases and the scales of
            normalizations.
    """

    per_example: ClassVar[bool] = True

    kernels_only: bool = static(default=True)


@dispatch
def loss(objective: L2, prediction):
    return _sum([jnp.sum(jnp.real(v * jnp.conj(v))) / 2 for v in _weights(objective, prediction.model)])


@dispatch
def loss(objective: L1, prediction):
    return _sum([jnp.sum(jnp.abs(v)) for v in _weights(objective, prediction.model)])


def _sum(values: list[jax.Array]) -> jax.Array:
    return total(values) if values else jnp.zeros(())


def _weights(objective: L1 | L2, model: Any) -> list[jax.Array]:
    stacked = [(path, part) for path, part in components(model) if _leading_axes(part)]
    found = []
    for leaf in leaves(model):
        if leaf.role == PARAMETER:
            above = sum(_leading_axes(part) for path, part in stacked if covers(path, leaf.path))
            if leaf.value.ndim - above >= 2 or not objective.kernels_only:
                found.append(at_least_float32(leaf.value))
    return found


def kernels(tree: Any) -> Any:
    """Which arrays of a tree are kernels: those with two axes or more, so no biases, and no scales of normalizations.

    As a mask, weight decay leaves out the others: `optimizer=optax.adamw, lr=1e-3, weight_decay=0.01, mask=fm.objectives.kernels`.
    The axes that a type says it adds in front of its parts' arrays, by a class attribute `leading_axes`, do not count.

    Args:
        tree: parameters: a component, or any tree of arrays.

    Returns:
        The same tree with True or False in the place of each array.

    >>> fm.objectives.kernels({"weight": jnp.ones((3, 2)), "bias": jnp.ones(2)})
    {'bias': False, 'weight': True}
    """
    return _kernels(tree, 0)


def _kernels(node: Any, above: int) -> Any:
    inside, structure = items(node)
    if not inside and jax.tree_util.treedef_is_leaf(structure) and node is not None:
        return np.ndim(node) - above >= 2
    above += _leading_axes(node)
    return structure.unflatten([_kernels(inner, above) for _, inner in inside])


def _leading_axes(node: Any) -> int:
    return getattr(type(node), "leading_axes", 0)
