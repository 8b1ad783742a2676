"""Values that can be merged, so that an epoch's figure is exact however the data was cut into batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.border import check_weight
from fulmen.core.tree import Tree

__all__ = ["Last", "Mean", "Mergeable", "Spread"]


class Mergeable(Tree):
    """A figure as sums: all leaves are numbers or arrays that add up over batches; `compute` reads the figure off them.

    Subclass it for a figure of one's own: fields for the sums, and `compute(self)`.
    """

    @property
    def newest(self) -> bool:
        """Whether the newest value counts, and not a sum."""
        return False

    def compute(self) -> Any:
        """The figure. Runs on the host too, on NumPy arrays in float64."""
        raise NotImplementedError

    def figures(self, name: str) -> dict[str, Any]:
        """What is logged of it, where it is called `name`."""
        return {name: self.compute()}


class Mean(Mergeable):
    """A weighted mean.

    Args:
        values: a number, or numbers for each example, `(n, …)`, of which the mean is taken over all axes.
        weight: how much each example counts, `(n,)`, or a number; None counts each as 1.

    Raises:
        ValueError: for weights of another number of examples, and for negative or NaN ones on the host.

    >>> float(fm.Mean(jnp.array([1.0, 2.0, 6.0])).compute())
    3.0
    """

    total: jax.Array
    weight: jax.Array

    def __init__(self, values: Any, weight: Any = None) -> None:
        values = jnp.asarray(values)
        with jax.numpy_dtype_promotion("standard"):
            values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        if weight is None:
            total, count = values.sum(), jnp.asarray(values.size, values.dtype)
        else:
            weight = _along(jnp.asarray(weight).astype(values.dtype), values.shape)
            # An example of weight 0 is padding, and may be anything.
            total, count = jnp.where(weight == 0, 0, values * weight).sum(), weight.sum()
        self.__dict__.update(total=total, weight=count)

    def compute(self) -> Any:
        return self.total / self.weight


def _along(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Weights in the shape of the values, of which they weigh the leading axes."""
    check_weight(weight)
    if weight.shape != shape[: weight.ndim]:
        raise ValueError(
            f"Mean, weight must have one number per example, {shape[:1]}, or be a number, got shape {weight.shape} for values of shape "
            f"{shape}."
        )
    return jnp.broadcast_to(weight.reshape(*weight.shape, *[1] * (len(shape) - weight.ndim)), shape)


class Last(Mergeable):
    """A figure of which the newest counts, such as a learning rate.

    Args:
        value: a number.
    """

    value: jax.Array

    @property
    def newest(self) -> bool:
        return True

    def compute(self) -> Any:
        return self.value


class Spread(Mergeable):
    """A figure of several members: logged as their mean, their standard deviation and each one's, `…/std` and `…/members`.

    Args:
        each: the figure, whose arrays have a leading axis, that of the members.
    """

    each: Mergeable

    @property
    def newest(self) -> bool:
        return self.each.newest

    def compute(self) -> Any:
        """`(n, …)`, each member's figure."""
        leaves, structure = jax.tree.flatten(self.each)
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jax.vmap(lambda figure: figure.compute())(self.each)
        return np.stack([structure.unflatten([v[i] for v in leaves]).compute() for i in range(len(leaves[0]))])

    def figures(self, name: str) -> dict[str, Any]:
        values = self.compute()
        return {name: values.mean(0), f"{name}/std": values.std(0), f"{name}/members": values}
