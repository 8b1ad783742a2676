"""Checks of a layer's arrays and inputs, with errors that name the layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_arrays(layer: Any, *names: str) -> list[Any]:
    """These arrays of a layer; raise if one is missing."""
    for name in names:
        if getattr(layer, name) is None:
            raise ValueError(
                f"this {type(layer).__name__} has no {name} yet. Initialize it, fm.init(layer, key), or use the state that "
                "`fm.setup` or `fm.fit` returned."
            )
    return [getattr(layer, name) for name in names]


def require_images(name: str, x: Any, channels: int | None = None) -> None:
    """Raise unless `x` is `(n, height, width, channels)`; the error says how to convert it."""
    if x.ndim == 4 and channels in (None, x.shape[-1]):
        return
    hint = ""
    if x.ndim == 3 and x.shape[-1] == channels:
        hint = ": one image needs a batch axis, x[None], and images without channels a channel axis, x[..., None]"
    elif x.ndim == 3:
        hint = ": the channel axis is missing; add it: x[..., None]"
    elif x.ndim != 4:
        hint = f": reshape it, such as x.reshape(-1, height, width, {channels or 'channels'})"
    elif x.shape[1] == channels:
        hint = ": channels must be the last axis, jnp.moveaxis(x, 1, -1)"
    raise ValueError(f"{name} takes images (n, height, width, {channels or 'channels'}), got {x.shape}{hint}.")


def require_grid(name: str, x: Any, channels: int, dimensions: int) -> None:
    """Raise unless `x` has a batch axis, so many further axes, and the channels."""
    if dimensions == 2:
        require_images(name, x, channels)
    elif x.ndim != dimensions + 2 or x.shape[-1] != channels:
        axes = "length" if dimensions == 1 else "depth, height, width"
        raise ValueError(f"{name} with dimensions={dimensions} takes (n, {axes}, {channels}), got {x.shape}.")


def require_last_axis(name: str, x: Any, size: int) -> None:
    """Raise unless `x` is `(…, size)`."""
    if x.ndim == 0 or x.shape[-1] != size:
        flat = x.ndim > 2 and np.prod(x.shape[1:]) == size
        hint = "; fm.models.Flatten() makes a vector of each example." if flat else "."
        raise ValueError(f"{name} takes (…, {size}), got {x.shape}{hint}")


def promoted(name: str, x: Any, weight: Any) -> tuple[jax.Array, jax.Array]:
    """Both in the same type, that of JAX's promotion setting."""
    try:
        dtype = jnp.result_type(x, weight)
    except jax.dtypes.TypePromotionError:
        raise TypeError(
            f"{name} has weights of {weight.dtype}, got an input of {x.dtype}: write x.astype({str(weight.dtype)!r})."
        ) from None
    return x.astype(dtype), weight.astype(dtype)


def function_named(name: Any) -> str:
    """What to write for a function of `jax.nn` that is given by its name: the end of an error's sentence."""
    return f"; write jax.nn.{name}" if isinstance(name, str) and callable(getattr(jax.nn, name, None)) else ""


def pair(value: Any) -> tuple[Any, Any]:
    """Height and width, from a pair or one number for both."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]


def require_inexact(name: str, x: Any) -> None:
    """Raise unless `x` has floating-point or complex numbers."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{name} takes floating-point numbers, got {x.dtype}: write x.astype('float32').")


def aligned(value: Any, ndim: int) -> Any:
    """The array with `ndim` axes, new ones first: rank promotion must be explicit."""
    return value.reshape((1,) * (ndim - value.ndim) + value.shape)
