"""Augmentations: what happens to a batch in the training step, each example by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.component import Component
from fulmen.dispatch import dispatch
from fulmen.naming import concrete, number
from fulmen.prediction import at_least_float32
from fulmen.tree import remake
from fulmen.verbs import augment, validate

__all__ = ["Augmentation", "Flip", "Mixup", "Noise"]


class Augmentation(Component):
    """A change to batches in training. Give it to `Classifier(augment=…)`, or apply it: `fm.augment(flip, batch, mode)`.

    **Extending.** Subclass it, and write `augment(augmentation: Mine, batch, mode)`: draw from `mode.key`, and return
    `fm.replace(batch, x=…)`.
    """


class Flip(Augmentation):
    """Mirrors each image left to right with probability ½. Images are `(n, height, width, channels)`."""


class Noise(Augmentation):
    """Adds Gaussian noise to every number of the input.

    Args:
        scale: its standard deviation.
    """

    scale: float


class Mixup(Augmentation):
    """Mixes each example with another of the batch, λ x + (1 − λ) x', and their targets alike, as probabilities.

    λ is drawn for each example from Beta(α, α) (Zhang et al. 2018, arXiv:1710.09412). An example keeps its weight.

    Args:
        alpha: α, positive. Small values leave most examples nearly as they are.
        classes: how many classes there are.
    """

    alpha: float
    classes: int


@dispatch
def augment(flip: Flip, batch, mode):
    x = _inputs(flip, batch)
    if x.ndim != 4:
        raise ValueError(f"Flip, x: images of shape (n, height, width, channels) were expected, and {x.shape} came.")
    mirrored = jax.random.bernoulli(_key(flip, mode), shape=(x.shape[0], 1, 1, 1))
    return remake(batch, {"x": jnp.where(mirrored, x[:, :, ::-1], x)})


@dispatch
def augment(noise: Noise, batch, mode):
    x = _floating(noise, _inputs(noise, batch))
    draw = jax.random.normal(_key(noise, mode), x.shape, x.dtype)
    return remake(batch, {"x": x + jnp.asarray(noise.scale).astype(x.dtype) * draw})


@dispatch
def augment(mixup: Mixup, batch, mode):
    x = _floating(mixup, _inputs(mixup, batch))
    y = _probabilities(mixup, batch)
    partner_key, share_key = jax.random.split(_key(mixup, mode))
    partner = jax.random.permutation(partner_key, x.shape[0])
    alpha = jnp.asarray(mixup.alpha).astype(y.dtype)
    share = jax.random.beta(share_key, alpha, alpha, (x.shape[0],), y.dtype)
    return remake(batch, {"x": _mix(x, x[partner], share), "y": _mix(y, y[partner], share)})


def _mix(own: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(own.dtype).reshape(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * other


def _probabilities(mixup: Mixup, batch: Any) -> jax.Array:
    y = getattr(batch, "y", None)
    if y is None:
        raise ValueError(f"Mixup mixes targets too, and the {type(batch).__name__} batch that came has no y.")
    y = jnp.asarray(y)
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, mixup.classes, dtype=jnp.result_type(float))
    if y.ndim == 2 and y.shape[1] == mixup.classes and jnp.issubdtype(y.dtype, jnp.floating):
        return at_least_float32(y)
    raise ValueError(
        f"Mixup, y: integer labels of shape (n,) or probabilities of shape (n, {mixup.classes}) were expected, and "
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


def _floating(augmentation: Any, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        name = type(augmentation).__name__
        raise TypeError(f"{name}, x: floating-point numbers were expected, and {x.dtype} came: x.astype(np.float32).")
    return x


def _key(augmentation: Any, mode: Any) -> Any:
    if mode.key is None:
        raise ValueError(f"{type(augmentation).__name__} draws at random, and the mode that came has no key: fm.Train(key).")
    return mode.key


@dispatch
def validate(noise: Noise):
    scale = concrete(noise.scale)
    if scale is not None and not (np.isfinite(scale) & (scale >= 0)).all():
        raise ValueError(f"Noise, scale: a number of at least 0 was expected, and {number(noise.scale)} came.")


@dispatch
def validate(mixup: Mixup):
    alpha = concrete(mixup.alpha)
    if alpha is not None and not (np.isfinite(alpha) & (alpha > 0)).all():
        raise ValueError(f"Mixup, alpha: a positive number was expected, and {number(mixup.alpha)} came.")
    if mixup.classes < 2:
        raise ValueError(f"Mixup, classes: at least 2 were expected, and {mixup.classes} came.")
