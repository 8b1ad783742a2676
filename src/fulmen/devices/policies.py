"""Policies: how arrays are distributed over a mesh, as types on which `partition` dispatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fulmen.core.immutable import Immutable
from fulmen.data.arrays import count
from fulmen.devices.processes import own_rows, several

Axes = tuple[Any, ...]
"""For each axis of an array the name of a mesh axis, a tuple of them, or None. Missing ones are None."""


class Policy(Immutable):
    """How arrays are distributed over a mesh. Batches are split over its axis "data", if it has one.

    Args:
        mesh: from `fm.mesh`, or any `jax.sharding.Mesh` with axes of the type `Auto`.

    **Extending.** Subclass it: `axis_for(size)` is the mesh axis over which the library's layers are split, `default(shape)` is
    for arrays that no method of `partition` names. Or write methods of `partition` for the new policy.
    """

    mesh: Mesh

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"{name}: mesh must be a mesh, got {type(self.mesh).__name__}; write fm.{name}(fm.mesh()).")
        if any(kind != AxisType.Auto for kind in self.mesh.axis_types):
            raise ValueError(
                f"{name}: the axes of the mesh must be of the type Auto, got {self.mesh.axis_types}; make it by fm.mesh, or by "
                "jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto,) * axes)."
            )

    def default(self, shape: tuple[int, ...]) -> Axes:
        """The axes of an array of this shape that no method of `partition` names: `()`, on every device completely."""
        return ()

    def axis_for(self, size: int) -> str | None:
        """The mesh axis over which layers are split, for an array axis of this size; None leaves the array to `default`."""
        return None

    def size(self, axis: str) -> int:
        """The size of a mesh axis; 1 if there is none of that name."""
        return self.mesh.shape.get(axis, 1)

    def layout(self, *axes: Any) -> NamedSharding:
        """The sharding of an array with these axes."""
        while axes and axes[-1] is None:  # as JAX writes it: another form would be another program
            axes = axes[:-1]
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def of_batch(self, raw: Any) -> Any:
        """The sharding of each array of a batch: its rows over the axis "data", if they can be divided equally."""
        n, axis = self.size("data"), "data" if "data" in self.mesh.shape else None
        return jax.tree.map(lambda v: self.layout(*[axis][: bool(np.ndim(v)) and np.shape(v)[0] % n == 0]), raw)

    # It stands for devices of this process: a pickled state has none, and a copy has the same.

    def __reduce__(self) -> Any:
        return _nothing, ()

    def __copy__(self) -> Policy:
        return self

    def __deepcopy__(self, memo: Any) -> Policy:
        return self


def _nothing() -> None:
    return None


class Replicated(Policy):
    """Every device has all arrays, and its part of the rows of each batch: data parallelism.

    Args:
        mesh: from `fm.mesh`.

    >>> fm.Replicated(fm.mesh(data=1)).size("data")
    1
    """


class FSDP(Policy):
    """Large arrays are split over the axis "data" as well, along their largest axis that can be divided equally.

    XLA gathers an array where it is used. Zhao et al. 2023, arXiv:2304.11277.

    Args:
        mesh: from `fm.mesh`.
        min_size: arrays with fewer elements are on every device completely.

    >>> fm.FSDP(fm.mesh(data=1), min_size=8).default((3, 4))
    (None, 'data')
    """

    min_size: int = 2**16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.min_size, int) or self.min_size < 1:
            raise ValueError(f"FSDP: min_size must be a positive integer, got {self.min_size!r}.")
        _require_axis(self, "data")

    def default(self, shape: tuple[int, ...]) -> Axes:
        """The largest axis that can be divided equally."""
        divisible = [size if size % self.size("data") == 0 else 0 for size in shape]
        if np.prod(shape) < self.min_size or not any(divisible):
            return ()
        return (None,) * divisible.index(max(divisible)) + ("data",)


class TensorParallel(Policy):
    """Layers are split over an axis of the mesh: their outputs or their inputs, as their methods of `partition` say.

    Shoeybi et al. 2019, arXiv:1909.08053. A layer whose sizes cannot be divided equally is on every device completely.

    Args:
        mesh: from `fm.mesh(data=…, model=…)`.
        axis: the mesh axis.

    >>> fm.partition(fm.models.Dense(4, 2), fm.TensorParallel(fm.mesh(data=1)))
    {'weight': (None, 'model'), 'bias': ('model',)}
    """

    axis: str = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_axis(self, self.axis)

    def axis_for(self, size: int) -> str | None:
        """The axis, or None if it does not divide the size."""
        return self.axis if size % self.size(self.axis) == 0 else None


def _require_axis(policy: Policy, axis: str) -> None:
    if axis not in policy.mesh.shape:
        raise ValueError(
            f"{type(policy).__name__} splits over the axis {axis!r}, but the mesh has {', '.join(map(repr, policy.mesh.shape))}; "
            f"write fm.mesh({axis}=…)."
        )


def require_policy(devices: Any) -> None:
    """Raise for anything but a policy or None as the option `devices`."""
    if devices is not None and not isinstance(devices, Policy):
        known = isinstance(devices, type) and issubclass(devices, Policy)
        got, name = (f"the class {devices.__name__}", devices.__name__) if known else (type(devices).__name__, "Replicated")
        raise TypeError(f"devices must be a policy, got {got}; write devices=fm.{name}(fm.mesh()).")


def require_divisible(policy: Policy | None, n: int) -> None:
    """Raise for a batch size that the axis "data" does not divide."""
    size = 1 if policy is None else policy.size("data")
    if n % size:
        near: Sequence[int] = [v for v in (n // size * size, -(-n // size) * size) if v]
        raise ValueError(
            f"batch_size must be a multiple of {size}, the size of the mesh's axis 'data', got {n}; write "
            f"{' or '.join(f'batch_size={v}' for v in near)}."
        )


class BatchPlacement:
    """A function that puts batches of `rows` rows on the devices of a policy, split over the axis "data".

    A smaller last batch that cannot be divided equally is on every device completely. Without `rows`, the first batch determines them.
    """

    def __init__(self, policy: Policy, rows: int | None) -> None:
        self._policy, self._rows = policy, rows

    def __call__(self, raw: Any) -> Any:
        if self._rows is None:
            require_divisible(self._policy, count(raw))
            self._rows = count(raw)
        return on_rows(raw, self._policy)


def on_rows(raw: Any, policy: Policy | None) -> Any:
    """The batch on the devices of a policy, its rows over the axis "data"; as it is for None."""
    if policy is None:
        return raw
    # With several processes `device_put` would compare the whole batch between them.
    layout = policy.of_batch(raw)
    return jax.tree.map(own_rows, raw, layout) if several() else jax.device_put(raw, layout)
