"""`import fulmen` against importing jax, optax and plum alone, in fresh interpreters, interleaved.

python tests/benchmarks/imports.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PROGRAMS = {"jax, optax, plum": "import jax, optax, plum", "fulmen": "import fulmen"}


def seconds(program: str) -> float:
    """How long an interpreter takes to start, run the program and end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT)
    return time.perf_counter() - begun


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, program in PROGRAMS.items():
            taken = seconds(program)
            if number:  # the first round fills the caches of files
                times[name].append(taken)
    for name, taken in times.items():
        print(f"{name:18} {statistics.median(taken):.2f} s")
    print(f"ratio {statistics.median(b / a for a, b in zip(*times.values(), strict=True)):.3f}")
