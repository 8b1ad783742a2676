"""`Chain`, layers applied in sequence, `Function`, a plain function as a layer; and the chains `MLP` and `ConvNet`."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fulmen.core import Component, Model
from fulmen.core.tree import with_article
from fulmen.core.verbs import forward, layer_order
from fulmen.dispatching.registry import dispatch
from fulmen.models.convolution import Conv
from fulmen.models.input_checks import function_named, pair
from fulmen.models.layers import Dense, Dropout, Flatten
from fulmen.models.normalization import BatchNorm
from fulmen.models.pooling import MaxPool


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
        self.layers = tuple(_layer(layer, i, len(layers)) for i, layer in enumerate(layers))

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
        raise TypeError(f"Chain takes layers by position, got {with_article(type(layer))}: write Chain(*layers).")
    # A foreign module is callable too, but it is a pytree with its own `forward` method.
    if isinstance(layer, Component) or not (isinstance(layer, list | tuple | dict) or jax.tree_util.all_leaves([layer])):
        return layer
    if callable(layer):
        return Function(layer)
    raise TypeError(f"Chain takes models and functions, got {layer!r} at index {i}{function_named(layer)}.")


@dispatch
def forward(chain: Chain, x):
    for layer in chain.layers:
        x = forward(layer, x)
    return x


@dispatch
def layer_order(chain: Chain):
    return ["layers"]  # explicit, so that its layers count separately even inside a list or another chain


class MLP(Chain):
    """A multilayer perceptron: `(…, sizes[0])` to `(…, sizes[-1])`. As in a `Chain`, `mlp[0]` is the first layer.

    Args:
        *sizes: features of the input, of each hidden layer, and of the output.
        activation: after each hidden layer.
        dropout: the rate after each activation; with 0 there are no `Dropout` layers.

    >>> net = fm.init(fm.models.MLP(64, 128, 10, dropout=0.1), jax.random.key(0))
    >>> net(jnp.ones((32, 64))).shape, fm.count_parameters(net)
    ((32, 10), 9610)
    """

    def __init__(self, *sizes: int, activation: Callable[..., Any] = jax.nn.relu, dropout: float = 0.0) -> None:
        try:
            widths = [operator.index(size) for size in sizes]
        except TypeError:
            flat = [n for size in sizes for n in (size if isinstance(size, tuple | list) else [size])]
            write = f"; write MLP({', '.join(map(str, flat))})" if len(flat) > len(sizes) else ""
            raise TypeError(
                f"MLP takes sizes as integers by position, such as MLP(64, 128, 10), got {sizes}{write}."
            ) from None
        if not callable(activation):
            raise TypeError(
                f"MLP.activation must be a function of an array, got {activation!r}{function_named(activation)}."
            )
        if len(widths) < 2:
            raise ValueError(f"MLP takes at least the sizes of its input and its output, MLP(64, 10), got {sizes}.")
        layers: list[Any] = []
        for before, after in itertools.pairwise(widths[:-1]):
            layers += [Dense(before, after), activation, *dropouts(dropout)]
        super().__init__(*layers, Dense(widths[-2], widths[-1]))


def dropouts(rate: float) -> list[Dropout]:
    """One `Dropout`, or none if the rate is the number 0."""
    return [] if isinstance(rate, int | float) and rate == 0 else [Dropout(rate)]


class ConvNet(Chain):
    """A convolutional network for small images: `(n, height, width, in_channels)` to `(n, classes)`.

    3×3 convolutions, each with a ReLU, and a 2×2 max-pooling after every second one and after the last; then one hidden
    dense layer. The structure is that of VGG (Simonyan and Zisserman 2015, arXiv:1409.1556).

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        widths: channels of each convolution.
        image_size: height and width of the images, or one number for both.
        hidden: features of the hidden dense layer.
        batch_norm: whether each convolution has a `BatchNorm` instead of a bias.
        dropout: the rate before the last layer; with 0 there is no `Dropout` layer.

    >>> net = fm.init(fm.models.ConvNet(1, 10), jax.random.key(0))
    >>> net(jnp.ones((5, 8, 8, 1))).shape
    (5, 10)
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (32, 64),
        image_size: int | tuple[int, int] = (8, 8),
        hidden: int = 128,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if not np.ndim(widths) or np.ndim(classes):
            raise TypeError(
                "ConvNet takes (in_channels, classes, widths), such as ConvNet(1, 10, (32, 64)), with the channels of each "
                f"convolution as widths, got classes {classes!r} and widths {widths!r}."
            )
        if not widths:
            raise ValueError("ConvNet.widths must not be empty.")
        layers: list[Any] = []
        channels, (height, width) = in_channels, pair(image_size)
        for i, features in enumerate(widths, 1):
            norms = [BatchNorm(features)] if batch_norm else []
            layers += [Conv(channels, features, use_bias=not batch_norm), *norms, jax.nn.relu]
            channels = features
            if i % 2 == 0 or i == len(widths):
                layers.append(MaxPool(2))
                height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise ValueError(
                f"ConvNet.image_size {image_size} is too small for {len(widths)} widths: each pooling halves it."
            )
        head = [Dense(height * width * channels, hidden), jax.nn.relu, *dropouts(dropout), Dense(hidden, classes)]
        super().__init__(*layers, Flatten(), *head)
