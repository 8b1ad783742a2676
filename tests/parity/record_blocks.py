"""Record what PyTorch's blocks compute, as `blocks.npz` beside this file.

    python tests/parity/record_blocks.py

It needs torch, and the tests do not: they read the recorded numbers. Images are stored with channels last, and weights as
Fulmen has them: `(in, out)` and `(height, width, in, out)`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

FEATURES, HEADS, LENGTH = 8, 2, 5


class BasicBlock(nn.Module):
    """The block of torchvision's ResNet-18."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Attention(nn.Module):
    """Causal self-attention, which also takes which positions may be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        padding = None if seen is None else ~seen
        return self.attention(x, x, x, attn_mask=future, key_padding_mask=padding, need_weights=False)[0]


class Layer(nn.Module):
    """A pre-norm encoder layer with a causal mask, and GPT-2's GELU."""

    def __init__(self) -> None:
        super().__init__()
        gelu = nn.GELU(approximate="tanh")
        self.layer = nn.TransformerEncoderLayer(
            FEATURES, HEADS, 4 * FEATURES, dropout=0.0, activation=gelu, batch_first=True, norm_first=True
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, src_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1))


def stored(tensor: torch.Tensor) -> np.ndarray:
    """Images with channels last."""
    array = tensor.detach().numpy()
    return np.moveaxis(array, 1, -1).copy() if array.ndim == 4 else array.copy()


def weight(tensor: torch.Tensor) -> np.ndarray:
    """A weight or its gradient, inputs before outputs."""
    array = tensor.detach().numpy()
    return array.transpose(*range(2, array.ndim), 1, 0).copy() if array.ndim > 1 else array.copy()


def record(name: str, module: nn.Module, shape: tuple[int, ...], *extra: torch.Tensor) -> dict[str, np.ndarray]:
    """Input, weights, output, gradients of `(output · direction).sum()`; then, evaluated, the output again."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # scales would be 1 and shifts 0
                parameter.add_(0.3 * torch.randn(parameter.shape))
    x = (0.5 + 2 * torch.randn(shape)).requires_grad_()
    found = {f"{name}/{path}": weight(p) for path, p in module.named_parameters()}
    y = module(x, *extra)
    direction = torch.randn(y.shape)
    (y * direction).sum().backward()
    assert x.grad is not None
    found |= {f"{name}/x": stored(x), f"{name}/y": stored(y), f"{name}/direction": stored(direction)}
    found |= {f"{name}/grad/x": stored(x.grad)}
    found |= {f"{name}/grad/{path}": weight(p.grad) for path, p in module.named_parameters() if p.grad is not None}
    found |= {f"{name}/after/{path}": stored(b) for path, b in module.named_buffers() if b.ndim}
    module.eval()
    found[f"{name}/eval_y"] = stored(module(x, *extra))
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    seen = torch.arange(LENGTH)[None] < torch.tensor([[3], [LENGTH]])
    arrays = {
        **record("group_norm", nn.GroupNorm(2, 6, eps=1e-4), (3, 6, 4, 5)),
        **record("rms_norm", nn.RMSNorm(6, eps=1e-5), (3, 4, 6)),
        **record("attention", Attention(), (2, LENGTH, FEATURES)),
        **record("masked_attention", Attention(), (2, LENGTH, FEATURES), seen),
        "masked_attention/seen": seen.numpy(),
        **record("transformer_block", Layer(), (2, LENGTH, FEATURES)),
        **record("basic_block", BasicBlock(3, 4, 2), (2, 3, 6, 6)),
    }
    path = Path(__file__).with_name("blocks.npz")
    np.savez_compressed(path, torch_version=np.array(torch.__version__), **arrays)
    print(f"wrote {len(arrays)} arrays to {path.name}, from torch {torch.__version__}")
