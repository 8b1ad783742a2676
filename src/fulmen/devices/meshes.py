"""`mesh`: a grid of devices with named axes."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh


def mesh(data: int = -1, model: int = 1, *, devices: Any = None, **axes: int) -> Mesh:
    """A mesh of devices for a policy such as `fm.Replicated(mesh)`.

    The axes are of JAX's type `Auto`: XLA finds out how each operation is distributed.

    Args:
        data: the size of the axis "data", over which batches are split; −1 is as many as the devices allow.
        model: the size of the axis "model", over which `fm.TensorParallel` splits layers.
        devices: the devices; None is all of them, `jax.devices()`.
        **axes: sizes of further axes by name, such as `members=4`, over which a `Population` is split.

    Returns:
        A `jax.sharding.Mesh`.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for a size below 1, for two sizes of −1, and for more devices than there are.

    >>> dict(fm.mesh(data=1).shape)
    {'data': 1, 'model': 1}
    """
    found = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "model": model, **axes}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"mesh: {name} must be an integer, got {size!r}.")
        if size < 1 and size != -1:
            raise ValueError(f"mesh: {name} must be a positive integer, or -1 for all remaining devices, got {size}.")
    known, open_axes = math.prod(size for size in sizes.values() if size != -1), [n for n, v in sizes.items() if v == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh: only one size can be -1, got {' and '.join(open_axes)}; give the size of the others.")
    if open_axes and len(found) % known == 0:
        sizes[open_axes[0]] = len(found) // known
    elif open_axes or known > len(found):
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        needed = f"a multiple of {known}" if open_axes else str(known)
        raise ValueError(
            f"mesh({given}) needs {needed} devices, but there are {len(found)}. Give smaller sizes; on the CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={known} makes {known} devices."
        )
    used = found[: math.prod(sizes.values())]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=used)
