"""What reading ahead gives, and what it costs: interleaved in one process.

    python tests/benchmarks/data.py [--rounds 7]

The slow source takes as long over a batch as the step does (it sleeps, as one that waits for a disk does), and is read ahead by
none and by two batches: once as it is, where JAX does not wait for a step, and once with something that looks at each step's
values, so that the loop does. The arrays in memory are those of `fit.py`, without a thread and with one, and then from a generator.
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


class Watch:
    """Reads the values of every step, so that the loop waits for each."""


@fm.dispatch
def on(event: fm.StepEnd, callback: Watch, run):
    pass


def timed(state: Any, data: Any, **options: Any) -> float:
    begun = time.perf_counter()
    state, _ = fm.fit(state, data, progress=False, **options)
    jax.block_until_ready(state)
    return time.perf_counter() - begun


def compare(name: str, state: Any, one: Any, other: Any, rounds: int, steps: int, **options: Any) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for data in (one, other):
        timed(state, data, **options)
    for _ in range(rounds):
        for data, record in zip((one, other), times, strict=True):
            record.append(timed(state, data, **options) / steps)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    micro = [statistics.median(t) * 1e6 for t in times]
    print(f"{name:28} {micro[0]:9.1f} µs a step, {micro[1]:9.1f} µs: ratio {ratio:.3f}", flush=True)


def main(rounds: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((64 * 40, 8, 8, 1), np.float32), rng.integers(0, 10, 64 * 40).astype(np.int32)
    convnet = fm.Classifier(fm.models.ConvNet(widths=(32, 64)))
    state = fm.setup(convnet, (x, y), optimizer=optax.adam, lr=1e-3, batch_size=64)
    timed(state, (x, y), epochs=1)
    step = timed(state, (x, y), epochs=2) / 80

    def slow() -> Any:
        for i in range(0, len(x), 64):
            time.sleep(step)
            yield x[i : i + 64], y[i : i + 64]

    depths = [fm.data.Prefetch(slow, depth) for depth in (0, 2)]
    compare("slow source, depth 0 and 2", state, *depths, rounds, 40, epochs=1)
    compare("the same, each step watched", state, *depths, rounds, 40, epochs=1, callbacks=[Watch()])

    x, y = rng.random((32 * 400, 64), np.float32), rng.integers(0, 10, 32 * 400).astype(np.int32)
    mlp = fm.Classifier(fm.models.MLP(64, 128, 10))
    state = fm.setup(mlp, (x, y), optimizer=optax.adam, lr=1e-3, batch_size=32)

    def quick() -> Any:
        for i in range(0, len(x), 32):
            yield x[i : i + 32], y[i : i + 32]

    compare("arrays, depth 0 and 2", state, (x, y), fm.data.Prefetch((x, y), 2), rounds, 2000, epochs=5, batch_size=32)
    compare("arrays, generator at depth 0", state, (x, y), fm.data.Prefetch(quick, 0), rounds, 2000, epochs=5)
    compare("arrays, generator at depth 2", state, (x, y), fm.data.Prefetch(quick, 2), rounds, 2000, epochs=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args().rounds)
