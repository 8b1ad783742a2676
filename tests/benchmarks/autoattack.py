"""The standard AutoAttack at full budgets against torchattacks' and the authors': the same weights and threads, in one process.

    python tests/benchmarks/autoattack.py [--rounds 3] [--n 128] [--eps 0.1]

It needs torch, torchattacks and pyautoattack (the authors' code as a package) besides Fulmen. What torchattacks calls AutoAttack
takes 10 steps of APGD and of FAB; "all steps" is the same of its attacks with the 100 of the standard. Prints the robust accuracy and
the median time of each, the median over rounds of its ratio to Fulmen's, and of Fulmen's its first run, which compiles, and what
its counted passes would take: those of each attack times the examples that it meets, times the time that a pass takes, of all the
examples and of as many as the attacks have left.
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
import jax.numpy as jnp
import numpy as np

import fulmen as fm
from fulmen.robust.attacks import APGD, Square, attempt, autoattack
from fulmen.robust.attacks.boundary_attacks import FAB

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import attacks_model

THREADS = 2


def of_others(x: np.ndarray, y: np.ndarray, eps: float) -> dict[str, Callable[[], Any]]:
    """From what they are called to functions that give the images that they attacked."""
    import torch
    import torchattacks
    from pyautoattack import AutoAttack

    torch.set_num_threads(THREADS)
    model = attacks_model.torch_module()
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long()
    one = torchattacks.AutoAttack(model, norm="Linf", eps=eps, seed=0)
    options = dict(norm="Linf", eps=eps, seed=0, n_restarts=1)
    full = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, loss="ce", steps=100, **options),
            torchattacks.APGDT(model, steps=100, **options),
            torchattacks.FAB(model, multi_targeted=True, steps=100, **options),
            torchattacks.Square(model, n_queries=5000, **options),
        ]
    )
    other = AutoAttack(model, norm="Linf", eps=eps, seed=0, device="cpu")
    left = lambda attacked: int((model(attacked).argmax(1) == labels).sum())
    return {
        "torchattacks": lambda: left(one(images, labels)),
        "all steps": lambda: left(full(images, labels)),
        "authors": lambda: left(other.run_standard_evaluation(images, labels, batch_size=len(x))[0]),
    }


def forward_time(system: Any, x: np.ndarray) -> float:
    """The seconds of a forward pass for one example in this batch."""
    forward, images = jax.jit(lambda system, x: system.model(x)), jnp.asarray(x)
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        jax.block_until_ready(forward(system, images))
        times.append(time.perf_counter() - begun)
    return statistics.median(times) / len(x)


def counted(attack: Any, system: Any, batch: Any, key: Any) -> tuple[int, str]:
    """The passes, of one example each, of an ensemble: a gradient with respect to the input counts as one more."""
    left, total, lines = np.arange(len(batch.x)), 0, []
    for number, member in enumerate(attack.attacks):
        found = attempt(member, system, batch[left], jax.random.fold_in(key, number))
        steps = np.where(np.asarray(found.succeeded), np.asarray(found.first), member.length)
        total += int(steps.sum()) * {APGD: 2, FAB: 3, Square: 1}[type(member)]
        left = left[~np.asarray(found.succeeded)]
        lines.append(f"{type(member).__name__} {len(left)}")
    return total, ", ".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--eps", type=float, default=0.1)
    options = parser.parse_args()
    x, y = attacks_model.examples(options.n)
    system, key, attack = attacks_model.classifier(), jax.random.key(0), autoattack(fm.LinfBall(options.eps) & fm.Box(0, 1))
    batch = fm.Labeled(x, y, index=np.arange(options.n, dtype=np.int32))
    own = lambda: int((~np.asarray(attempt(attack, system, batch, key).succeeded)).sum())
    begun = time.perf_counter()
    own()
    print(f"fulmen, compiling   {time.perf_counter() - begun:7.2f} s")
    runs, times, passes = {"fulmen": own, **of_others(x, y, options.eps)}, {}, {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            left = run()
            times.setdefault(name, []).append((time.perf_counter() - begun, left))
        for n in (len(x), times["fulmen"][0][1]):
            passes.setdefault(n, []).append(forward_time(system, x[:n]))
    for name, each in times.items():
        seconds = [time for time, _ in each]
        ratio = statistics.median(time / own for time, (own, _) in zip(seconds, times["fulmen"], strict=True))
        print(
            f"{name:20}{statistics.median(seconds):7.2f} s  from {min(seconds):.2f} to {max(seconds):.2f}  ratio {ratio:.2f}  "
            f"left {each[0][1]}"
        )
    count, lines = counted(attack, system, batch, key)
    print(f"{count} passes ({lines})")
    for n, each in passes.items():
        pass_time = statistics.median(each)
        ratio = statistics.median(own / (count * one) for (own, _), one in zip(times["fulmen"], each, strict=True))
        print(
            f"  of {pass_time * 1e6:.2f} us in a batch of {n}: {count * pass_time:.2f} s, of which fulmen takes {ratio:.2f}"
        )
