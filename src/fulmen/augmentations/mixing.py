"""Augmentations that mix examples and their targets: `Mixup` and `CutMix`."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.augmentations.augmentation import Augmentation, draws, rectangles, require_floating, require_images
from fulmen.core import at_least_float32, hyper, remake, require_key, static
from fulmen.core.verbs import augment
from fulmen.dispatching.registry import dispatch


class Mixing(Augmentation):
    """An augmentation that mixes examples of `classes` in shares from Beta(α, α)."""

    alpha: float = hyper(above=0)
    classes: int = static(minimum=2)


class Mixup(Mixing):
    """Mixes each example with another of the batch, λ x + (1 − λ) x', and their targets likewise, as probabilities.

    λ is drawn for each example from Beta(α, α) (Zhang et al. 2018, arXiv:1710.09412). The weights of examples do not change.

    Args:
        alpha: α. For small values most examples hardly change.
        classes: number of classes.
    """


class CutMix(Mixing):
    """Copies a rectangle of another image of the batch into each, and mixes their targets, as probabilities, by area.

    The rectangle has √(1 − λ) of the image's height and width, for λ from Beta(α, α), and any pixel as its centre; the part
    outside the image is cut off (Yun et al. 2019, arXiv:1905.04899, with one rectangle per batch: `per_batch=True`). Images
    are `(n, height, width, channels)`. The weights of examples do not change.

    Args:
        alpha: α; 1 makes all λ equally likely.
        classes: number of classes.
    """


@dispatch
def augment(mixup: Mixup, batch, mode):
    x, y = require_floating(mixup, batch), _probabilities(mixup, batch)
    partner_key, share_key = jax.random.split(require_key(mode.key, mixup))
    partner = jax.random.permutation(partner_key, x.shape[0])
    share = _shares(mixup, share_key, x, y.dtype)
    return remake(batch, {"x": _mix(x, x[partner], share), "y": _mix(y, y[partner], share)})


@dispatch
def augment(cutmix: CutMix, batch, mode):
    x, y = require_images(cutmix, batch), _probabilities(cutmix, batch)
    partner_key, share_key, place_key = jax.random.split(require_key(mode.key, cutmix), 3)
    partner = jax.random.permutation(partner_key, x.shape[0])
    side = jnp.sqrt(1 - _shares(cutmix, share_key, x, y.dtype))
    sizes = [jnp.round(side * x.shape[axis]).astype(int) for axis in (1, 2)]
    inside = rectangles(place_key, x, *sizes)
    share = 1 - inside.mean((1, 2, 3), dtype=y.dtype)
    return remake(batch, {"x": jnp.where(inside, x[partner], x), "y": _mix(y, y[partner], share)})


def _shares(mixing: Mixing, key: Any, x: jax.Array, dtype: Any) -> jax.Array:
    """λ, `(draws,)`, of Beta(α, α)."""
    alpha = jnp.asarray(mixing.alpha).astype(dtype)
    # Of two gamma variables, Γ₁ / (Γ₁ + Γ₂) has that distribution; `jax.random.beta` compiles their sampler twice.
    one, other = jax.random.loggamma(key, alpha, (2, draws(mixing, x)), dtype)
    return jax.nn.sigmoid(one - other)


def _mix(values: jax.Array, others: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * others


def _probabilities(mixing: Mixing, batch: Any) -> jax.Array:
    y, name = getattr(batch, "y", None), type(mixing).__name__
    if y is None:
        raise ValueError(f"{name} mixes targets too: the batch must have y, got {type(batch).__name__} without it.")
    y = jnp.asarray(y)
    if y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, mixing.classes, dtype=jnp.result_type(float))
    if y.ndim == 2 and y.shape[1] == mixing.classes and jnp.issubdtype(y.dtype, jnp.floating):
        return at_least_float32(y)
    raise ValueError(
        f"{name}: y must be integer labels of shape (n,) or probabilities of shape (n, {mixing.classes}), got {y.dtype} of "
        f"shape {y.shape}."
    )
