"""SimCLR: representations of digits without labels, and what they are worth with a few labels.

    python examples/simclr.py

The encoder learns that two augmented views of a digit belong together. A linear classifier on its representation is then compared with
one on the pixels, from 1 to 20 labels per class. Writes `simclr.png`. Chen et al. 2020, arXiv:2002.05709.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fulmen as fm
from fulmen.augmentations import Augment, Cutout, Noise
from fulmen.models import MLP, Chain, ConvNet


def distorted(key, image):
    """One image, rotated, stretched and shifted by a random affine map."""
    map_key, shift_key = jax.random.split(key)
    middle = (image.shape[0] - 1) / 2
    pixels = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape[:2]), indexing="ij")) - middle
    linear = jnp.eye(2) + 0.2 * jax.random.normal(map_key, (2, 2))
    at = jnp.einsum("ij,jhw->ihw", linear, pixels) + middle + jax.random.uniform(shift_key, (2, 1, 1), minval=-1, maxval=1)
    return jax.scipy.ndimage.map_coordinates(image[..., 0], [*at], order=1)[..., None]


def probe(train, test, per_class, splits):
    """The mean test accuracy of a linear classifier from a few labelled examples of each class."""
    found = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(train[1]))
        rows = np.concatenate([order[train[1][order] == label][:per_class] for label in range(10)])
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        found.append(linear.fit(train[0][rows], train[1][rows]).score(*test))
    return float(np.mean(found))


def main(epochs=60, widths=(32, 64), labels=(1, 2, 5, 10, 20), points=540, splits=10, batch_size=256, picture="simclr.png"):
    x, y = load_digits(return_X_y=True)
    train, test = fm.split((x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y), 0.7, seed=0)
    encoder = Chain(*ConvNet(1, 10, widths)[:-1])  # without its last layer
    net = Chain(encoder, MLP(128, 128, 32))
    system = fm.systems.SelfSupervised(
        net, fm.objectives.NTXent(temperature=0.2), augment=Augment(distorted) >> Cutout(3) >> Noise(0.1)
    )
    state, _ = fm.fit(system, train[0], optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=epochs, batch_size=batch_size)

    encode = lambda data: (fm.predict(state.system.model[0], data[0]), data[1])
    pixels = lambda data: (data[0].reshape(-1, 64), data[1])
    both = {"pixels": (pixels(train), pixels(test)), "SimCLR": (encode(train), encode(test))}
    found = {name: [probe(*data, n, splits) for n in labels] for name, data in both.items()}
    print("labels per class ", *(f"{n:6}" for n in labels))
    for name, values in found.items():
        print(f"{name:17}", *(f"{value:6.3f}" for value in values))
    draw(found, labels, [v[:points] for v in both["SimCLR"][1]], picture)
    return found


def draw(found, labels, encoded, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for name, values in found.items():
        left.plot(labels, values, "o-", label=name)
    left.set(xscale="log", xticks=labels, xlabel="labels per class", title="accuracy of a linear classifier")
    left.set_xticks(labels, labels, minor=False)
    left.minorticks_off()
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    plane = TSNE(random_state=0, method="exact", perplexity=min(30, len(encoded[1]) - 1)).fit_transform(encoded[0])
    right.scatter(*plane.T, c=encoded[1], cmap="tab10", s=6)
    for label in range(10):
        right.annotate(str(label), np.median(plane[encoded[1] == label], 0), ha="center", va="center", fontsize=13)
    right.set(xticks=[], yticks=[], title="the test digits, learned without labels")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
