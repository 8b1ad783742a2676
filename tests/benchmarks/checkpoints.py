"""What a save of `fm.Checkpoint` blocks a run for, compared with a plain copy of the arrays to the host.

    python tests/benchmarks/checkpoints.py [--megabytes 100] [--saves 15]

A run of small steps on a state of the given size is saved repeatedly. Printed are the medians of a plain copy (`np.array` of each
array), of a save as the run sees it, and of the time until the files are complete; then the time of a step while files are
written and while they are not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, forward, loss


class Large(fm.Model):
    """Mostly an array that the loss reads two rows of: its optimizer updates all of it."""

    table: jax.Array
    weight: jax.Array


@dispatch
def forward(model: Large, x):
    return x @ model.weight + model.table[:2].mean()


@dispatch
def loss(model: Large, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.x), batch.y)


class Timed(fm.Checkpoint):
    """A checkpoint that measures its saves."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.copies, self.blocked, self.written, self.begun = [], [], [], 0.0

    def save(self, run: Any) -> None:
        self._writing.wait()  # not part of what is measured: the benchmark saves more often than a run does
        if self.begun:
            self.written.append(time.perf_counter() - self.begun)
        jax.block_until_ready(run.arrays().arrays)
        begun = time.perf_counter()
        copied = [np.array(leaf) for leaf in run.arrays().arrays]
        between = time.perf_counter()
        super().save(run)
        self.begun = time.perf_counter()
        self.copies.append(between - begun)
        self.blocked.append(self.begun - between)
        del copied


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--saves", type=int, default=15)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype(np.float32), rng.integers(0, 4, 64).astype(np.int32)
    rows = given.megabytes * 2**20 // 4 // 1024
    model = Large(jax.numpy.zeros((rows, 1024)), jax.numpy.zeros((8, 4)))
    state = fm.setup(model, (x, y), optimizer=optax.sgd, lr=1e-2)
    with tempfile.TemporaryDirectory() as directory:
        callback = Timed(directory, every=fm.Every(steps=5), keep=fm.Latest(1))
        fm.fit(state, (x, y), steps=5 * given.saves, batch_size=64, callbacks=[callback], progress=False)
    copies, blocked, written = (
        1e3 * statistics.median(values[1:]) for values in (callback.copies, callback.blocked, callback.written)
    )
    print(
        f"{given.megabytes} MB: a copy takes {copies:.1f} ms, a save blocks {blocked:.1f} ms (copy {blocked - copies:+.1f} ms),"
    )
    print(f"its files are complete after {written:.0f} ms; most in one save: {1e3 * max(callback.blocked[1:]):.1f} ms")


if __name__ == "__main__":
    main()
