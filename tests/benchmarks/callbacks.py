"""`fit` with callbacks against `fit` without any, interleaved in one process.

    python tests/benchmarks/callbacks.py [--rounds 15] [--only mlp] [--cpu]

The callbacks are `Checkpoint` every 200 steps, `JSONLines`, `EarlyStopping`, `Throughput` and `GradientNorms`; then each alone, and
`NaNGuard`. Prints the median time of a step without them, the median over rounds of what they add, and what they add to the
fastest round. `--cpu` measures the time of the process on the processors instead, which other processes change less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from fit import CASES, data

import fulmen as fm


def callbacks_by_name(folder: Path) -> dict[str, Any]:
    """Functions that make the callbacks."""
    return {
        "Checkpoint": lambda: fm.Checkpoint(tempfile.mkdtemp(dir=folder), every=fm.Every(steps=200)),
        "JSONLines": lambda: fm.JSONLines(folder / "run.jsonl"),
        "EarlyStopping": lambda: fm.EarlyStopping("loss", patience=10**6),
        "Throughput": lambda: fm.Throughput(),
        "GradientNorms": lambda: fm.GradientNorms(),
    }


def seconds(state: Any, raw: Any, epochs: int, callbacks: list[Any], clock: Callable[[], float]) -> float:
    """The duration of a run."""
    begun = clock()
    state, _ = fm.fit(state, raw, epochs=epochs, callbacks=callbacks, progress=False)
    jax.block_until_ready(state)
    return clock() - begun


def compare(name: str, rounds: int, folder: Path, clock: Callable[[], float]) -> None:
    make, batch_size, n, image, epochs = CASES[name]
    raw = data(n, image)
    system = fm.Classifier(make(), metrics=(fm.Accuracy(),))
    state = fm.setup(system, raw, optimizer=optax.adam, lr=1e-3, batch_size=batch_size)
    steps = epochs * n // batch_size
    known = callbacks_by_name(folder)
    cases = {"all five": [*known.values()], **{name: [made] for name, made in known.items()}, "NaNGuard": [fm.NaNGuard]}
    times: dict[str, list[float]] = {case: [] for case in ("none", *cases)}
    for i in range(rounds + 1):  # the first round compiles
        for case, made in {"none": [], **cases}.items():
            duration = seconds(state, raw, epochs, [each() for each in made], clock)
            if i:
                times[case].append(duration / steps * 1e6)
    plain = statistics.median(times["none"])
    print(f"{name}, {steps} steps of {plain:.1f} µs")
    for case in cases:
        added = statistics.median(b - a for a, b in zip(times["none"], times[case]))
        least = min(times[case]) - min(times["none"])
        print(
            f"  {case:14} + {added:7.1f} µs a step  {added / plain:7.1%}    fastest + {least:7.1f} µs  {least / plain:7.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for case in [options.only] if options.only else CASES:
            compare(case, options.rounds, Path(temporary), time.process_time if options.cpu else time.perf_counter)
