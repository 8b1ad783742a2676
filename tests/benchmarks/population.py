"""A population against its members one after another, interleaved in one process.

    python tests/benchmarks/population.py [--rounds 5] [--only mlp]

Both train by `fit` on the same batches, with the loss and the accuracy logged, and everything compiled before; the members one
after another share one program. Prints the median times of a step of all members, the median over rounds of their ratio, and
how long the first call took, which compiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm

CASES: dict[str, Any] = {
    # What makes the model, the shape of an input, the batch size, steps in a round.
    "mlp": (lambda: fm.models.MLP(64, 128, 10), (64,), 32, 600),
    "convnet": (lambda: fm.models.ConvNet(widths=(16, 32)), (8, 8, 1), 32, 30),
}


def compare(name: str, n: int, rounds: int) -> None:
    make, shape, batch_size, steps = CASES[name]
    rng = np.random.default_rng(0)
    count = batch_size * steps
    data = rng.random((count, *shape), np.float32), rng.integers(0, 10, count).astype(np.int32)
    population = fm.Population(fm.Classifier(make()), n)
    state = fm.setup(population, data, optimizer=optax.adam, lr=1e-3, batch_size=batch_size)
    alone = [jax.tree.map(jax.numpy.copy, member) for member in fm.members(state)]

    def together() -> None:
        jax.block_until_ready(fm.fit(state, data, epochs=1, progress=False)[0])

    def one_after_another() -> None:
        for member in alone:
            jax.block_until_ready(fm.fit(member, data, epochs=1, progress=False)[0])

    first, times = [], ([], [])
    for run in (lambda: fm.fit(alone[0], data, epochs=1, progress=False), together):
        begun = time.perf_counter()
        run()
        first.append(time.perf_counter() - begun)
    for _ in range(rounds):
        for run, record in zip((one_after_another, together), times, strict=True):
            begun = time.perf_counter()
            run()
            record.append((time.perf_counter() - begun) / steps)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    micro = [statistics.median(t) * 1e6 for t in times]
    print(
        f"{name:8} n = {n:2}  one after another {micro[0]:9.0f} µs  together {micro[1]:9.0f} µs  ratio {ratio:.2f}  "
        f"first call {first[0]:.1f} s and {first[1]:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(CASES))
    options = parser.parse_args()
    for case in [options.only] if options.only else CASES:
        for n in (8, 32):
            compare(case, n, options.rounds)
