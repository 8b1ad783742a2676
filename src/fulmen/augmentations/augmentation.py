"""`Augmentation`, its defaults, augmentations of images, and `Augment`, a function of one image as an augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, briefly, hyper, remake, require_key, static
from fulmen.core.verbs import augment
from fulmen.dispatching.registry import dispatch


class Augmentation(Component):
    """A random change of batches in training: `Classifier(augment=…)`, or by itself `fm.augment(flip, batch, mode)`.

    Apply several in sequence by `fm.augmentations.Flip() >> fm.augmentations.ShiftCrop(4)`, or by a tuple of them.

    Args:
        per_batch: whether to draw once for the whole batch, by keyword; the default draws for each example.

    **Extending.** Subclass it, and write `augment(augmentation: Mine, batch, mode)`: draw from `mode.key`, and return
    `fm.replace(batch, x=…)`.
    """

    __example__ = "fm.augmentations.Noise(0.1)"

    per_batch: bool = static(default=False, kw_only=True)

    def __rshift__(self, other: Any) -> Augmentations:
        return Augmentations((*self._steps(), *other._steps())) if isinstance(other, Augmentation) else NotImplemented

    def _steps(self) -> tuple[Augmentation, ...]:
        return (self,)

    def __repr__(self) -> str:
        return briefly(self)


class Augmentations(Augmentation):
    """Augmentations applied in sequence, as `a >> b`, each with separate randomness.

    Args:
        steps: the augmentations, in order.

    >>> fm.augmentations.Flip() >> fm.augmentations.ShiftCrop(4) >> fm.augmentations.Cutout(8)
    Flip() >> ShiftCrop(pixels=4) >> Cutout(size=8)
    """

    steps: tuple[Augmentation, ...]

    def _steps(self) -> tuple[Augmentation, ...]:
        return self.steps

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.steps))


@dispatch
def augment(several: Augmentations, batch, mode):
    for i, step in enumerate(several.steps):
        batch = augment(step, batch, mode.at(str(i)))
    return batch


def draws(augmentation: Augmentation, x: jax.Array) -> int:
    """The number of draws for a batch."""
    return 1 if augmentation.per_batch else x.shape[0]


def require_inputs(augmentation: Augmentation, batch: Any) -> jax.Array:
    """The array `x` of a batch."""
    x = getattr(batch, "x", None)
    if not hasattr(x, "dtype"):
        name, kind = type(augmentation).__name__, type(batch).__name__
        raise TypeError(
            f"{name} changes batch.x, which must be an array, got {kind} without one. Write `augment(augmentation: "
            f"{name}, batch: {kind}, mode)` for it."
        )
    return jnp.asarray(x)


def require_images(augmentation: Augmentation, batch: Any) -> jax.Array:
    """The images `x` of a batch."""
    x = require_inputs(augmentation, batch)
    if x.ndim != 4:
        name = type(augmentation).__name__
        raise ValueError(f"{name}: x must be images of shape (n, height, width, channels), got {x.shape}.")
    return x


def require_floating(augmentation: Augmentation, batch: Any) -> jax.Array:
    """The floating-point array `x` of a batch."""
    x = require_inputs(augmentation, batch)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        name = type(augmentation).__name__
        raise TypeError(f"{name}: x must be of floating-point numbers, got {x.dtype}: write x.astype(np.float32).")
    return x


class Flip(Augmentation):
    """Mirrors each image left to right with probability ½. Images are `(n, height, width, channels)`."""


class ShiftCrop(Augmentation):
    """Shifts each image by up to `pixels` vertically and horizontally, and fills the empty border with `fill`.

    Equivalent to padding all sides and a random crop to the old size (as in He et al. 2016, arXiv:1512.03385). Images are
    `(n, height, width, channels)`.

    Args:
        pixels: the largest shift along each axis; all shifts have the same probability.
        fill: the value of the border.
    """

    pixels: int = static(minimum=1)
    fill: float = 0.0


class Cutout(Augmentation):
    """Covers a square of each image (DeVries and Taylor 2017, arXiv:1708.04552).

    Its centre is any pixel with the same probability, so part of it may be outside. Images are `(n, height, width, channels)`.

    Args:
        size: side of the square, in pixels.
        fill: the value of covered pixels.
    """

    size: int = static(minimum=1)
    fill: float = 0.0


class Noise(Augmentation):
    """Adds Gaussian noise to every number of the input.

    Args:
        scale: standard deviation.
    """

    scale: float = hyper(minimum=0)


@dispatch
def augment(flip: Flip, batch, mode):
    x = require_images(flip, batch)
    mirrored = jax.random.bernoulli(require_key(mode.key, flip), shape=(draws(flip, x), 1, 1, 1))
    return remake(batch, {"x": jnp.where(mirrored, x[:, :, ::-1], x)})


@dispatch
def augment(shift: ShiftCrop, batch, mode):
    x = require_images(shift, batch)
    p, key = shift.pixels, require_key(mode.key, shift)
    padded = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=jnp.asarray(shift.fill).astype(x.dtype))
    corners = jax.random.randint(key, (draws(shift, x), 2), 0, 2 * p + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    if shift.per_batch:
        return remake(batch, {"x": jax.vmap(crop, (0, None))(padded, corners[0])})
    return remake(batch, {"x": jax.vmap(crop)(padded, corners)})


@dispatch
def augment(cutout: Cutout, batch, mode):
    x = require_images(cutout, batch)
    size = jnp.full(draws(cutout, x), cutout.size)
    covered = rectangles(require_key(mode.key, cutout), x, size, size)
    return remake(batch, {"x": jnp.where(covered, jnp.asarray(cutout.fill).astype(x.dtype), x)})


def rectangles(key: Any, x: jax.Array, heights: jax.Array, widths: jax.Array) -> jax.Array:
    """Masks of rectangles of these sizes, each centred on a random pixel: `(draws, height, width, 1)`, True inside."""
    inside = []
    for axis, sizes, axis_key in zip((1, 2), (heights, widths), jax.random.split(key), strict=True):
        centre = jax.random.randint(axis_key, sizes.shape, 0, x.shape[axis])
        offset = jnp.arange(x.shape[axis])[None] - (centre - sizes // 2)[:, None]
        inside.append((offset >= 0) & (offset < sizes[:, None]))
    return inside[0][:, :, None, None] & inside[1][:, None, :, None]


@dispatch
def augment(noise: Noise, batch, mode):
    x = require_floating(noise, batch)
    normal = jax.random.normal(require_key(mode.key, noise), (draws(noise, x), *x.shape[1:]), x.dtype)
    return remake(batch, {"x": x + jnp.asarray(noise.scale).astype(x.dtype) * normal})


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
