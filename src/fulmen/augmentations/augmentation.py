"""`Augmentation`, `Augmentations`, and what they check of a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, briefly, require_key, static
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


def key_of(augmentation: Augmentation, mode: Any) -> Any:
    """The random key of a mode."""
    return require_key(mode.key, augmentation)


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
