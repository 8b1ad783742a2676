"""`layerwise`: learning rates that decrease from the output to the input."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import Buffer, Component, Parameter, Plan, System, get, items, parts
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.paths import covers, join_path, nearest_above
from fulmen.core.verbs import layer_order
from fulmen.dispatching.registry import dispatch
from fulmen.models.stacked import Stacked
from fulmen.objectives.penalties import parameters
from fulmen.optimizers.optimizer import Built, Enclosing, build


@dispatch
def layer_order(component: object):
    return None


class Layerwise(Enclosing):
    """See `layerwise`."""

    decay: float = 0.8

    def built(self, system: Any, plan: Plan) -> Built:
        return build(self.optimizer, system, plan).followed_by(scale_by_depth(self.decay, depths(system)))


def layerwise(optimizer: Any, *, decay: float) -> Layerwise:
    """An optimizer with layer-wise learning rate decay: updates times decay^(L − l) in layer l of 0, …, L.

    Howard and Ruder 2018, arXiv:1801.06146; with blocks as layers Bao et al. 2022, arXiv:2106.08254. The decay is data. The
    layers of each model of a system are counted separately, and do not depend on which parameters have this optimizer:

    - the fields of a model, in order;
    - an element of a list, a `Chain` or a `Stacked` is one layer, except for a `Chain` or `Stacked` in a `Chain`, whose
      elements are the layers;
    - a part without a kernel, such as a normalization, belongs to the layer before it.

    A `Transformer` has its embeddings as the lowest layer, then its blocks. Write `layer_order` for another order, and see
    the result by `fm.optimizers.depths(model)`. The logged `lr` is that of the last layer.

    Args:
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.
        decay: the factor per layer, above 0 and at most 1.

    >>> fm.optimizers.layerwise(fm.optimizers.Optimizer(optax.adamw, 1e-3, weight_decay=0.1), decay=0.8)
    Layerwise(optimizer=adamw(0.001, weight_decay=0.1), decay=0.8)
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layerwise: decay must be above 0 and at most 1, got {decay}.")
    return Layerwise(optimizer, decay=decay)


def scale_by_depth(decay: Any, depths: Mapping[str, Any]) -> optax.GradientTransformation:
    """Updates times decay^d, for the depth d of each parameter, by path."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = [_scaled(leaf.value, depths.get(leaf.path, 0), decay) for leaf in leaves(updates)]
        return jax.tree.structure(updates).unflatten(scaled), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scaled(value: Any, depth: Any, decay: Any) -> Any:
    factor = jnp.asarray(decay) ** jnp.asarray(depth, jnp.float32)
    return value * factor.reshape(factor.shape + (1,) * (value.ndim - factor.ndim)).astype(value.dtype)


def depths(component: Any) -> dict[str, Any]:
    """The number of layers from each parameter to the last layer of its model.

    Args:
        component: a model or a system.

    Returns:
        From paths to numbers; for a `Stacked` to an array with a number for each block.

    >>> net = fm.init(fm.models.MLP(8, 8, 8), jax.random.key(0))
    >>> fm.optimizers.depths(net)
    {'layers.0.weight': 1, 'layers.0.bias': 1, 'layers.2.weight': 0, 'layers.2.bias': 0}
    """
    found: dict[str, Any] = {}
    for top in _tops(component, ""):
        numbers, last = {}, -1
        for paths, count in _layers(get(component, top), top):
            first = last + 1 if count else max(last, 0)
            last += count
            numbers |= dict.fromkeys(paths, np.arange(first, last + 1) if count > 1 else first)
        for leaf in leaves(component):
            if leaf.role == PARAMETER and covers(top, leaf.path):
                number = nearest_above(leaf.path, numbers)
                found[leaf.path] = 0 if number is None else max(last, 0) - number
    return found


def _tops(value: Any, path: str) -> Iterator[str]:
    """The paths of models, and of systems with a `layer_order`, whose layers are counted separately."""
    if isinstance(value, _CONTAINERS) or (isinstance(value, System) and layer_order(value) is None):
        for name, inner in _inside(value).items():
            yield from _tops(inner, join_path(path, name))
    else:
        yield path


def _layers(value: Any, path: str, whole: bool = False) -> list[tuple[list[str], int]]:
    """The layers in order: their paths, and how many they are; 0 for a part that belongs to the layer before it."""
    if isinstance(value, Stacked):
        return [([path], value.n)]
    named = layer_order(value) if isinstance(value, Component) else None
    if named is None:
        inside = _inside(value)
        split = isinstance(value, _CONTAINERS) or (not whole and any(map(_is_part, inside.values())))
        named = list(inside) if split else []
    if not named:
        return [([path], int(any(is_kernel for _, is_kernel in parameters(value))))]
    layers = []
    for name in named:
        if isinstance(name, tuple):
            layers.append(([join_path(path, part) for part in name], 1))
        else:
            layers += _layers(get(value, name), join_path(path, name), whole=isinstance(value, _CONTAINERS))
    return layers


_CONTAINERS = (list, tuple, dict)


def _inside(value: Any) -> dict[str, Any]:
    return parts(value) if isinstance(value, Component) else dict(items(value)[0])


def _is_part(value: Any) -> bool:
    return value is not None and not isinstance(value, Parameter | Buffer) and not jax.tree_util.all_leaves([value])
