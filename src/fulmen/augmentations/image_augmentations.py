"""Augmentations of the inputs: `Flip`, `ShiftCrop`, `Cutout` for images, and `Noise`."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.augmentations.augmentation import Augmentation, draws, key_of, require_floating, require_images
from fulmen.core import hyper, remake, static
from fulmen.core.verbs import augment
from fulmen.dispatching.registry import dispatch


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
    mirrored = jax.random.bernoulli(key_of(flip, mode), shape=(draws(flip, x), 1, 1, 1))
    return remake(batch, {"x": jnp.where(mirrored, x[:, :, ::-1], x)})


@dispatch
def augment(shift: ShiftCrop, batch, mode):
    x = require_images(shift, batch)
    p, key = shift.pixels, key_of(shift, mode)
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
    covered = rectangles(key_of(cutout, mode), x, size, size)
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
    normal = jax.random.normal(key_of(noise, mode), (draws(noise, x), *x.shape[1:]), x.dtype)
    return remake(batch, {"x": x + jnp.asarray(noise.scale).astype(x.dtype) * normal})
