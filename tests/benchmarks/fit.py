"""`fit` against a donated loop written by hand with the same outputs, interleaved in one process.

    python tests/benchmarks/fit.py [--rounds 15] [--only mlp] [--fuse 8]

Prints the median time of a step of each, and the median over rounds of their ratio. A call of `fit` costs some 5 ms beside its
steps (checks of the data, the bar): runs are long enough that it does not count for much.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm


def data(n: int, image: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((n, 8, 8, 1) if image else (n, 64), np.float32)
    return x, rng.integers(0, 10, n).astype(np.int32)


class ByHand:
    """The loop that one would write: a donated jitted step on dicts, shuffled NumPy batches, sums read once an epoch."""

    def __init__(self, model: Any, batch_size: int) -> None:
        model = fm.init(model, jax.random.key(0))
        leaves, self.tree = jax.tree.flatten(model)
        self.optimizer = optax.adam(1e-3)
        self.batch_size = batch_size
        parameters = {str(i): v for i, v in enumerate(leaves)}
        self.state = (parameters, self.optimizer.init(parameters))
        self.step = jax.jit(self._step, donate_argnums=(0, 1, 2))

    def _step(self, parameters: Any, moments: Any, sums: Any, x: Any, y: Any) -> Any:
        def loss(parameters: Any) -> Any:
            model = self.tree.unflatten([parameters[str(i)] for i in range(len(parameters))])
            z = model(x)
            right = (z >= jnp.take_along_axis(z, y[:, None], 1)).sum(1) == 1
            return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), right

        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = self.optimizer.update(gradient, moments)
        sums = sums + jnp.stack([value * len(y), right.sum().astype(jnp.float32)])
        return optax.apply_updates(parameters, updates), moments, sums

    def run(self, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
        parameters, moments = self.state
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(len(x))
            sums = jnp.zeros(2)
            for i in range(0, len(x), self.batch_size):
                rows = order[i : i + self.batch_size]
                parameters, moments, sums = self.step(parameters, moments, sums, x[rows], y[rows])
            np.asarray(sums)
        self.state = (parameters, moments)


class ByFit:
    def __init__(self, model: Any, batch_size: int, x: np.ndarray, y: np.ndarray) -> None:
        system = fm.Classifier(model, metrics=(fm.Accuracy(),))
        self.state = fm.setup(system, (x, y), optimizer=optax.adam, lr=1e-3, batch_size=batch_size)

    def run(self, x: np.ndarray, y: np.ndarray, epochs: int, fuse: int | str | None = None) -> None:
        from fulmen.train.progress import ProgressBar

        with contextlib.redirect_stdout(io.StringIO()):
            self.state, _ = fm.fit(self.state, (x, y), epochs=epochs, fuse=fuse, progress=ProgressBar())
        jax.block_until_ready(self.state)


CASES = {
    "mlp": (lambda: fm.models.MLP(64, 128, 10), 32, 32 * 400, False, 20),
    "convnet": (lambda: fm.models.ConvNet(widths=(32, 64)), 64, 64 * 30, True, 10),
}


def compare(name: str, rounds: int, fuse: int | str | None) -> None:
    make, batch_size, n, image, epochs = CASES[name]
    x, y = data(n, image)
    hand, ours = ByHand(make(), batch_size), ByFit(make(), batch_size, x, y)
    hand.run(x, y, 1), ours.run(x, y, 1, fuse)
    steps, times = epochs * n // batch_size, ([], [])
    for _ in range(rounds):
        for run, record in zip((hand.run, lambda *data: ours.run(*data, fuse)), times, strict=True):
            begun = time.perf_counter()
            run(x, y, epochs)
            record.append((time.perf_counter() - begun) / steps)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    micro = [statistics.median(t) * 1e6 for t in times]
    print(f"{name:10} batch {batch_size:4}  by hand {micro[0]:8.1f} µs  fit {micro[1]:8.1f} µs  ratio {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--fuse", type=lambda text: int(text) if text.isdigit() else text)
    options = parser.parse_args()
    for case in [options.only] if options.only else CASES:
        compare(case, options.rounds, options.fuse)
