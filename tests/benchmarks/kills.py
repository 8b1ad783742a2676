"""Runs that are killed with SIGKILL at random moments and resumed, compared bit for bit with runs that are not killed.

    python tests/benchmarks/kills.py [--kills 300] [--system classifier] [--epochs 20] [--seed 0]

The systems are those of `tests/killed_runs.py`. A run is killed again and again until it is complete; then another run begins, until
there were so many kills. Compared are the file of the final state, the history but for seconds, what the callbacks remember, and the
lines of the log.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from killed_runs import outcome, run_to_the_end

_IN_ONE_RUN = 40  # kills


def compare(name: str, kills: int, epochs: int, seed: int, folder: Path) -> None:
    """Kill runs of a system, and exit with an error if one ends otherwise than a run that was not killed."""
    whole, killed, where = folder / f"{name}-whole", 0, collections.Counter[str]()
    run_to_the_end(name, folder / f"{name}-runs", whole, epochs)
    expected, runs = outcome(whole), 0
    while killed < kills:
        runs += 1
        directory, result = folder / f"{name}-runs{runs}", folder / f"{name}-result{runs}"
        signals = [signal.SIGKILL] * min(_IN_ONE_RUN, kills - killed)
        ended = run_to_the_end(name, directory, result, epochs, signals, seed=1000 * seed + runs)
        killed += len(ended)
        where.update(ended)
        found = outcome(result)
        different = [ending or "the state" for ending in expected if found[ending] != expected[ending]]
        if different:
            sys.exit(
                f"{name}: run {runs}, after {killed} kills, differs from one that was not killed in {', '.join(different)}"
            )
        print(f"{name}: {killed} kills in {runs} runs, all equal; {dict(where)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--system", choices=["classifier", "game"], help="both if it is left out")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = [given.system] if given.system else ["classifier", "game"]
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    with tempfile.TemporaryDirectory() as folder:
        # The programs are compiled once, by the runs that are not killed.
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for name in names:
            compare(name, given.kills // len(names), given.epochs, given.seed, Path(folder))


if __name__ == "__main__":
    main()
