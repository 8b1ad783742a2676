"""What the layers ask of their fields and inputs, so that an error speaks of the layer and not of what is inside it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def drawn(layer: Any, *names: str) -> list[Any]:
    """These arrays of a layer; raise if some are not there yet."""
    for name in names:
        if getattr(layer, name) is None:
            raise ValueError(
                f"this {type(layer).__name__} has no {name} yet: it is a description. "
                "Draw the arrays, fm.init(layer, key), or use the state that `fm.setup` or `fm.fit` returned."
            )
    return [getattr(layer, name) for name in names]


def require_images(name: str, x: Any, channels: int | None = None) -> None:
    """Raise unless `x` is `(n, height, width, channels)`, saying how to make it so."""
    takes = f"{name} takes images (n, height, width, {channels or 'channels'}), and {x.shape} came"
    if x.ndim == 3 and x.shape[-1] == channels:
        raise ValueError(
            f"{takes}: one image needs a batch axis, x[None], and images without channels a channel axis, x[..., None]."
        )
    if x.ndim == 3:
        raise ValueError(f"{takes}: the channel axis is missing; add it: x[..., None].")
    if x.ndim != 4:
        raise ValueError(f"{takes}: reshape it, such as x.reshape(-1, height, width, {channels or 'channels'}).")
    if channels is not None and x.shape[-1] != channels:
        hint = ": channels come last, jnp.moveaxis(x, 1, -1)." if x.shape[1] == channels else "."
        raise ValueError(takes + hint)


def require_last_axis(name: str, x: Any, size: int) -> None:
    """Raise unless `x` is `(…, size)`."""
    if x.ndim == 0 or x.shape[-1] != size:
        flat = x.ndim > 2 and np.prod(x.shape[1:]) == size
        hint = "; fm.models.Flatten() makes each example one vector." if flat else "."
        raise ValueError(f"{name} takes (…, {size}), and {x.shape} came{hint}")


def common_dtype(name: str, x: Any, weight: Any) -> np.dtype:
    """The type to compute in: that of both, or what JAX's settings promote them to."""
    try:
        return jnp.result_type(x, weight)
    except jax.dtypes.TypePromotionError:
        raise TypeError(
            f"{name} has weights of {weight.dtype}, and an input of {x.dtype} came: x.astype({str(weight.dtype)!r})."
        ) from None


def pair(value: Any) -> tuple[Any, Any]:
    """Height and width, from a pair or one number for both."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]


def require_inexact(name: str, x: Any) -> None:
    """Raise unless `x` is of floating-point (or complex) numbers."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{name} takes floating-point numbers, and {x.dtype} came: cast it, x.astype('float32').")


def aligned(value: Any, ndim: int) -> Any:
    """An array with so many axes, the new ones first and of size 1: broadcasting said out loud."""
    return value.reshape((1,) * (ndim - value.ndim) + value.shape)
