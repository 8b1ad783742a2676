"""Eight ways to train a small convnet on digits, and what AutoAttack leaves of each: the table in `notebooks/03-adversarial.ipynb`.

    python tests/benchmarks/defences.py [--seeds 5] [--first 0] [--epochs 20] [--n 128] [--out notebooks/03-adversarial.json]

For every defence and seed: the accuracy on all the test digits, the accuracy under the standard AutoAttack at full budgets on
the first `n` of them (L∞, ε = .1, in [0, 1]), and the seconds of training, the first seed's with compiling.
With `--first` it goes on from that seed with what the file has of those before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm

EPS = 0.1
REGION = fm.LinfBall(EPS) & fm.Box(0, 1)


def network() -> Any:
    conv, dense, relu = fm.models.Conv, fm.models.Dense, jax.nn.relu
    layers = [conv(1, 16), relu, conv(16, 32, stride=2), relu, fm.models.Flatten(), dense(512, 64), relu, dense(64, 10)]
    return fm.Classifier(fm.models.Chain(*layers), metrics=(fm.Accuracy(),))


def defences(system: Any) -> dict[str, Any]:
    """The systems around the system."""
    pgd = fm.PGD(REGION, EPS / 4, 7)
    near = fm.PGD(REGION, EPS / 4, 7, start=fm.defences.Gaussian(0.001))
    return {
        "plain": system,
        "FGSM": fm.Adversarial(system, fm.FGSM(REGION)),
        "fast": fm.Adversarial(system, fm.defences.fast_fgsm(REGION)),
        "N-FGSM": fm.Adversarial(system, fm.defences.NFGSM(REGION)),
        "PGD-7": fm.Adversarial(system, pgd),
        "Free": fm.defences.FreeAdversarial(system, REGION, replays=4),
        "TRADES": fm.TRADES(system, near, beta=6.0),
        "MART": fm.defences.MART(system, near, beta=6.0),
    }


def digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return fm.split(((x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y), 0.8, seed=0)


def result(name: str, seed: int, epochs: int, n: int) -> dict[str, float]:
    """One training, and one evaluation."""
    (train, test), system = digits(), defences(network())[name]
    epochs = epochs // system.replays if name == "Free" else epochs  # each step is so many updates
    options: dict[str, Any] = dict(optimizer=optax.adam, lr=fm.cosine(3e-3), batch_size=64, progress=False)
    begun = time.perf_counter()
    state, _ = fm.fit(system, train, epochs=epochs, seed=seed, **options)
    seconds = time.perf_counter() - begun
    classifier = state.system if name == "plain" else state.system.system
    some = tuple(v[:n] for v in test)
    report = fm.robustness(classifier, some, REGION, seed=seed, batch_size=32, eps=(), signs=(), progress=False)
    clean = fm.evaluate(classifier, test)["accuracy"]
    return {"accuracy": clean, "autoattack": report.robust_accuracy, "training seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("notebooks/03-adversarial.json"))
    options = parser.parse_args()
    versions = {"fulmen": fm.__version__, "jax": jax.__version__, "optax": optax.__version__}
    about = {"eps": EPS, "epochs": options.epochs, "attacked": options.n, "versions": versions}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in defences(network())}
    if options.first:
        stored = json.loads(options.out.read_text())
        assert {**about, "seeds": options.first} == {name: stored[name] for name in (*about, "seeds")}, "other settings"
        found = stored["results"]
    for seed in range(options.first, options.seeds):
        for name, columns in found.items():
            row = result(name, seed, options.epochs, options.n)
            for figure, value in row.items():
                columns.setdefault(figure, []).append(round(value, 4))
            print(f"seed {seed} {name:8}", *(f"{value:8.3f}" for value in row.values()), flush=True)
        options.out.write_text(json.dumps({**about, "seeds": seed + 1, "results": found}, indent=1) + "\n")
    for name, columns in found.items():
        figures = [(statistics.mean(v), statistics.pstdev(v)) for v in columns.values()]
        print(f"{name:8}", *(f"{mean:8.3f} ± {spread:.3f}" for mean, spread in figures))
    print(f"wrote {options.out}")
