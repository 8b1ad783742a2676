"""A GRU over sequences: what a network believes after each row of a digit.

    python examples/recurrent.py

A digit is read from top to bottom, one row of eight pixels at a time, and after each row the network guesses the class. Writes
`recurrent.png`, with the guesses beside the rows.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen import dispatch, forward, loss, metrics


class Reader(fm.Model):
    """Sequences `(n, rows, pixels)` to logits after each row, `(n, rows, classes)`."""

    scan: fm.models.Scan
    drop: fm.models.Dropout
    out: fm.models.Dense


@dispatch
def forward(reader: Reader, x):
    return reader.out(reader.drop(reader.scan(x)))


@dispatch
def loss(reader: Reader, batch: fm.Labeled):
    logits = reader(batch.x)
    labels = jnp.broadcast_to(batch.y[:, None], logits.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(1)


@dispatch
def metrics(reader: Reader, batch: fm.Labeled):
    right = reader(batch.x).argmax(-1) == batch.y[:, None]
    return {f"row_{i + 1}": fm.Mean(right[:, i], batch.weight) for i in range(right.shape[1])}


def digits():
    x, y = load_digits(return_X_y=True)
    return x.reshape(-1, 8, 8).astype(np.float32) / 16, y


def main(epochs=60, picture="recurrent.png"):
    train, test = fm.split(digits(), 0.8, seed=0)
    reader = Reader(fm.models.Scan(fm.models.GRU(8, 96)), fm.models.Dropout(0.3), fm.models.Dense(96, 10))
    state, _ = fm.fit(reader, train, optimizer=optax.adam, lr=fm.cosine(5e-3), epochs=epochs, batch_size=64)
    accuracy = [value for name, value in fm.evaluate(state, test).items() if name.startswith("row_")]
    print("accuracy after each row: ", *(f"{value:.3f}" for value in accuracy))
    draw(test, jax.nn.softmax(fm.predict(state, test[0])), picture)
    return accuracy


def draw(test, chances, picture, columns=6):
    figure, grid = plt.subplots(2, columns, figsize=(1.5 * columns, 3.4), layout="constrained")
    for i, (above, below) in enumerate(grid.T):
        above.imshow(test[0][i], cmap="gray_r")
        above.set(xticks=[], yticks=[], title=f"a {test[1][i]}")
        below.imshow(chances[i], cmap="viridis", vmin=0, vmax=1)
        below.set(xticks=range(10), yticks=[])
        below.tick_params(labelsize=7, length=0)
    grid[0, 0].set_ylabel("read from\ntop to bottom", fontsize=8)
    grid[1, 0].set_ylabel("probability of\neach class, by row", fontsize=8)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
