"""Sums and roundings with known errors, so that a projection never leaves its region."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def at_least_32_bits(dtype: Any) -> jnp.dtype:
    """The floating-point type, or float32 for a smaller one; computations use it."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def pairwise_sum(v: jax.Array) -> jax.Array:
    """The sum of numbers ≥ 0, `(n, size)` to `(n, 1)`: independent of the batch, with few roundings per number."""
    while v.shape[1] > 1:
        v = jnp.pad(v, ((0, 0), (0, -v.shape[1] % 8)))
        for _ in range(3):
            half = v.shape[1] // 2
            v = v[:, :half] + v[:, half:]
        v = lax.optimization_barrier(v)  # fusing all levels takes too long to compile
    return v.sum(1, keepdims=True)


def sum_error(v: jax.Array) -> float:
    """A bound on the relative rounding error of a norm by `pairwise_sum`, with the roundings before and after it."""
    levels = math.ceil(math.log(max(v.shape[1], 1), 8) - 1e-9)
    return (3 * levels + 8) * float(jnp.finfo(v.dtype).eps) / 2


def really_rounded(values: list[Any]) -> list[Any]:
    """The values, really rounded to 16 bits: XLA may skip that between operations, but not before a barrier."""
    return lax.optimization_barrier(values) if jnp.finfo(values[0].dtype).bits < 32 else values


def sum_rounded_down(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """The largest number of a type that is at most a + b.

    The rounding error of a sum is itself representable: "TwoSum", Knuth 1969, Møller 1965.
    """
    wide = at_least_32_bits(dtype)
    a, b = (v.astype(wide) for v in really_rounded([a, b]))
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    down = jnp.where(error < 0, _below(total), total)
    if wide == dtype:
        return down
    (total,) = really_rounded([down.astype(dtype)])
    return jnp.where(total.astype(wide) > down, _below(total), total)


def _below(x: jax.Array) -> jax.Array:
    """The next smaller number (Rump, Zimmermann, Boldo and Melquiond 2009, without the subnormal range)."""
    info = jnp.finfo(x.dtype)
    return x - (jnp.abs(x) * float(info.eps / 2 * (1 + info.eps)) + float(info.tiny * info.eps))


def rounded_toward(x: jax.Array, origin: jax.Array, dtype: Any) -> jax.Array:
    """Points in a smaller type, rounded so that no coordinate gets farther from the origin; their gradient is that of a cast.

    Args:
        x: `(n, …)`, in at least 32 bits.
        origin: `(n, …)`, of the same type, with values that the smaller type has.
        dtype: the smaller type.
    """
    nearest = x.astype(dtype)
    if nearest.dtype == x.dtype:
        return nearest
    (there,) = really_rounded([lax.stop_gradient(nearest)])
    farther = jnp.abs(there.astype(x.dtype) - origin) > jnp.abs(lax.stop_gradient(x) - origin)
    nearer = jnp.nextafter(there, origin.astype(dtype))
    return nearest + lax.stop_gradient(jnp.where(farther, nearer - there, 0))  # neighbours: the difference is exact
