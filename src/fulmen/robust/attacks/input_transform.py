"""Views: transforms of an attack's point before the system. The gradient is taken through them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core import Component, components, hyper, remake, static
from fulmen.core.tree import replace
from fulmen.core.verbs import channels_first, shown
from fulmen.dispatching.registry import dispatch


class OfImages(Component):
    """What changes regions of images. Attacks set `channels_first` if the model specifies it (see `fm.attacks.channels_first`).

    Args:
        channels_first: whether images are `(n, channels, height, width)` rather than `(n, height, width, channels)`; None asks
            the model.
    """

    channels_first: bool | None = static(default=None, kw_only=True, repr=False)


def is_ambiguous(shape: tuple[int, ...]) -> bool:
    """Whether images of a shape, without the batch axis, may have the channels first."""
    return len(shape) == 3 and shape[0] <= 4 < shape[2]


def has_channels_first(layout: bool | None, shape: tuple[int, ...], who: str) -> bool:
    """The layout of images of a shape, without the batch axis.

    Raises:
        ValueError: if it is not specified, and the shape looks like that of channels first.
    """
    if layout is None and is_ambiguous(shape):
        raise ValueError(
            f"{who}: images {shape} may have the channels first, and the model does not specify it. Write "
            f"{who}(…, channels_first=True), or False for images (height, width, channels); or specify it for the model: "
            "`@dispatch def channels_first(model: Mine): return True`."
        )
    return bool(layout)


def check_layout(attack: Any, system: Any, x: Any) -> None:
    """Raise if an attack has a part whose layout of images neither it nor the system specifies, and `x` looks ambiguous."""
    for _, part in components(attack):
        if isinstance(part, OfImages) and part.channels_first is None and not channels_first(system):
            has_channels_first(None, tuple(x.shape[1:]), type(part).__name__)


def with_layout(attack: Any, system: Any) -> Any:
    """The attack with the layout of images that the system specifies, if it is channels first."""
    unknown = [path for path, part in components(attack) if isinstance(part, OfImages) and part.channels_first is None]
    if not unknown or not channels_first(system):
        return attack
    return replace(attack, {f"{path}.channels_first".lstrip("."): True for path in unknown})


class View(Component):
    """A transform of an attack's point before the system.

    **Extending.** Subclass it, and write `shown(view: Mine, problem, state, x, step)` of `fm.attacks`.
    """

    __example__ = "fm.attacks.Diverse()"


class Diverse(View, OfImages):
    """Input diversity: at each step some of the images are shrunk, and padded with zeros to their original size.

    The height is uniform between `low` times the original and the original; the width keeps the aspect ratio, the position
    is random, and the interpolation is linear. Each example draws separately. Xie et al. 2019, arXiv:1803.06978, who draw
    from 299/330, about .9, but enlarge the padded image.

    Args:
        probability: the probability that an image is changed.
        low: the smallest size, relative to the image's.
        channels_first: see `Square`.
    """

    probability: float = hyper(minimum=0, maximum=1, default=0.5)
    low: float = hyper(above=0, maximum=1, default=0.9)


class Nesterov(View):
    """The point ahead along the momentum (Lin et al. 2020, arXiv:1908.06281).

    Args:
        distance: the factor of the momentum; in the paper, the step size times `decay`. The chain needs a momentum:
            `fm.attacks.momentum(decay)` or `optax.trace`.
    """

    distance: float = hyper(minimum=0)


@dispatch
def shown(view: Nesterov, problem, state, x, step):
    flat, structure = jax.tree.flatten(x)
    return structure.unflatten([_ahead(view, leaf, memory) for leaf, memory in zip(flat, state.memory, strict=True)])


def _ahead(view: Nesterov, x: jax.Array, memory: Any) -> jax.Array:
    momentum = optax.tree_utils.tree_get(memory, "trace")
    if momentum is None:
        raise ValueError(
            "Nesterov needs a chain with momentum. Add fm.attacks.momentum(1.0): "
            "optax.chain(fm.attacks.momentum(1.0), fm.attacks.fgsm(0.02))."
        )
    distance = jnp.asarray(view.distance).astype(x.dtype)  # one, or one per example
    return x - distance.reshape(-1, *[1] * (x.ndim - 1)) * momentum  # a chain descends


@dispatch
def shown(view: Diverse, problem, state, x, step):
    flat, structure = jax.tree.flatten(x)
    resize = jax.vmap(functools.partial(_shrink_at_random, view))
    return structure.unflatten([resize(leaf, problem.keys(step, number)) for number, leaf in enumerate(flat)])


def _shrink_at_random(view: Diverse, image: jax.Array, key: jax.Array) -> jax.Array:
    """An image `(height, width, channels)`, with the view's probability shrunk and padded with zeros."""
    if image.ndim != 3:
        raise ValueError(f"Diverse needs images (height, width, channels), got examples {image.shape}.")
    if has_channels_first(view.channels_first, image.shape, "Diverse"):
        last = remake(view, {"channels_first": False})
        return jnp.moveaxis(_shrink_at_random(last, jnp.moveaxis(image, 0, -1), key), -1, 0)
    chance, size, *position = jax.random.uniform(key, (4,), jnp.float32)  # one draw compiles faster than four
    full = jnp.asarray(image.shape[:2])
    low = jnp.round(jnp.asarray(view.low, jnp.float32) * image.shape[0]).astype(full.dtype)
    height = low + _below(full[0] + 1 - low, size)
    smaller = jnp.stack([height, (2 * height * full[1] + full[0]) // (2 * full[0])])
    corner = _below(full - smaller + 1, jnp.stack(position)).astype(image.dtype)
    scale = smaller.astype(image.dtype) / full.astype(image.dtype)
    resized = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, corner, "linear", antialias=False)
    return jnp.where(chance < view.probability, resized, image)


def _below(n: jax.Array, share: jax.Array) -> jax.Array:
    """An integer from 0 to `n` − 1, for a share that is uniform in [0, 1)."""
    return (share * n.astype(share.dtype)).astype(n.dtype)
