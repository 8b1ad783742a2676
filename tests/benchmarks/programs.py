"""Memory maps and memory of many fits of different systems in one process.

    python tests/benchmarks/programs.py [--fits 1000]

Each fit has an optimizer of its own, so each compiles its own step. Prints the maps (`/proc/self/maps`) and the resident memory
after every tenth of the fits; both must stay flat, since Linux ends a process that has more than 65,530 maps.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import numpy as np
import optax

import fulmen as fm


def maps() -> int:
    """The memory maps of this process."""
    return Path("/proc/self/maps").read_text().count("\n")


def resident() -> float:
    """The resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fits", type=int, default=1000)
    fits = parser.parse_args().fits
    rng = np.random.default_rng(0)
    data = rng.random((32, 4), np.float32), rng.integers(0, 3, 32).astype(np.int32)
    begun = time.perf_counter()
    for number in range(1, fits + 1):
        system = fm.Classifier(fm.models.MLP(4, 8, 3))
        fm.fit(system, data, optimizer=optax.adam(1e-3 * number), epochs=1, batch_size=32, progress=False)
        if number % max(fits // 10, 1) == 0:
            gc.collect()
            seconds = time.perf_counter() - begun
            print(f"{number:5} fits  {maps():6} maps  {resident():7.1f} MB  {seconds / number:.2f} s a fit", flush=True)
