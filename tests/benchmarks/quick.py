"""`fm.quick` against `fm.autoattack` on digits: robust accuracies and times on nets of several trainings.

    python tests/benchmarks/quick.py [--n 256] [--eps 0.1] [--epochs 20] [--rounds 2] [--nets plain masked]

Trains small nets: plain, by FGSM, PGD and TRADES, a plain one whose gradient is masked (its input is rounded to eighths), and one
of Flax NNX if that is installed. Prints for each net the clean accuracy, the robust accuracy under both ensembles, the examples
that one breaks and the other does not, and the median times without compiling.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks import attempt

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import attacks_model


class Rounded(fm.Model):
    """A model of an input that is rounded to eighths."""

    inner: fm.Model


@dispatch
def forward(model: Rounded, x, mode):
    return fm.forward(model.inner, jnp.round(x * 8) / 8, mode)


def nnx_net() -> Any:
    """A perceptron of Flax NNX."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.one, self.two = nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.two(jax.nn.relu(self.one(x.reshape(len(x), -1))))

    return fm.Classifier(Net(nnx.Rngs(0)), metrics=(fm.Accuracy(),))


def systems(region: Any) -> dict[str, Any]:
    """The systems to train, by name."""
    plain = attacks_model.described()
    pgd = fm.PGD(region, step_size=0.025, steps=7)
    found = {
        "plain": plain,
        "FGSM": fm.Adversarial(plain, fm.FGSM(region)),
        "PGD-7": fm.Adversarial(plain, pgd),
        "TRADES": fm.TRADES(plain, pgd),
    }
    try:
        found["NNX"] = nnx_net()
    except ImportError:
        print("flax is not installed: no NNX net")
    return found


def classifier_of(system: Any) -> Any:
    return system if isinstance(system, fm.Classifier) else system.system


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--nets", nargs="+", default=["plain", "FGSM", "PGD-7", "TRADES", "NNX", "masked"])
    options = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = (images[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    y = labels[order].astype(np.int32)
    train, test = (x[512:], y[512:]), (x[: options.n], y[: options.n])
    region, key = fm.LinfBall(options.eps) & fm.Box(0, 1), jax.random.key(0)
    batch = fm.Labeled(*test, index=np.arange(options.n, dtype=np.int32))
    trained = {}
    for name, system in systems(region).items():
        if name not in options.nets and not (name == "plain" and "masked" in options.nets):
            continue
        settings = dict(optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=options.epochs, batch_size=64, progress=False)
        trained[name] = classifier_of(fm.fit(system, train, **settings)[0].system)
    if "masked" in options.nets:
        trained["masked"] = fm.replace(trained["plain"], model=Rounded(trained["plain"].model))
    print(
        f"{'net':8}{'clean':>7}{'quick':>8}{'autoattack':>12}{'only quick':>12}{'only auto':>11}{'s':>8}{'s':>8}{'ratio':>7}"
    )
    for name, system in ((name, trained[name]) for name in options.nets if name in trained):
        broken, times = {}, {}
        for round_number in range(options.rounds + 1):  # the first compiles
            for kind, make in (("quick", fm.quick), ("auto", fm.autoattack)):
                begun = time.perf_counter()
                broken[kind] = np.asarray(attempt(make(region), system, batch, key).succeeded)
                if round_number:
                    times.setdefault(kind, []).append(time.perf_counter() - begun)
        clean = fm.evaluate(system, test)["accuracy"]
        quick, auto = broken["quick"], broken["auto"]
        seconds = {kind: statistics.median(each) for kind, each in times.items()}
        print(
            f"{name:8}{clean:7.3f}{1 - quick.mean():8.3f}{1 - auto.mean():12.3f}{int((quick & ~auto).sum()):12}"
            f"{int((auto & ~quick).sum()):11}{seconds['quick']:8.2f}{seconds['auto']:8.2f}"
            f"{seconds['quick'] / seconds['auto']:7.2f}",
            flush=True,
        )
