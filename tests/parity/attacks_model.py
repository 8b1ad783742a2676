"""The small convnet that the attacks' parity figures are of: as a `Classifier`, as a torch module, and how it was trained.

    python tests/parity/attacks_model.py

trains it on the digits 8×8 and writes `attacks_model.npz` beside this file: the weights, and the images (0 to 16) and labels
that it was not trained on. There is no maximum in it, whose gradient where several are equal is a matter of taste.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("attacks_model.npz")


def arrays() -> dict[str, np.ndarray]:
    """The weights, the images and the labels, as they are stored."""
    with np.load(PATH) as stored:
        return dict(stored)


def examples(n: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` test images, `(n, 8, 8, 1)` in [0, 1], and their labels, `(n,)`; there are 512."""
    stored = arrays()
    return (stored["images"][:n, :, :, None] / 16).astype(dtype), stored["labels"][:n].astype(np.int32)


def described() -> Any:
    """The classifier without its weights."""
    import jax

    import fulmen as fm

    conv, dense, relu = fm.models.Conv, fm.models.Dense, jax.nn.relu
    strided = patch_conv()(16, 32, stride=2, padding=1)  # "SAME" would pad at the end only
    layers = [conv(1, 16), relu, strided, relu, fm.models.Flatten(), dense(512, 64), relu, dense(64, 10)]
    return fm.Classifier(fm.models.Chain(*layers), metrics=(fm.Accuracy(),))


@functools.cache
def patch_conv() -> Any:
    """A convolution by patches: the gradient of XLA's in float64 takes 70 times as long if nothing is optimised, as in tests."""
    from fulmen import forward as forward_verb
    from fulmen.models import Conv
    from fulmen.models.convolution import _by_patches

    class PatchConv(Conv):
        pass

    def forward(layer: PatchConv, x):
        strides, pads = (layer.stride,) * 2, [(layer.padding,) * 2] * 2
        return _by_patches(x, layer.weight, strides, pads, (1, 1)) + layer.bias[None, None, None]

    forward_verb.dispatch(forward)
    return PatchConv


def classifier(dtype: Any = np.float32) -> Any:
    """The classifier with its weights."""
    import jax
    import jax.numpy as jnp

    import fulmen as fm

    stored = arrays()
    shapes = jax.eval_shape(fm.init, described(), jax.random.key(0))  # draws nothing
    weights = iter(jnp.asarray(stored[f"weight{i}"], dtype) for i in range(8))
    return jax.tree.map(lambda shape: next(weights), shapes)


def torch_module(dtype: Any = None) -> Any:
    """The same as a torch module, from `(n, 1, 8, 8)` to logits `(n, 10)`."""
    import torch
    from torch import nn

    class ChannelsLast(nn.Module):
        """Flattens in the order in which Fulmen does."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).flatten(1)

    convs = [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)]
    denses = [nn.Linear(512, 64), nn.Linear(64, 10)]
    relu = nn.ReLU
    parts = [convs[0], relu(), convs[1], relu(), ChannelsLast(), denses[0], relu(), denses[1]]
    module = nn.Sequential(*parts).to(dtype or torch.float32).eval().requires_grad_(False)
    stored = arrays()
    for i, layer in enumerate([*convs, *denses]):
        weight, bias = (torch.tensor(stored[f"weight{2 * i + j}"]) for j in (0, 1))
        layer.weight.copy_(weight.permute(*range(weight.ndim - 1, weight.ndim - 3, -1), *range(weight.ndim - 2)))
        layer.bias.copy_(bias)
    return module


def train() -> None:
    import jax
    import optax
    from sklearn.datasets import load_digits

    import fulmen as fm

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].reshape(-1, 8, 8).astype(np.uint8), labels[order].astype(np.uint8)
    x, y = (images[:, :, :, None] / 16).astype(np.float32), labels.astype(np.int32)
    state, _ = fm.fit(described(), (x[512:], y[512:]), optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=30, batch_size=64)
    print(fm.evaluate(state, (x[:512], y[:512])))
    weights = [leaf for leaf in jax.tree.leaves(state.system) if isinstance(leaf, jax.Array)]
    stored = {f"weight{i}": np.asarray(weight) for i, weight in enumerate(weights)}
    np.savez_compressed(PATH, images=images[:512], labels=labels[:512], **stored)
    print(f"wrote {', '.join(str(w.shape) for w in weights)}")


if __name__ == "__main__":
    train()
