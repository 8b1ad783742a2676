"""Each example's arrays as one vector: products, and lengths that neither underflow nor overflow."""

from typing import Any

import jax
import jax.numpy as jnp


def times(factor: Any, tree: Any) -> Any:
    """A tree of arrays times a number."""
    return jax.tree.map(lambda v: jnp.asarray(factor).astype(v.dtype) * v, tree)


def unit(tree: Any) -> Any:
    """Each example's vector with length 1; 0 stays 0."""
    tree = _rescaled(tree)
    squares = _dot(tree, tree)
    return _divided(tree, jnp.sqrt(jnp.where(squares > 0, squares, 1)))


def cosine(a: Any, b: Any) -> jax.Array:
    """The cosine of the angle between each example's two vectors, `(n,)`; 1 if one of them is 0."""
    a, b = _rescaled(a), _rescaled(b)
    squares = _dot(a, a) * _dot(b, b)
    positive = squares > 0
    return jnp.where(positive, _dot(a, b) / jnp.sqrt(jnp.where(positive, squares, 1)), 1)


def _rescaled(tree: Any) -> Any:
    """Each example's vector divided by its largest coordinate, so that squares do not underflow; 0 stays 0."""
    sizes = [jnp.abs(jax.lax.stop_gradient(v)).reshape(len(v), -1).max(1) for v in jax.tree.leaves(tree)]
    largest = jnp.stack(sizes).max(0)
    return _divided(tree, jnp.where(largest > 0, largest, 1))


def _divided(tree: Any, sizes: jax.Array) -> Any:
    return jax.tree.map(lambda v: v / sizes.reshape(-1, *[1] * (v.ndim - 1)), tree)


def _dot(a: Any, b: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    products = [jnp.sum((u * v).reshape(len(u), -1), 1) for u, v in pairs]
    return sum(products[1:], products[0])
