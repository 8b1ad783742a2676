"""Views: what is put to the system in the place of a point. The gradient is taken through them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core.component import Component
from fulmen.core.fields import hyper
from fulmen.core.verbs import shown
from fulmen.dispatching.registry import dispatch

__all__ = ["Diverse", "Nesterov", "View"]


class View(Component):
    """What is put to the system in the place of a point.

    **Extending.** Subclass it, and write `shown(view: Mine, problem, walk, x, step)` of `fm.attacks`.
    """

    __example__ = "fm.attacks.Diverse()"


class Diverse(View):
    """Input diversity: at each step some of the images are made smaller, and padded with zeros to their size.

    A new height is drawn uniformly from `low` times the height to the height itself, the width goes with it, and so does a
    place; each example draws for itself. Values between pixels are interpolated linearly. Xie et al. 2019, arXiv:1803.06978,
    who draw from 299/330, about .9, and pad 299 pixels to 330, where this keeps the image's size.

    Args:
        probability: how probable it is that an image is changed.
        low: the smallest size, a share of the image's.
    """

    probability: float = hyper(minimum=0, maximum=1, default=0.5)
    low: float = hyper(above=0, maximum=1, default=0.9)


class Nesterov(View):
    """The point that the momentum alone would lead to (Lin et al. 2020, arXiv:1908.06281).

    Args:
        distance: by how much the momentum is multiplied, which the chain must have: `fm.attacks.momentum(decay)` or `optax.trace`.
            In the paper it is the size of a step times `decay`.
    """

    distance: float = hyper(minimum=0)


@dispatch
def shown(view: Nesterov, problem, walk, x, step):
    flat, structure = jax.tree.flatten(x)
    moved = [_ahead(view, leaf, memory) for leaf, memory in zip(flat, walk.memory, strict=True)]
    return structure.unflatten(moved)


def _ahead(view: Nesterov, x: jax.Array, memory: Any) -> jax.Array:
    momentum = optax.tree_utils.tree_get(memory, "trace")
    if momentum is None:
        raise ValueError(
            "Nesterov looks ahead along the momentum of the attack's chain, and the chain has none. "
            "Put fm.attacks.momentum(1.0) in it: optax.chain(fm.attacks.momentum(1.0), fm.attacks.fgsm(0.02))."
        )
    return x - jnp.asarray(view.distance).astype(x.dtype) * momentum  # a chain descends


@dispatch
def shown(view: Diverse, problem, walk, x, step):
    flat, structure = jax.tree.flatten(x)
    drawn = lambda number, leaf: jax.vmap(lambda one, key: _resized(view, one, key))(leaf, problem.keys(step, number))
    return structure.unflatten([drawn(number, leaf) for number, leaf in enumerate(flat)])


def _resized(view: Diverse, image: jax.Array, key: jax.Array) -> jax.Array:
    """`(height, width, channels)`, perhaps smaller within zeros."""
    if image.ndim != 3:
        raise ValueError(f"Diverse makes images (height, width, channels) smaller, and examples {image.shape} came.")
    chance, size, *place = jax.random.split(key, 4)
    full = jnp.asarray(image.shape[:2])
    low = jnp.round(jnp.asarray(view.low, jnp.float32) * image.shape[0]).astype(full.dtype)
    height = jax.random.randint(size, (), low, full[0] + 1)
    smaller = jnp.stack([height, (2 * height * full[1] + full[0]) // (2 * full[0])])
    corner = [jax.random.randint(key, (), 0, room + 1) for key, room in zip(place, full - smaller, strict=True)]
    scale, corner = smaller.astype(image.dtype) / full.astype(image.dtype), jnp.stack(corner).astype(image.dtype)
    resized = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, corner, "linear", antialias=False)
    return jnp.where(jax.random.uniform(chance) < view.probability, resized, image)
