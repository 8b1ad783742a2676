"""Comparing pytrees, bit by bit or to rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def bits(tree: Any) -> list[np.ndarray]:
    """Copies of a tree's arrays and numbers."""
    return [_copy(v) for v in jax.tree.leaves(tree) if hasattr(v, "dtype") or isinstance(v, int | float | complex)]


def _copy(leaf: Any) -> np.ndarray:
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(leaf) if is_key else leaf)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether two results of `bits` are equal bit by bit."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b)
    )


def require_close(a: Any, b: Any, what: str) -> None:
    """Raise unless two arrays are equal to half of the digits of the less precise one.

    Args:
        a, b: arrays of one shape.
        what: what they are, for the error.
    """
    a, b = np.asarray(a), np.asarray(b)
    kinds = [v.dtype for v in (a, b) if jnp.issubdtype(v.dtype, jnp.floating)]
    tolerance = max([1e-4, *(float(jnp.finfo(kind).eps) ** 0.5 for kind in kinds)])
    expected, actual = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * 0.1, err_msg=f"{what}, differ.")
