"""Objectives of the model's parameters alone, and which parameters are kernels."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import at_least_float32, items, static
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.verbs import loss
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective, total


class Penalty(Objective):
    """An objective of the model's parameters, or of its kernels only."""

    per_example: ClassVar[bool] = True

    kernels_only: bool = static(default=True)


class L2(Penalty):
    """Half the sum of squares of the model's weights, ½ Σ w².

    Args:
        kernels_only: whether to leave out parameters with fewer than two axes, such as biases and the scales of normalizations.
    """


class L1(Penalty):
    """The sum of absolute values of the model's weights, Σ |w|.

    Args:
        kernels_only: as in `L2`.
    """


@dispatch
def loss(objective: L2, prediction):
    return _sum([jnp.sum(jnp.real(v * jnp.conj(v))) / 2 for v in _weights(objective, prediction.model)])


@dispatch
def loss(objective: L1, prediction):
    return _sum([jnp.sum(jnp.abs(v)) for v in _weights(objective, prediction.model)])


def _sum(values: list[jax.Array]) -> jax.Array:
    return total(values) if values else jnp.zeros(())


def _weights(objective: Penalty, model: Any) -> list[jax.Array]:
    everything = not objective.kernels_only
    return [at_least_float32(value) for value, is_kernel in parameters(model) if is_kernel or everything]


def parameters(component: Any) -> list[tuple[Any, bool]]:
    """The parameters of a component, and whether each is a kernel."""
    masks = leaves(kernels(component))
    return [(leaf.value, mask.value) for leaf, mask in zip(leaves(component), masks, strict=True) if leaf.role == PARAMETER]


def kernels(tree: Any) -> Any:
    """Which arrays of a tree are kernels: those with two axes or more, so no biases and no scales of normalizations.

    As a mask, it excludes the others from weight decay: `optimizer=optax.adamw, weight_decay=0.01, mask=fm.objectives.kernels`.
    The axes that a type adds in front of its parts' arrays, by its class attribute `leading_axes`, do not count.

    Args:
        tree: parameters: a component, or any tree of arrays.

    Returns:
        The same tree with True or False instead of each array.

    >>> fm.objectives.kernels({"weight": jnp.ones((3, 2)), "bias": jnp.ones(2)})
    {'bias': False, 'weight': True}
    """
    return _kernels(tree, 0)


def _kernels(node: Any, leading: int) -> Any:
    if jax.tree_util.all_leaves([node]):
        return np.ndim(node) - leading >= 2
    inside, structure = items(node)
    leading += getattr(type(node), "leading_axes", 0)
    return structure.unflatten([_kernels(inner, leading) for _, inner in inside])
