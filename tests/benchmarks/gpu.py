"""One table of what Fulmen does on a GPU, beside the same written by hand; at most 8 minutes.

    python tests/benchmarks/gpu.py [--quick] [--minutes 8] [--only gpt resnet mlp population attacks] [--out FOLDER]

It needs `jax[cuda]`, optax and plum. Rows: GPT-2 with 124 million parameters on 1024 tokens and ResNet-18 on CIFAR's shapes, both in
bfloat16; a small MLP step by step, and with `fuse`, K steps in one program;
populations of 1, 8 and 32; PGD with 40 steps and AutoAttack, beside torchattacks where it and torch are installed. What is written by
hand is in `models.py`. MFU is the share of the device's peak in bfloat16, by 6 operations per parameter and token and 12 · layers ·
features · length per token. Idle is the share of the time in which no kernel runs, from a trace of JAX's profiler.

`--quick` runs a few steps of small sizes, on any device, as a test of this script: its figures mean nothing. The table is printed,
and written as `gpu.md` and `gpu.json` with `--out`, after each part, so that an error or the end of the time loses only what
follows.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
sys.path.insert(0, str(Path(__file__).parent))
import attacks_model
import fit
import models
from gpu_table import Row, as_text, idle, markdown, per_second, write

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "V100": 125e12}
"""Operations per second in bfloat16 (float16 for V100), without sparsity."""


def in_bfloat16(loss: Any) -> Any:
    """A loss by hand whose parameters and inputs are rounded to bfloat16, with float32 for its own sums."""

    def rounded(parameters: Any, still: Any, batch: Any) -> Any:
        lower = lambda v: v.astype(jnp.bfloat16) if jnp.issubdtype(v.dtype, jnp.floating) else v
        return loss(jax.tree.map(lower, parameters), still, jax.tree.map(lower, batch))

    return rounded


# The parts of the table


def gpt(quick: bool) -> Iterator[Row]:
    sizes = {"vocabulary": 50257, "length": 1024, "features": 768, "heads": 12, "layers": 12}
    batch_size, steps, rounds = 16, 12, 3
    if quick:
        sizes, batch_size, steps, rounds = dict(vocabulary=64, length=16, features=32, heads=2, layers=2), 4, 2, 1
    model = fm.models.Transformer(**sizes, unroll=not quick, vocabulary_multiple=128)
    data = (
        np.random.default_rng(0)
        .integers(0, sizes["vocabulary"], (batch_size * steps, sizes["length"] + 1))
        .astype(np.int32),
    )
    ours = models.ByFit(fm.MixedPrecision(fm.LanguageModel(model)), data, batch_size)
    parameters = models.gpt_parameters(ours.state.system.system.model)
    count = sum(v.size for v in jax.tree.leaves(parameters)) - parameters["positions"].size
    operations = 6 * count + 12 * sizes["layers"] * sizes["features"] * sizes["length"]
    cudnn = "cudnn" if jax.default_backend() == "gpu" else None
    loss = in_bfloat16(functools.partial(models.gpt_loss, sizes["heads"], attention=cudnn))
    hand = models.ByHand(loss, parameters, {}, batch_size)
    runs = [lambda: ours.run(data) and ours.state, lambda: hand.run(data)]
    found = per_second(runs, data[0][:, 1:].size, rounds)
    peak = next((v for name, v in PEAKS.items() if name in jax.devices()[0].device_kind), None)
    share = [] if peak is None else [f"MFU {100 * v * operations / peak:.1f} %" for v in found]
    idles = [f"idle {100 * v:.1f} %" for run in runs if (v := idle(run)) is not None]
    notes = [f"{count / 1e6:.1f}M parameters", *map(" and ".join, filter(None, (share, idles)))]
    yield Row(f"GPT-2, T={sizes['length']}, batch {batch_size}", "tokens/s", *found, notes=", ".join(notes))


def resnet(quick: bool) -> Iterator[Row]:
    batch_size, steps, rounds = (2, 2, 1) if quick else (512, 20, 5)
    rng, n = np.random.default_rng(0), batch_size * steps
    data = rng.normal(size=(n, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)
    ours = models.ByFit(fm.MixedPrecision(fm.Classifier(fm.models.resnet18(10, stem="cifar"))), data, batch_size)
    hand = models.ByHand(
        in_bfloat16(models.resnet_loss), *models.resnet_parameters(ours.state.system.system.model), batch_size
    )
    found = per_second([lambda: ours.run(data) and ours.state, lambda: hand.run(data)], n, rounds)
    yield Row(f"ResNet-18, 32×32, batch {batch_size}", "images/s", *found)


def mlp(quick: bool) -> Iterator[Row]:
    """A small MLP: `fit` beside the loop by hand, then groups of steps beside `fit`."""
    batch_size, steps, rounds = (32, 32, 1) if quick else (32, 1600, 7)
    rng = np.random.default_rng(0)
    data = rng.random((batch_size * steps, 64), np.float32), rng.integers(0, 10, batch_size * steps).astype(np.int32)
    by_hand = fit.ByHand(fm.models.MLP(64, 128, 10), batch_size)
    by_fit = fit.ByFit(fm.models.MLP(64, 128, 10), batch_size, *data)
    runs = [lambda: by_fit.run(*data, 1), lambda: by_hand.run(*data, 1)]
    single = per_second(runs, steps, rounds)
    yield Row("MLP 64-128-10, step by step", "steps/s", *single)
    for fuse in (4,) if quick else (4, 8, 16, "auto"):
        found = per_second([lambda fuse=fuse: by_fit.run(*data, 1, fuse=fuse)], steps, rounds)
        yield Row(f"MLP, fuse={fuse}", "steps/s", *found, single[0], "fuse=None")


def population(quick: bool) -> Iterator[Row]:
    batch_size, steps, rounds = (32, 16, 1) if quick else (32, 400, 5)
    rng = np.random.default_rng(0)
    data = rng.random((batch_size * steps, 64), np.float32), rng.integers(0, 10, batch_size * steps).astype(np.int32)
    alone = None
    for n in (1, 2) if quick else (1, 8, 32):
        system = fm.Population(fm.Classifier(fm.models.MLP(64, 128, 10)), n)
        run = models.ByFit(system, data, batch_size)
        (found,) = per_second([lambda run=run: run.run(data) and run.state], n * steps, rounds)
        alone = alone or found
        yield Row(f"Population of {n}", "member steps/s", found, alone if n > 1 else None, "one member")


def attacks(quick: bool) -> Iterator[Row]:
    n, steps, rounds = (16, 2, 1) if quick else (512, 40, 5)
    x, y = attacks_model.examples(n)
    system, key, region = attacks_model.classifier(), jax.random.key(0), fm.LinfBall(0.1) & fm.Box(0, 1)
    pgd = fm.PGD(region, 0.01, steps)
    others, note = _torchattacks(x, y, steps)
    runs = [lambda: fm.perturb(pgd, system, (x, y), key).x]
    found = per_second([*runs, *others[:1]], n, rounds)
    yield Row(f"PGD-{steps}, {n} digits", "images/s", *found, beside="torchattacks", notes=note)
    if quick:
        return
    from fulmen.robust.attacks import attempt, autoattack

    attack, batch = autoattack(region), fm.Labeled(x[:128], y[:128], index=np.arange(128, dtype=np.int32))
    begun = time.perf_counter()
    run = lambda: np.asarray(attempt(attack, system, batch, key).succeeded)
    run()
    first = f"the first call takes {time.perf_counter() - begun:.1f} s"
    found = per_second([run, *others[1:]], 128, 2)
    yield Row(
        "AutoAttack, 128 digits", "images/s", *found, beside="torchattacks", notes=", ".join([first, *[note] * bool(note)])
    )


def _torchattacks(x: np.ndarray, y: np.ndarray, steps: int) -> tuple[list[Callable[[], Any]], str]:
    """The same PGD, and AutoAttack with all steps of the standard, by torchattacks; or none, and why."""
    try:
        import torch
        import torchattacks
    except ImportError as error:
        return [], f"{error.name} is not installed"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = attacks_model.torch_module().to(device)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous().to(device), torch.tensor(y).long().to(device)
    one = torchattacks.PGD(model, eps=0.1, alpha=0.01, steps=steps, random_start=True)
    options = dict(norm="Linf", eps=0.1, seed=0, n_restarts=1)
    full = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, loss="ce", steps=100, **options),
            torchattacks.APGDT(model, steps=100, **options),
            torchattacks.FAB(model, multi_targeted=True, steps=100, **options),
            torchattacks.Square(model, n_queries=5000, **options),
        ]
    )
    to_host = lambda points: points.cpu().numpy()
    return [lambda: to_host(one(images, labels)), lambda: to_host(full(images[:128], labels[:128]))], f"torch on {device}"


PARTS = {each.__name__: each for each in (gpt, resnet, mlp, population, attacks)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:  # read when JAX is used for the first time
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    begun, rows, failed = time.monotonic(), [], False
    device = jax.devices()[0].device_kind
    title = f"{device}, jax {jax.__version__}, optax {optax.__version__}, fulmen {fm.__version__}{', quick' * given.quick}"
    for name in given.only:
        if time.monotonic() - begun > 60 * given.minutes - 90 and not given.quick:
            rows.append(Row(name, "", None, notes="left out: the time is over"))
            continue
        try:
            for row in PARTS[name](given.quick):
                rows.append(row)
                print(f"{time.monotonic() - begun:6.0f} s  {row.name}: {as_text(row.ours)} {row.unit}", flush=True)
        except Exception as error:  # the other parts are still measured
            failed = True
            traceback.print_exc()
            rows.append(Row(name, "", None, notes=f"failed: {type(error).__name__}"))
        write(rows, title, given.out)
        gc.collect()
    print(f"\n{markdown(rows, title)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
