"""One of several processes with CPU devices for `test_processes.py`: `process_runs.py PORT PROCESS PROCESSES FOLDER [WHAT]`.

It trains, evaluates, predicts and saves under a policy, and prints what it found as JSON.
"""

import json
import os
import sys
import warnings

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, on

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")

X, Y = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32), np.arange(40) % 8


class Rows:
    """Notes which rows of the data each step has on the devices of this process."""

    def __init__(self):
        self.seen = []


@dispatch
def on(event: fm.StepEnd, callback: Rows, run):
    shown = {float(v) for part in run.batch[0].addressable_shards for v in np.asarray(part.data)[:, 0]}
    callback.seen.append(sorted(i for i, v in enumerate(X[:, 0]) if float(v) in shown))


class Die:
    """Ends a process in the midst of a run, as the operating system does."""


@dispatch
def on(event: fm.StepEnd, callback: Die, run):
    if run.done == 2 and jax.process_index() == 1:
        os._exit(9)


def main(port, process, processes, folder, what):
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        patience = {"initialization_timeout": 120, "heartbeat_timeout_seconds": 10 if what == "die" else 100}
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, **patience)
    system = fm.Classifier(fm.models.MLP(16, 32, 8, dropout=0.1))
    options = {"optimizer": optax.adam, "lr": 1e-2, "devices": fm.FSDP(fm.mesh(), min_size=64)}
    reading = {"epochs": 2, "batch_size": 16}
    state = fm.setup(system, (X, Y), **reading, **options)
    if what == "die":
        fm.fit(state, (X, Y), epochs=1000, callbacks=[Die()], progress=False)
    if what == "differ":
        n, found = 40 - process, ""
        try:
            fm.fit(state, (X[:n], Y[:n]), epochs=1, batch_size=16, progress=False)
        except ValueError as error:
            found = str(error)
        print(json.dumps({"error": found}), flush=True)
        return
    rows = Rows()
    state, history = fm.fit(state, (X, Y), seed=3, callbacks=[rows], validation=(X[:21], Y[:21]), **reading)
    path = f"{folder}/{processes}.safetensors"
    fm.save(path, state)
    loaded = fm.load(f"{folder}/2.safetensors", like=fm.setup(system, (X, Y), **reading, **options))
    data = X[:37], Y[:37]
    found = {
        "devices": jax.device_count(),
        "losses": [*history["loss"].tolist(), *history["validation/loss"].tolist()],
        "evaluated": [fm.evaluate(state, data)["loss"], fm.evaluate(loaded, data)["loss"]],
        "accuracy": [fm.evaluate(state, data)["accuracy"], fm.evaluate(loaded, data)["accuracy"]],
        "predicted": fm.predict(state, X[:37])[[0, 36]].ravel().tolist(),
        "rows": rows.seen,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4], [*sys.argv[5:], ""][0])
