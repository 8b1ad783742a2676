"""`Chain`: layers applied in sequence; `Function`: a plain function as a layer."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from fulmen.core import Component, Model
from fulmen.core.verbs import forward, layer_order
from fulmen.dispatching.registry import dispatch


class Function(Model):
    """A function as a layer, such as `jax.nn.relu`.

    Args:
        function: of arrays; static, so each function compiles its own program.

    >>> fm.models.Function(jnp.negative)(jnp.float32(2.0)).item()
    -2.0
    """

    function: Callable[..., Any]


@dispatch
def forward(layer: Function, *inputs):
    return layer.function(*inputs)


class Chain(Model):
    """Layers applied in sequence; plain functions are allowed.

    Args:
        *layers: models, or functions of one array (each becomes a `Function`).

    >>> net = fm.models.Chain(fm.models.Dense(64, 32), jax.nn.relu, fm.models.Dense(32, 10))
    >>> len(net), net[0].out_features, net[1]
    (3, 32, Function(function=relu))
    >>> fm.init(net, jax.random.key(0))(jnp.ones((5, 64))).shape
    (5, 10)
    """

    layers: tuple[Component, ...]

    def __init__(self, *layers: Any) -> None:
        self.__dict__.update(layers=tuple(_layer(layer, i, len(layers)) for i, layer in enumerate(layers)), mode=None)

    def __getitem__(self, index: Any) -> Any:
        """A layer, or a `Chain` for a slice."""
        return Chain(*self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)


def _layer(layer: Any, i: int, n: int) -> Any:
    if isinstance(layer, type):
        raise TypeError(f"Chain takes layers, got a class at index {i}: write {layer.__name__}(…).")
    if isinstance(layer, list | tuple | dict) and n == 1:
        raise TypeError(f"Chain takes layers by position, got a {type(layer).__name__}: write Chain(*layers).")
    # A foreign module is callable too, but it is a pytree with its own `forward` method.
    if isinstance(layer, Component) or not (isinstance(layer, list | tuple | dict) or jax.tree_util.all_leaves([layer])):
        return layer
    if callable(layer):
        return Function(layer)
    raise TypeError(f"Chain takes models and functions, got {type(layer).__name__} at index {i}.")


@dispatch
def forward(chain: Chain, x):
    for layer in chain.layers:
        x = forward(layer, x)
    return x


@dispatch
def layer_order(chain: Chain):
    return ["layers"]  # explicit, so that its layers count separately even inside a list or another chain
