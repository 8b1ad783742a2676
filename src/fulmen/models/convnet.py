"""`ConvNet`: a small convolutional network."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fulmen.models.chain import Chain
from fulmen.models.input_checks import pair
from fulmen.models.layers import Conv, Dense, Flatten
from fulmen.models.mlp import dropouts
from fulmen.models.normalization import BatchNorm
from fulmen.models.pooling import MaxPool


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
