"""Mergeable values: an epoch's value is exact, independent of how the data is split into batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.batch_checks import check_weight
from fulmen.core.tree import Tree


class Mergeable(Tree):
    """A value made of sums: all leaves are numbers or arrays that add up over batches, and `compute` combines them.

    **Extending.** Subclass it with fields for the sums, and `compute(self)`.
    """

    @property
    def newest(self) -> bool:
        """Whether the newest value replaces the older ones, rather than being added."""
        return False

    def compute(self) -> Any:
        """The value. It also runs on the host, on NumPy arrays in float64."""
        raise NotImplementedError

    def logged(self, name: str) -> dict[str, Any]:
        """The values to log under a name."""
        return {name: self.compute()}


class Mean(Mergeable):
    """A weighted mean.

    Args:
        values: a number, or `(n, …)`, averaged over all axes.
        weight: the weight of each example, `(n,)`, or a number; None is 1 for each.

    Raises:
        ValueError: for weights of another length, and for negative or NaN ones on the host.

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
            self.total, self.weight = values.sum(), jnp.asarray(values.size, values.dtype)
        else:
            weight = _along(jnp.asarray(weight).astype(values.dtype), values.shape)
            # An example of weight 0 is padding, and may be anything.
            self.total, self.weight = jnp.where(weight == 0, 0, values * weight).sum(), weight.sum()

    def compute(self) -> Any:
        return self.total / self.weight


def _along(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Weights of the leading axes, broadcast to the shape of the values."""
    check_weight(weight)
    if weight.shape != shape[: weight.ndim]:
        raise ValueError(
            f"Mean, weight must have one number per example, {shape[:1]}, or be a number, got shape {weight.shape} for values of "
            f"shape {shape}."
        )
    return jnp.broadcast_to(weight.reshape(*weight.shape, *[1] * (len(shape) - weight.ndim)), shape)


class Last(Mergeable):
    """A value of which the newest counts, such as a learning rate.

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
    """The values of several members: logged as their mean, and as `…/std` and `…/members`.

    Args:
        each: the value, whose arrays have a leading axis for the members.
    """

    each: Mergeable

    @property
    def newest(self) -> bool:
        return self.each.newest

    def compute(self) -> Any:
        """`(n, …)`, each member's value."""
        leaves, structure = jax.tree.flatten(self.each)
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jax.vmap(lambda value: value.compute())(self.each)
        return np.stack([structure.unflatten([v[i] for v in leaves]).compute() for i in range(len(leaves[0]))])

    def logged(self, name: str) -> dict[str, Any]:
        values = self.compute()
        return {name: values.mean(0), f"{name}/std": values.std(0), f"{name}/members": values}
