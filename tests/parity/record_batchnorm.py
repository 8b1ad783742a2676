"""Record what PyTorch's BatchNorm computes over several training steps, as `batchnorm.npz` beside this file.

    python tests/parity/record_batchnorm.py

It needs torch, and the tests do not: they read the recorded numbers. Images are stored with channels last.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

CASES = {
    "vectors": (torch.nn.BatchNorm1d, (8, 5), {}),
    "images": (torch.nn.BatchNorm2d, (3, 4, 5, 6), {}),
    "options": (torch.nn.BatchNorm2d, (2, 3, 3, 2), {"momentum": 0.3, "eps": 1e-2}),
}
STEPS, RATE = 5, 0.1


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return np.moveaxis(array, 1, -1).copy()


def record(
    name: str, kind: type[torch.nn.Module], shape: tuple[int, ...], options: dict[str, float]
) -> dict[str, np.ndarray]:
    """Each step's input, weights, output, gradients of `(output * direction).sum()`, and running statistics after it."""
    features = shape[1]
    layer = kind(features, **options)
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * torch.randn(features))
        layer.bias.copy_(0.3 * torch.randn(features))
    center, spread = 3 * torch.randn(features), 0.5 + 2 * torch.rand(features)
    wide = (features,) + (1,) * (len(shape) - 2)
    steps = []
    for _ in range(STEPS):
        x = (center.reshape(wide) + spread.reshape(wide) * torch.randn(shape)).requires_grad_()
        direction = torch.randn(shape)
        before = {"weight": layer.weight.detach().clone().numpy(), "bias": layer.bias.detach().clone().numpy()}
        layer.zero_grad()
        y = layer(x)
        (y * direction).sum().backward()
        steps.append(
            {
                "x": channels_last(x),
                "direction": channels_last(direction),
                **before,
                "y": channels_last(y),
                "grad_x": channels_last(x.grad),
                "grad_weight": layer.weight.grad.numpy().copy(),
                "grad_bias": layer.bias.grad.numpy().copy(),
                "running_mean": layer.running_mean.numpy().copy(),
                "running_variance": layer.running_var.numpy().copy(),
            }
        )
        with torch.no_grad():  # plain gradient descent, so that each step has other weights
            layer.weight -= RATE * layer.weight.grad / direction.numel()
            layer.bias -= RATE * layer.bias.grad / direction.numel()
    found = {f"{name}/{key}": np.stack([step[key] for step in steps]) for key in steps[0]}
    layer.eval()
    x = torch.randn(shape)
    found[f"{name}/eval_weight"] = layer.weight.detach().numpy().copy()
    found[f"{name}/eval_bias"] = layer.bias.detach().numpy().copy()
    found[f"{name}/eval_x"], found[f"{name}/eval_y"] = channels_last(x), channels_last(layer(x))
    found[f"{name}/options"] = np.array([layer.momentum, layer.eps])
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        arrays.update(record(name, *case))
    path = Path(__file__).with_name("batchnorm.npz")
    np.savez_compressed(path, torch_version=np.array(torch.__version__), **arrays)
    print(f"wrote {len(arrays)} arrays to {path.name}, from torch {torch.__version__}")
