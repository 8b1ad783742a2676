"""`MLP`: a multilayer perceptron."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax

from fulmen.models.chain import Chain
from fulmen.models.layers import Dense, Dropout


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
            raise TypeError(f"MLP takes sizes as integers by position, MLP(64, 128, 10), got {sizes}.") from None
        if len(widths) < 2:
            raise ValueError(f"MLP takes at least the sizes of its input and its output, MLP(64, 10), got {sizes}.")
        layers: list[Any] = []
        for before, after in itertools.pairwise(widths[:-1]):
            layers += [Dense(before, after), activation, *dropouts(dropout)]
        super().__init__(*layers, Dense(widths[-2], widths[-1]))


def dropouts(rate: float) -> list[Dropout]:
    """One `Dropout`, or none if the rate is the number 0."""
    return [] if isinstance(rate, int | float) and rate == 0 else [Dropout(rate)]
