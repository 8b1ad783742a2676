"""What the tests of the layers share."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import fulmen as fm

forward_jit = jax.jit(fm.forward)


def close(a, b, **tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def train(seed=0):
    return fm.Train(jax.random.key(seed))


def filled(layer, seed=0):
    """The layer with some positive numbers where `init` would draw: drawing compiles a program per shape."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(jax.eval_shape(fm.init, layer, jax.random.key(0)))
    numbers = iter(jax.tree.leaves(layer))  # a description has no other leaves: its rates and the like
    fill = lambda v: jnp.asarray((rng.random(v.shape) / math.sqrt(math.prod(v.shape)) + 0.1).astype(v.dtype))
    return structure.unflatten([fill(v) if v.shape else next(numbers) for v in leaves])


def cast(layer, dtype):
    """The layer with its arrays in another type, converted by NumPy: JAX would compile a program per shape."""
    return jax.tree.map(lambda v: jnp.asarray(np.asarray(v).astype(dtype)) if hasattr(v, "dtype") else v, layer)
