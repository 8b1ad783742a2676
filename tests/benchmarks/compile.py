"""The seconds and the programs from the start of a process to its first figure, without and with JAX's compilation cache.

    python tests/benchmarks/compile.py [--only fit …] [--others]

Each case runs in a process of its own: `fit` is setup and the first step of the README's convnet, `by hand` the same step in plain
JAX, the others are PGD with 40 steps in three norms and the standard AutoAttack on 64 digits, and `report` is `fm.robustness` by
PGD with 40 steps on 128 digits. The first process has an empty cache, the second one reads it; "again" is a second call in the
first process. The seconds of the processor, of all threads, do not depend on what else the machine does. With `--others`,
torchattacks' PGD in Linf and L2 and its AutoAttack, which need torch.

Two cores of an AMD EPYC, jax 0.10.2, seconds (of the processor) without and with the cache, and programs: `fit` 4.8 (6.5), 1.9, 38;
by hand 4.2 (5.9), 1.8, 26; `report` 27.7 (41.8), 6.8, 79, before attacks shared their small programs and single steps 34.9 (51.6),
10.0, 146. AutoAttack 16.0, 16.7, 17.2 (24.0, 24.7, 25.1), 9.1 to 9.6, 21; the commit before its attacks shared the clean pass and
small programs, between these runs, 33.8 and 35.0 (49.9 and 51.3), 13.0, 68. Its second call takes 4.7 to 5.1 (7.0 to 7.4).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

BENCHMARKS = Path(__file__).parent
sys.path.insert(0, str(BENCHMARKS.parent / "parity"))
sys.path.insert(0, str(BENCHMARKS))
N, EPS = 64, {"linf": 0.1, "l2": 1.0, "l1": 4.0}


def fit() -> float:
    import numpy as np
    import optax

    import fulmen as fm

    data = np.ones((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)
    system = fm.Classifier(fm.models.ConvNet(widths=(32, 64)))
    _, history = fm.fit(system, data, optimizer=optax.adam, lr=1e-3, steps=1, batch_size=64, progress=False)
    return history["loss"][0]


def by_hand() -> float:
    import fit as loops
    import numpy as np

    import fulmen as fm

    runner = loops.ByHand(fm.models.ConvNet(widths=(32, 64)), 64)
    runner.run(np.ones((64, 8, 8, 1), np.float32), np.zeros(64, np.int32), 1)
    return 0.0


def _attacked(norm: str, ensemble: bool = False) -> float:
    import attacks_model

    import fulmen as fm
    from fulmen.robust.attacks import L1Ball, L2Ball, autoattack

    ball = {"linf": fm.LinfBall, "l2": L2Ball, "l1": L1Ball}[norm](EPS[norm])
    region = ball & fm.Box(0, 1)
    attack = autoattack(region) if ensemble else fm.PGD(region, EPS[norm] / 10, 40)
    return float(fm.evaluate(attacks_model.classifier(), attacks_model.examples(N), attack=attack)["robust/accuracy"])


def report() -> float:
    import attacks_model

    import fulmen as fm

    attack = fm.PGD(fm.LinfBall(EPS["linf"]) & fm.Box(0, 1), EPS["linf"] / 10, 40)
    found = fm.robustness(attacks_model.classifier(), attacks_model.examples(2 * N), attack, progress=False)
    return found.robust_accuracy


def _torchattacked(make: Callable) -> float:
    import attacks_model
    import torch

    sys.modules |= dict.fromkeys(
        ("torchvision", "torchvision.transforms"), MagicMock()
    )  # it imports them, and needs neither
    import torchattacks

    model, (x, y) = attacks_model.torch_module(), attacks_model.examples(N)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long()
    return float((model(make(torchattacks, model)(images, labels)).argmax(1) == labels).float().mean())


CASES: dict[str, Callable[[], float]] = {
    "fit": fit,
    "by hand": by_hand,
    **{f"PGD {norm}": lambda norm=norm: _attacked(norm) for norm in EPS},
    "AutoAttack": lambda: _attacked("linf", ensemble=True),
    "report": report,
}
OTHERS: dict[str, Callable[[], float]] = {
    "torchattacks PGD linf": lambda: _torchattacked(
        lambda t, m: t.PGD(m, eps=EPS["linf"], alpha=EPS["linf"] / 10, steps=40)
    ),
    "torchattacks PGD l2": lambda: _torchattacked(lambda t, m: t.PGDL2(m, eps=EPS["l2"], alpha=EPS["l2"] / 10, steps=40)),
    "torchattacks AutoAttack": lambda: _torchattacked(lambda t, m: t.AutoAttack(m, norm="Linf", eps=EPS["linf"])),
}


def in_this_process(case: str) -> None:
    """Print the programs that a case compiles, the seconds and the processor's seconds of a second call, and the figure."""
    programs: list[str] = []
    if case in CASES:
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(lambda event, _, **__: programs.append(event))
    run = {**CASES, **OTHERS}[case]
    run()
    count, begun, used = len([e for e in programs if "backend_compile" in e]), time.perf_counter(), time.process_time()
    figure = run()
    print(count, time.perf_counter() - begun, time.process_time() - used, figure)


def seconds(case: str, cache: str) -> tuple[float, float, list[str]]:
    """The time and the processor's time that a process takes to the first figure, and what it prints."""
    cached = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    begun, used = time.perf_counter(), _processor_time()
    command = [sys.executable, "-W", "ignore", __file__, "--case", case]
    done = subprocess.run(command, env={**os.environ, **cached}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    printed = done.stdout.split()[-4:]
    again, used_again = map(float, printed[1:3])
    return time.perf_counter() - begun - again, _processor_time() - used - used_again, printed


def _processor_time() -> float:
    """Of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=[*CASES, *OTHERS])
    parser.add_argument("--others", action="store_true")
    given = parser.parse_args()
    if given.case:
        in_this_process(given.case)
        return
    for case in given.only or [*CASES, *(OTHERS if given.others else ())]:
        with tempfile.TemporaryDirectory() as cache:
            first, used, (programs, again, used_again, figure) = seconds(case, cache)
            cached, used_cached, _ = seconds(case, cache)
        print(
            f"{case:26} {first:7.2f} s ({used:6.2f} s of the processor), {programs:>4} programs, with the cache {cached:7.2f} s "
            f"({used_cached:6.2f} s), again {float(again):6.2f} s ({float(used_again):6.2f} s)   figure {figure}",
            flush=True,
        )


if __name__ == "__main__":
    main()
