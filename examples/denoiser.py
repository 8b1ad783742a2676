"""A denoiser: a U-Net with BatchNorm, evaluated with an average of its weights.

    python examples/denoiser.py

The training data is clean digits; each step adds new noise. Writes `denoiser.png`, and prints the error of the noisy digits, of the
best linear filter, and of the network with its last and with its averaged weights.
"""

import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

import fulmen as fm
from fulmen import dispatch, forward
from fulmen.models import BatchNorm, Chain, Conv, ConvTranspose, MaxPool

NOISE = 0.4


def block(before, after):
    """Two convolutions, each with a BatchNorm and a ReLU."""
    layers = [(Conv(n, after, use_bias=False), BatchNorm(after), jax.nn.relu) for n in (before, after)]
    return Chain(*layers[0], *layers[1])


class UNet(fm.Model):
    """Images `(n, 8, 8, 1)` to images: to smaller sizes and up again, with connections between equal sizes."""

    down: tuple[Chain, ...]
    bottom: Chain
    enlarge: tuple[ConvTranspose, ...]
    up: tuple[Chain, ...]
    out: Conv


def unet(*widths):
    """A U-Net with so many channels at each size."""
    pairs = [*itertools.pairwise(widths)]
    return UNet(
        down=tuple(block(before, after) for before, after in zip((1, *widths), widths[:-1])),
        bottom=block(*widths[-2:]),
        enlarge=tuple(ConvTranspose(below, width, 2, stride=2) for width, below in pairs),
        up=tuple(block(2 * width, width) for width in widths[:-1]),
        out=Conv(widths[0], 1, kernel_size=1),
    )


@dispatch
def forward(net: UNet, x):
    y, levels = x, []
    for down in net.down:
        levels.append(down(y))
        y = MaxPool(2)(levels[-1])
    y = net.bottom(y)
    for level, enlarge, up in reversed([*zip(levels, net.enlarge, net.up)]):
        y = up(jnp.concatenate([level, enlarge(y)], -1))
    return x + net.out(y)


def digits():
    x, _ = load_digits(return_X_y=True)
    return x.reshape(-1, 8, 8, 1).astype(np.float32) / 16


def main(epochs=60, widths=(16, 32, 64), picture="denoiser.png"):
    train, test = fm.split(digits(), 0.8, seed=0)
    rng = np.random.default_rng(0)
    noisy = test + NOISE * rng.normal(size=test.shape).astype(np.float32)

    # The target is the clean input, and the augmentation adds noise to the input alone.
    system = fm.EMA(fm.Regressor(unet(*widths), augment=fm.augmentations.Noise(NOISE)), decay=0.995, warmup=9)
    state, _ = fm.fit(
        system,
        (train, train),
        optimizer=optax.adam,
        lr=3e-3,
        epochs=epochs,
        batch_size=64,
        validation=(noisy, test),
    )
    flat = lambda x: x.reshape(len(x), -1)
    repeated = np.tile(train, (20, 1, 1, 1))
    filtered = Ridge().fit(flat(repeated + NOISE * rng.normal(size=repeated.shape)), flat(repeated)).predict(flat(noisy))
    found = {
        "noisy": noisy,
        "linear filter": filtered.reshape(test.shape),
        "U-Net, last weights": fm.predict(state.system.component, noisy),
        "U-Net, averaged": fm.predict(state, noisy),
    }
    error = {name: float(np.mean((images - test) ** 2) ** 0.5) for name, images in found.items()}
    for name, value in error.items():
        print(f"{name:20}  {value:.4f}")
    draw({"clean": test, **found}, picture)
    return error


def draw(rows, picture, columns=12):
    figure, grid = plt.subplots(len(rows), columns, figsize=(0.75 * columns, 0.8 * len(rows)), layout="constrained")
    for cells, (name, images) in zip(grid, rows.items()):
        for axes, image in zip(cells, images):
            axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        cells[0].set_ylabel(name.replace(", ", "\n").replace(" ", "\n"), fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
