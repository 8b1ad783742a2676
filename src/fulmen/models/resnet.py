"""`ResNet`: residual networks for images, with basic or bottleneck blocks."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from fulmen.core import Component, Model
from fulmen.core.verbs import forward, layer_order
from fulmen.dispatching.registry import dispatch
from fulmen.models.chain import Chain
from fulmen.models.convolution import Conv
from fulmen.models.layers import Dense
from fulmen.models.normalization import BatchNorm
from fulmen.models.pooling import GlobalAvgPool, MaxPool


class ResidualBlock(Model):
    """A residual connection, with `expansion` times as many output channels as the width."""

    expansion: ClassVar[int] = 1

    inner: Chain
    shortcut: Chain

    @classmethod
    def channels(cls, width: int) -> int:
        """The number of output channels."""
        return cls.expansion * width


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions with a residual connection: `(n, height, width, in_channels)` to `(n, …, …, width)`.

    `relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`. The shortcut is the identity, or a 1×1 convolution and
    a `BatchNorm` if the shape changes. He, Zhang, Ren and Sun 2016, arXiv:1512.03385.

    Args:
        in_channels: channels of the input.
        width: channels of the convolutions.
        stride: stride of the first convolution.

    >>> block = fm.init(fm.models.BasicBlock(4, 8, stride=2), jax.random.key(0))
    >>> block(jnp.ones((2, 6, 6, 4))).shape
    (2, 3, 3, 8)
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        inner = [*_conv(in_channels, width, 3, stride), jax.nn.relu, *_conv(width, width, 3)]
        self.inner = Chain(*inner)
        self.shortcut = _shortcut(in_channels, width, stride)


class Bottleneck(ResidualBlock):
    """1×1, 3×3 and 1×1 convolutions with a residual connection: `(n, height, width, in_channels)` to `(n, …, …, 4 · width)`.

    As in a `BasicBlock`, each convolution is followed by a `BatchNorm`, and all but the last by a ReLU. The stride is that of
    the 3×3 convolution ("ResNet v1.5"). He, Zhang, Ren and Sun 2016, arXiv:1512.03385.

    Args:
        in_channels: channels of the input.
        width: channels of the first two convolutions.
        stride: stride of the 3×3 convolution.

    >>> block = fm.init(fm.models.Bottleneck(4, 2, stride=2), jax.random.key(0))
    >>> block(jnp.ones((2, 6, 6, 4))).shape
    (2, 3, 3, 8)
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        out = self.channels(width)
        relu = jax.nn.relu
        inner = [*_conv(in_channels, width, 1), relu, *_conv(width, width, 3, stride), relu, *_conv(width, out, 1)]
        self.inner = Chain(*inner)
        self.shortcut = _shortcut(in_channels, out, stride)


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[Any]:
    # Not padding="SAME", which pads a strided convolution on one side only.
    conv = Conv(in_channels, out_channels, size, stride, padding=size // 2, use_bias=False)
    return [conv, BatchNorm(out_channels)]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> Chain:
    return Chain() if stride == 1 and in_channels == out_channels else Chain(*_conv(in_channels, out_channels, 1, stride))


@dispatch
def forward(block: ResidualBlock, x):
    return jax.nn.relu(block.inner(x) + block.shortcut(x))


class ResNet(Model):
    """A residual network: images `(n, height, width, in_channels)` to `(n, classes)`.

    A stem, stages of blocks, the mean over height and width, and a last linear map. Each stage but the first halves height
    and width. He, Zhang, Ren and Sun 2016, arXiv:1512.03385. `resnet18`, `resnet34` and `resnet50` have the published sizes.

    Args:
        block: `BasicBlock`, `Bottleneck`, or another type that takes `(in_channels, width, stride)` and has `channels`.
        depths: number of blocks in each stage.
        classes: number of outputs.
        in_channels: channels of the images.
        widths: width of the blocks in each stage.
        stem: `"imagenet"` (a 7×7 convolution and a max-pooling, each of stride 2) or `"cifar"` (a 3×3 convolution, for small
            images).

    >>> net = fm.models.ResNet(fm.models.BasicBlock, (1, 1), classes=10, widths=(4, 8), stem="cifar")
    >>> fm.init(net, jax.random.key(0))(jnp.ones((2, 8, 8, 3))).shape
    (2, 10)
    """

    stem: Chain
    stages: Chain
    head: Component

    def __init__(
        self,
        block: Any,
        depths: Sequence[int],
        classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: str = "imagenet",
    ) -> None:
        if len(depths) != len(widths) or not widths:
            raise ValueError(f"ResNet takes one width per stage, got depths {depths} and widths {widths}.")
        stages, channels = [], widths[0]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = block.channels(width)
            stages.append(Chain(*blocks))
        head = Dense(channels, classes)
        self.stem = _stem(stem, in_channels, widths[0])
        self.stages = Chain(*stages)
        self.head = head


def _stem(kind: str, in_channels: int, width: int) -> Chain:
    if kind == "imagenet":
        return Chain(*_conv(in_channels, width, 7, 2), jax.nn.relu, MaxPool(3, 2, padding=1))
    if kind == "cifar":
        return Chain(*_conv(in_channels, width, 3), jax.nn.relu)
    raise ValueError(f"ResNet.stem must be 'imagenet' or 'cifar', got {kind!r}.")


@dispatch
def forward(net: ResNet, x):
    return net.head(forward(GlobalAvgPool(), net.stages(net.stem(x))))


def resnet18(classes: int = 1000, **options: Any) -> ResNet:
    """A `ResNet` of 18 layers, with 11,689,512 parameters for 1000 classes; `options` are those of `ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, **options)


def resnet34(classes: int = 1000, **options: Any) -> ResNet:
    """A `ResNet` of 34 layers, with 21,797,672 parameters for 1000 classes; `options` are those of `ResNet`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, **options)


def resnet50(classes: int = 1000, **options: Any) -> ResNet:
    """A `ResNet` of 50 layers, of `Bottleneck`, with 25,557,032 parameters for 1000 classes; `options` are those of `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, **options)


@dispatch
def layer_order(block: ResidualBlock):
    return []  # one layer, not one for each of its parts
