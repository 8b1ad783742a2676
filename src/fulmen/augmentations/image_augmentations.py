"""Augmentations: what happens to a batch in the training step, each example by itself or all alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.component import Component
from fulmen.core.fields import hyper, static
from fulmen.core.mode import require_key
from fulmen.core.naming import briefly
from fulmen.core.prediction import at_least_float32
from fulmen.core.tree import remake
from fulmen.core.verbs import augment
from fulmen.dispatching.registry import dispatch

__all__ = ["Augmentation", "Augmentations", "CutMix", "Cutout", "Flip", "Mixup", "Noise", "ShiftCrop"]


class Augmentation(Component):
    """A change to batches in training. Give it to `Classifier(augment=…)`, or apply it: `fm.augment(flip, batch, mode)`.

    Several are applied in turn: `fm.augmentations.Flip() >> fm.augmentations.ShiftCrop(4)`, or a tuple of them.

    Args:
        per_batch: draw once for the whole batch, by keyword; by default each example draws for itself.

    **Extending.** Subclass it, and write `augment(augmentation: Mine, batch, mode)`: draw from `mode.key`, and return
    `fm.replace(batch, x=…)`.
    """

    __example__ = "fm.augmentations.Noise(0.1)"

    per_batch: bool = static(default=False, kw_only=True)

    def __rshift__(self, other: Any) -> Augmentations:
        if not isinstance(other, Augmentation):
            return NotImplemented
        return Augmentations((*_steps(self), *_steps(other)))

    def __repr__(self) -> str:
        return briefly(self)


class Augmentations(Augmentation):
    """Augmentations that are applied in turn, as `a >> b`, each with randomness of its own.

    Args:
        steps: the augmentations, the first one first.

    >>> fm.augmentations.Flip() >> fm.augmentations.ShiftCrop(4) >> fm.augmentations.Cutout(8)
    Flip() >> ShiftCrop(pixels=4) >> Cutout(size=8)
    """

    steps: tuple[Augmentation, ...]

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.steps))


class Flip(Augmentation):
    """Mirrors each image left to right with probability ½. Images are `(n, height, width, channels)`."""


class ShiftCrop(Augmentation):
    """Moves each image by up to `pixels` up or down and left or right; what comes in from outside is `fill`.

    That is, it pads on all sides and crops at random to the old size (as in He et al. 2016, arXiv:1512.03385). Images are
    `(n, height, width, channels)`.

    Args:
        pixels: the furthest that it moves along each axis; all moves are equally likely.
        fill: the value outside.
    """

    pixels: int = static(minimum=1)
    fill: float = 0.0


class Cutout(Augmentation):
    """Covers a square of each image (DeVries and Taylor 2017, arXiv:1708.04552).

    Its centre is any pixel, all equally likely, so that part of it may lie outside. Images are `(n, height, width, channels)`.

    Args:
        size: the square's side, in pixels.
        fill: the value that covers.
    """

    size: int = static(minimum=1)
    fill: float = 0.0


class Noise(Augmentation):
    """Adds Gaussian noise to every number of the input.

    Args:
        scale: its standard deviation.
    """

    scale: float = hyper(minimum=0)


class Mixup(Augmentation):
    """Mixes each example with another of the batch, λ x + (1 − λ) x', and their targets alike, as probabilities.

    λ is drawn for each example from Beta(α, α) (Zhang et al. 2018, arXiv:1710.09412). An example keeps its weight.

    Args:
        alpha: α, positive. Small values leave most examples nearly as they are.
        classes: how many classes there are.
    """

    alpha: float = hyper(above=0)
    classes: int = static(minimum=2)


class CutMix(Augmentation):
    """Puts a rectangle of another image of the batch into each, and mixes their targets, as probabilities, by area.

    A share λ, drawn from Beta(α, α), is to be left of the image: the rectangle has √(1 − λ) of its height and width, and any
    pixel as its centre; what lies outside is cut off (Yun et al. 2019, arXiv:1905.04899, where all images of a batch have one
    rectangle: `per_batch=True`). Images are `(n, height, width, channels)`. An example keeps its weight.

    Args:
        alpha: α, positive; 1 makes all shares equally likely.
        classes: how many classes there are.
    """

    alpha: float = hyper(above=0)
    classes: int = static(minimum=2)


def _steps(augmentation: Augmentation) -> tuple[Augmentation, ...]:
    return augmentation.steps if isinstance(augmentation, Augmentations) else (augmentation,)


@dispatch
def augment(several: Augmentations, batch, mode):
    for i, each in enumerate(several.steps):
        batch = augment(each, batch, mode.at(str(i)))
    return batch


@dispatch
def augment(flip: Flip, batch, mode):
    x = _images(flip, batch)
    mirrored = jax.random.bernoulli(_key(flip, mode), shape=(_draws(flip, x), 1, 1, 1))
    return remake(batch, {"x": jnp.where(mirrored, x[:, :, ::-1], x)})


@dispatch
def augment(shift: ShiftCrop, batch, mode):
    x = _images(shift, batch)
    p, key = shift.pixels, _key(shift, mode)
    padded = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=jnp.asarray(shift.fill).astype(x.dtype))
    corners = jax.random.randint(key, (_draws(shift, x), 2), 0, 2 * p + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    if shift.per_batch:
        return remake(batch, {"x": jax.vmap(crop, (0, None))(padded, corners[0])})
    return remake(batch, {"x": jax.vmap(crop)(padded, corners)})


@dispatch
def augment(cutout: Cutout, batch, mode):
    x = _images(cutout, batch)
    size = jnp.full(_draws(cutout, x), cutout.size)
    covered = _rectangles(_key(cutout, mode), x, size, size)
    return remake(batch, {"x": jnp.where(covered, jnp.asarray(cutout.fill).astype(x.dtype), x)})


def _rectangles(key: Any, x: jax.Array, heights: jax.Array, widths: jax.Array) -> jax.Array:
    """Where rectangles of these sizes lie, each around a pixel drawn at random: `(draws, height, width, 1)`, true inside."""
    inside = []
    for axis, sizes, own in zip((1, 2), (heights, widths), jax.random.split(key), strict=True):
        centre = jax.random.randint(own, sizes.shape, 0, x.shape[axis])
        place = jnp.arange(x.shape[axis])[None] - (centre - sizes // 2)[:, None]
        inside.append((place >= 0) & (place < sizes[:, None]))
    return inside[0][:, :, None, None] & inside[1][:, None, :, None]


@dispatch
def augment(noise: Noise, batch, mode):
    x = _floating(noise, _inputs(noise, batch))
    draw = jax.random.normal(_key(noise, mode), (_draws(noise, x), *x.shape[1:]), x.dtype)
    return remake(batch, {"x": x + jnp.asarray(noise.scale).astype(x.dtype) * draw})


@dispatch
def augment(mixup: Mixup, batch, mode):
    x = _floating(mixup, _inputs(mixup, batch))
    y = _probabilities(mixup, batch)
    partner_key, share_key = jax.random.split(_key(mixup, mode))
    partner = jax.random.permutation(partner_key, x.shape[0])
    share = _shares(mixup, share_key, x, y.dtype)
    return remake(batch, {"x": _mix(x, x[partner], share), "y": _mix(y, y[partner], share)})


@dispatch
def augment(cutmix: CutMix, batch, mode):
    x = _images(cutmix, batch)
    y = _probabilities(cutmix, batch)
    partner_key, share_key, place_key = jax.random.split(_key(cutmix, mode), 3)
    partner = jax.random.permutation(partner_key, x.shape[0])
    side = jnp.sqrt(1 - _shares(cutmix, share_key, x, y.dtype))
    sizes = [jnp.round(side * x.shape[axis]).astype(int) for axis in (1, 2)]
    inside = _rectangles(place_key, x, *sizes)
    share = 1 - inside.mean((1, 2, 3), dtype=y.dtype)
    return remake(batch, {"x": jnp.where(inside, x[partner], x), "y": _mix(y, y[partner], share)})


def _shares(mixing: Mixup | CutMix, key: Any, x: jax.Array, dtype: Any) -> jax.Array:
    alpha = jnp.asarray(mixing.alpha).astype(dtype)
    return jax.random.beta(key, alpha, alpha, (_draws(mixing, x),), dtype)


def _draws(augmentation: Augmentation, x: jax.Array) -> int:
    """How many times to draw for a batch."""
    return 1 if augmentation.per_batch else x.shape[0]


def _mix(own: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(own.dtype).reshape(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * other


def _probabilities(mixing: Mixup | CutMix, batch: Any) -> jax.Array:
    y, name = getattr(batch, "y", None), type(mixing).__name__
    if y is None:
        raise ValueError(f"{name} mixes targets too, and the {type(batch).__name__} batch that came has no y.")
    y = jnp.asarray(y)
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, mixing.classes, dtype=jnp.result_type(float))
    if y.ndim == 2 and y.shape[1] == mixing.classes and jnp.issubdtype(y.dtype, jnp.floating):
        return at_least_float32(y)
    raise ValueError(
        f"{name}, y: integer labels of shape (n,) or probabilities of shape (n, {mixing.classes}) were expected, and "
        f"{y.dtype} of shape {y.shape} came."
    )


def _inputs(augmentation: Any, batch: Any) -> jax.Array:
    x = getattr(batch, "x", None)
    if not hasattr(x, "dtype"):
        name, kind = type(augmentation).__name__, type(batch).__name__
        raise TypeError(
            f"{name} changes batch.x, and the {kind} batch that came has no array x. Write `augment(augmentation: {name}, "
            f"batch: {kind}, mode)` for it."
        )
    return jnp.asarray(x)


def _images(augmentation: Any, batch: Any) -> jax.Array:
    x = _inputs(augmentation, batch)
    if x.ndim != 4:
        name = type(augmentation).__name__
        raise ValueError(f"{name}, x: images of shape (n, height, width, channels) were expected, and {x.shape} came.")
    return x


def _floating(augmentation: Any, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        name = type(augmentation).__name__
        raise TypeError(f"{name}, x: floating-point numbers were expected, and {x.dtype} came: x.astype(np.float32).")
    return x


def _key(augmentation: Any, mode: Any) -> Any:
    return require_key(mode.key, augmentation)
