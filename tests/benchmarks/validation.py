"""The share of validation in the Python time of warm calls, and how often they trace the model.

    python tests/benchmarks/validation.py [--calls 20]

Each verb is called on the README's classifier and digits, twice before it is measured. The time of the main thread is counted under a
profiler that sees every Python call, as cProfile does; validation is what is spent below a function of `CHECKS`. A trace is a call of the
model's `forward`: a compiled program calls no Python.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen import dispatch

CHECKS = {"check_attack", "check_component", "check_shared_arrays", "require_arrays", "validate"}
traces = 0


class Net(fm.Model):
    hidden: fm.models.Dense
    drop: fm.models.Dropout
    out: fm.models.Dense


@dispatch
def forward(net: Net, x: Any) -> Any:
    global traces
    traces += 1
    return net.out(net.drop(jax.nn.relu(net.hidden(x))))


def share_of_checks(call: Callable[[], Any], calls: int) -> float:
    """The share of the time of some calls that is spent in validation."""
    depth, begun, spent = 0, 0.0, 0.0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal depth, begun, spent
        if event in ("call", "return") and frame.f_code.co_name in CHECKS and "fulmen" in frame.f_code.co_filename:
            if event == "call":
                begun = begun if depth else time.thread_time()
                depth += 1
            else:
                depth -= 1
                spent += 0 if depth else time.thread_time() - begun

    start = time.thread_time()
    sys.setprofile(profile)
    try:
        for _ in range(calls):
            call()
    finally:
        sys.setprofile(None)
    return spent / (time.thread_time() - start)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=20)
    calls = options.parse_args().calls
    x, y = load_digits(return_X_y=True)
    (x, y), test = fm.split(((x / 16).astype(np.float32), y), 0.8, seed=0)
    net = Net(fm.models.Dense(64, 128), fm.models.Dropout(0.1), fm.models.Dense(128, 10))
    system = fm.Classifier(net, fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.objectives.L2(), metrics=(fm.Accuracy(),))
    attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.02, steps=5)
    adam = optax.adam(1e-3)
    state = fm.setup(system, (x, y), optimizer=adam)
    batch, key = fm.Labeled(x[:32], y[:32]), jax.random.key(0)
    verbs = {
        "setup": lambda: fm.setup(system, (x, y), optimizer=adam),
        "fit(component)": lambda: fm.fit(system, (x, y), optimizer=adam, epochs=1, progress=False),
        "fit(state)": lambda: fm.fit(state, (x, y), epochs=1, progress=False),
        "evaluate": lambda: fm.evaluate(state, test),
        "evaluate, attack": lambda: fm.evaluate(state, test, attack=attack),
        "predict": lambda: fm.predict(state, test),
        "perturb": lambda: fm.perturb(attack, state, batch, key),
    }
    print(f"{'warm call':18}{'ms':>8}{'validation':>12}{'traces':>8}")
    for name, call in verbs.items():
        call()
        call()
        before, begun = traces, time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - begun) / calls
        each = (traces - before) / calls
        print(f"{name:18}{1e3 * seconds:8.1f}{share_of_checks(call, calls):12.1%}{each:8.1f}")


if __name__ == "__main__":
    main()
