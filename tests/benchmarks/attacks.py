"""PGD-40 on 512 digits against torchattacks, foolbox and ART: the same weights and threads, interleaved in one process.

    python tests/benchmarks/attacks.py [--rounds 9] [--steps 40] [--n 512]

It needs torch, torchattacks, foolbox and adversarial-robustness-toolbox besides Fulmen. Prints the median time of an attack, the
median over rounds of its ratio to Fulmen's, and the accuracy that it leaves. Fulmen also keeps each example's best point; how
long it takes without is a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fulmen as fm

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import attacks_model

EPS, STEP, THREADS = 0.1, 0.01, 2


def of_fulmen(x: np.ndarray, y: np.ndarray, steps: int) -> dict[str, Callable[[], Any]]:
    system, key = attacks_model.classifier(), jax.random.key(0)
    attack = fm.PGD(fm.LinfBall(EPS) & fm.Box(0, 1), STEP, steps)
    run = lambda best: lambda: np.asarray(fm.perturb(attack, system, (x, y), key, best=best).x)
    return {"fulmen": run(True), "fulmen, last point": run(False)}


def of_others(x: np.ndarray, y: np.ndarray, steps: int) -> dict[str, Callable[[], Any]]:
    import foolbox
    import torch
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    torch.set_num_threads(THREADS)
    model, loss = attacks_model.torch_module(), torch.nn.CrossEntropyLoss()
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long()
    one = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=steps, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    other = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=True)
    estimator = PyTorchClassifier(model, loss=loss, input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0))
    third = ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=len(x), verbose=False
    )
    last = lambda points: np.moveaxis(np.asarray(points), 1, -1)
    return {
        "torchattacks": lambda: last(one(images, labels)),
        "foolbox": lambda: last(other.run(wrapped, images, labels, epsilon=EPS)),
        "ART": lambda: last(third.generate(images.numpy(), labels.numpy())),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--n", type=int, default=512)
    options = parser.parse_args()
    x, y = attacks_model.examples(options.n)
    runs = {**of_fulmen(x, y, options.steps), **of_others(x, y, options.steps)}
    system, times = attacks_model.classifier(), {name: [] for name in runs}
    left = {name: float(fm.evaluate(system, (run(), y))["accuracy"]) for name, run in runs.items()}
    for _ in range(options.rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    for name, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, times["fulmen"], strict=True))
        print(f"{name:20} {statistics.median(each) * 1e3:8.1f} ms  ratio {ratio:5.2f}  accuracy left {left[name]:.3f}")
