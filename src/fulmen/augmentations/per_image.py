"""`Augment`: a function of one image as an augmentation."""

from collections.abc import Callable
from typing import Any

import jax

from fulmen.augmentations.augmentation import Augmentation, require_inputs
from fulmen.core import remake, require_key
from fulmen.core.verbs import augment
from fulmen.dispatching.registry import dispatch


class Augment(Augmentation):
    """Applies a function of a random key and one image to each image of a batch, with separate randomness.

    Other libraries' functions fit as they are, such as those of dm-pix: `fm.augmentations.Augment(pix.random_flip_left_right)`, or
    with options `functools.partial(pix.random_brightness, max_delta=0.2)`.

    Args:
        function: `function(key, image)`, written in JAX, returns the new image; it runs under `vmap`. It is static: define it once,
            since each function compiles its own program.
        per_batch: whether all images of a batch get the same key, by keyword.

    >>> def brightness(key, image):
    ...     return image + 0.1 * jax.random.normal(key)
    >>> system = fm.Classifier(fm.models.Flatten(), augment=fm.augmentations.Augment(brightness))
    >>> batch = fm.Labeled(jnp.zeros((5, 8, 8, 1)), jnp.zeros(5, int))
    >>> fm.augment(system, batch, fm.Train(jax.random.key(0))).x.std(0).max() > 0
    Array(True, dtype=bool)
    """

    function: Callable[..., Any]


@dispatch
def augment(lifted: Augment, batch, mode):
    x, key = require_inputs(lifted, batch), require_key(mode.key, lifted)
    keys, axis = (key, None) if lifted.per_batch else (jax.random.split(key, len(x)), 0)
    new = jax.vmap(lifted.function, (axis, 0))(keys, x)
    if getattr(new, "dtype", None) != x.dtype:
        got = getattr(new, "dtype", type(new).__name__)
        name = getattr(lifted.function, "__name__", repr(lifted.function))
        raise TypeError(f"Augment({name}) must return an image of the type of its input, {x.dtype}, got {got}.")
    return remake(batch, {"x": new})
