"""Runs that are killed with SIGKILL at random moments and resumed, compared bit for bit with runs that are not killed.

    python tests/benchmarks/kills.py [--kills 300] [--system classifier] [--seed 0]

The systems train on distinct, shuffled rows: `classifier` is an EMA of a classifier with BatchNorm, dropout and a cosine
schedule, and `game` is a GAN whose generator is updated in every other step. A run is killed after a random time since its
first step, again and again until it is complete; then another run begins, until there were so many kills. Compared are the file of
the final state, the history but for seconds, and what a callback remembers.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = """
import json, sys
import jax, numpy as np, optax
import fulmen as fm
from fulmen import dispatch

which, directory, result = sys.argv[1:]
rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 4)).astype(np.float32), rng.integers(0, 3, 300).astype(np.int32)
layers = fm.models.Dense(4, 16), fm.models.BatchNorm(16), fm.models.Dropout(0.3), jax.nn.relu, fm.models.Dense(16, 3)
if which == "classifier":
    system, data, options = fm.EMA(fm.Classifier(fm.models.Chain(*layers)), 0.9), (x, y), dict(validation=(x[:90], y[:90]))
else:
    system = fm.GAN(fm.models.MLP(2, 8, 4, dropout=0.1), fm.models.MLP(4, 8, 1), latent=2, critic_steps=2)
    data, options = x, {}

class Remembers:
    def __init__(self):
        self.losses = []

@dispatch
def on(event: fm.FitStart, callback: Remembers, run):
    print("started", flush=True)

@dispatch
def on(event: fm.EpochEnd, callback: Remembers, run):
    callback.losses.append(float(run.logs["loss"]))

@dispatch
def run_state(callback: Remembers):
    return {"losses": callback.losses}

@dispatch
def restore_run_state(callback: Remembers, saved):
    callback.losses = list(saved["losses"])

remembers = Remembers()
keep = fm.Latest(2) | fm.Best("loss")
checkpoint = fm.Checkpoint(directory, every=fm.Every(steps=7) | fm.Every(epochs=1), keep=keep)
state, history = fm.fit(
    system, data, optimizer=optax.adam, lr=fm.cosine(1e-2), epochs=40, batch_size=16, seed=3, resume=directory,
    callbacks=[checkpoint, remembers], progress=False, **options,
)
fm.save(result, state)
rows = {name: [float(v).hex() for v in np.ravel(values)] for name, values in history.items() if name != "seconds"}
open(result + ".json", "w").write(json.dumps([rows, remembers.losses]))
"""


def complete_run(which: str, directory: Path, result: Path, rng: random.Random | None, kills: int) -> tuple[int, list[str]]:
    """Run until the run is complete. Returns the number of kills, and what incomplete files each had left.

    Args:
        which: the system.
        directory, result: of the checkpoints, and the file of the final state.
        rng: for the moments of the kills; None for no kills.
        kills: the most.
    """
    killed, left = 0, []
    while True:
        command = [sys.executable, "-W", "ignore", "-c", RUN, which, str(directory), str(result)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if rng is not None and killed < kills and process.stdout.readline():
            time.sleep(rng.random() * 3 * (1 + killed % 4))  # some are long enough on a busy machine
            process.send_signal(signal.SIGKILL)
        error = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            if process.returncode:
                raise RuntimeError(error)
            return killed, left
        killed += 1
        names = os.listdir(directory) if directory.is_dir() else []
        left.append(
            "in a save" if any(name.startswith(".step") or name.endswith("previous") for name in names) else "elsewhere"
        )


def outcome(result: Path) -> tuple[bytes, str]:
    return result.read_bytes(), Path(f"{result}.json").read_text()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--system", choices=["classifier", "game"], default="classifier")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    rng, killed, runs, where = random.Random(given.seed), 0, 0, collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder, "expected")
        complete_run(given.system, Path(folder, "whole"), expected, None, 0)
        while killed < given.kills:
            runs += 1
            directory, result = Path(folder, f"runs{runs}"), Path(folder, f"result{runs}")
            more, left = complete_run(given.system, directory, result, rng, given.kills - killed)
            killed += more
            where.update(left)
            if outcome(result) != outcome(expected):
                sys.exit(f"run {runs}, after {killed} kills in all, ended otherwise than the run that was not killed")
            print(f"{killed} kills, {runs} runs, all equal; {dict(where)}", flush=True)


if __name__ == "__main__":
    main()
