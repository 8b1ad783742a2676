"""`layerwise`: smaller steps for what lies deeper below the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core.component import Buffer, Component, Parameter, System, parts
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.mode import Plan
from fulmen.core.paths import covers, join_path, nearest_above
from fulmen.core.tree import get, items
from fulmen.core.verbs import layer_order
from fulmen.dispatching.registry import dispatch
from fulmen.models.stacked import Stacked
from fulmen.objectives.penalties import kernels
from fulmen.optimizers.optimizer import Built, Enclosing, build

__all__ = ["depths", "layerwise"]


@dispatch
def layer_order(component: object):
    return None


class Layerwise(Enclosing):
    """See `layerwise`."""

    decay: float = 0.8

    def built(self, system: Any, plan: Plan) -> Built:
        return build(self.optimizer, system, plan).followed_by(scale_by_depth(self.decay, depths(system)))


def layerwise(optimizer: Any, *, decay: float) -> Layerwise:
    """An optimizer whose steps are smaller the further below the output a layer is: times decay^(L − l) in layer l of 0, …, L.

    Howard and Ruder 2018, arXiv:1801.06146; with blocks as layers Bao et al. 2022, arXiv:2106.08254. The decay is data. Each
    model of a system counts by itself, and all its parameters, whichever of them the optimizer is for. The layers are found
    in this order:

    - the fields of a model, one after another;
    - what stands in a list, a `Chain` or a `Stacked`: each of them one layer, whatever is in it, but a `Chain` or `Stacked`
      in a `Chain` counts its own;
    - what has no kernel, such as a normalization, is of the layer before it.

    A `Transformer` has its embeddings as the lowest layer, then its blocks. `layer_order` says it for a model of one's own,
    and `fm.optimizers.depths(model)` shows it. The logged `lr` is that of the last layer.

    Args:
        optimizer: what may be given as an optimizer; a constructor takes the `lr=` that is given beside `optimizer=`.
        decay: the factor from a layer to the one below, above 0 and at most 1.

    >>> fm.optimizers.layerwise(fm.optimizers.Optimizer(optax.adamw, 1e-3, weight_decay=0.1), decay=0.8)
    Layerwise(optimizer=adamw(0.001, weight_decay=0.1), decay=0.8)
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layerwise: decay must be above 0 and at most 1, and {decay} came.")
    return Layerwise(optimizer, decay=decay)


def scale_by_depth(decay: Any, known: Mapping[str, Any]) -> optax.GradientTransformation:
    """Updates times decay^d, where d is how far a parameter is below its model's last layer, by its path."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        structure = jax.tree.structure(updates)
        return structure.unflatten([_scaled(leaf.value, known.get(leaf.path, 0), decay) for leaf in leaves(updates)]), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scaled(value: Any, below: Any, decay: Any) -> Any:
    factor = jnp.asarray(decay) ** jnp.asarray(below, jnp.float32)
    return value * factor.reshape(factor.shape + (1,) * (value.ndim - factor.ndim)).astype(value.dtype)


def depths(component: Any) -> dict[str, Any]:
    """How many layers below its model's last one each parameter is, by path; for a stack of blocks an array, a number each.

    Args:
        component: a model or a system.

    >>> net = fm.init(fm.models.MLP(8, 8, 8), jax.random.key(0))
    >>> fm.optimizers.depths(net)
    {'layers.0.weight': 1, 'layers.0.bias': 1, 'layers.2.weight': 0, 'layers.2.bias': 0}
    """
    found: dict[str, Any] = {}
    for top in _tops(component, ""):
        places, last = {}, -1
        for names, count in _layers(get(component, top), top):
            first = last + 1 if count else max(last, 0)
            last += count
            places |= dict.fromkeys(names, np.arange(first, last + 1) if count > 1 else first)
        for leaf in leaves(component):
            if leaf.role == PARAMETER and covers(top, leaf.path):
                place = nearest_above(leaf.path, places)
                found[leaf.path] = 0 if place is None else max(last, 0) - place
    return found


def _tops(value: Any, path: str) -> Iterator[str]:
    """The paths of what has layers of its own: models, and systems that say in which order their parts compute."""
    if isinstance(value, _CONTAINERS) or (isinstance(value, System) and layer_order(value) is None):
        for name, inner in _inside(value).items():
            yield from _tops(inner, join_path(path, name))
    else:
        yield path


def _layers(value: Any, path: str, whole: bool = False) -> list[tuple[list[str], int]]:
    """The layers in order: their paths, and for how many each counts, 0 for what is of the one before it."""
    if isinstance(value, Stacked):
        return [([path], value.n)]
    named = layer_order(value) if isinstance(value, Component) else None
    if named is None:
        inside, several = _inside(value), isinstance(value, _CONTAINERS)
        named = list(inside) if several or (not whole and any(map(_is_part, inside.values()))) else []
    if not named:
        return [([path], int(_has_kernel(value)))]
    layers = []
    for name in named:
        if isinstance(name, tuple):
            layers.append(([join_path(path, one) for one in name], 1))
        else:
            layers += _layers(get(value, name), join_path(path, name), whole=isinstance(value, _CONTAINERS))
    return layers


_CONTAINERS = (list, tuple, dict)


def _inside(value: Any) -> dict[str, Any]:
    return parts(value) if isinstance(value, Component) else dict(items(value)[0])


def _is_part(value: Any) -> bool:
    return value is not None and not isinstance(value, Parameter | Buffer) and not jax.tree_util.all_leaves([value])


def _has_kernel(value: Any) -> bool:
    found = zip(leaves(value), jax.tree.leaves(kernels(value)), strict=True)
    return any(leaf.role == PARAMETER and is_kernel for leaf, is_kernel in found)
