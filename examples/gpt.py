"""A GPT that writes digits, pixel by pixel: microbatches, bfloat16, a warm-up, and runs that can be stopped.

    python examples/gpt.py

A digit is a text of 65 tokens: its class, then 64 pixels. Stop the program at any time and start it again: it continues from the
newest checkpoint in `gpt-run/`, and ends with the same result. Writes `gpt.png`, digits that were asked for by their class.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm

GREYS = 17  # the pixels are 0 to 16, and the classes are the tokens after them


def texts():
    x, y = load_digits(return_X_y=True)
    return np.concatenate([GREYS + y[:, None], x], 1).astype(np.int32)


def clipped(lr):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, b2=0.95, weight_decay=0.1))


def main(epochs=15, features=48, layers=2, run="gpt-run", picture="gpt.png"):
    train, test = fm.split(texts(), 0.9, seed=0)
    model = fm.models.Transformer(GREYS + 10, length=64, features=features, heads=4, layers=layers)
    state, history = fm.fit(
        fm.MixedPrecision(fm.LanguageModel(model)),
        train,
        optimizer=clipped,
        lr=fm.cosine(3e-3, warmup=0.1, end=1e-4),
        epochs=epochs,
        batch_size=32,
        microbatches=2,
        validation=test,
        callbacks=[fm.Checkpoint(run, every=fm.Every(epochs=1) | fm.Every(minutes=1), keep=fm.Latest(2))],
        resume=run,
    )
    classes = GREYS + np.arange(10).repeat(10)[:, None]
    model = state.system.system.model
    written = fm.models.generate(model, classes, 64, jax.random.key(0), top_p=0.95)
    print(f"perplexity of a pixel: {history['validation/perplexity'][-1]:.2f} of {GREYS}")
    draw(np.asarray(written)[:, 1:].reshape(10, 10, 8, 8), picture)
    return history["validation/perplexity"]


def draw(images, picture):
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    sheet = np.pad(images, ((0, 0), (0, 0), (0, 2), (0, 2))).swapaxes(1, 2).reshape(100, 100)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=16)
    axes.set(xticks=[], yticks=np.arange(10) * 10 + 3.5, yticklabels=range(10), title="digits written by a GPT, by class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
