"""One of several processes with CPU devices for `test_processes.py`: `process_runs.py PORT PROCESS PROCESSES FOLDER WHAT`.

`preempted` is a run of which one process gets SIGTERM, `killed` resumes it and one process is killed, `resumed` resumes that one to
its end, and `whole` is the same run in one process, without an end between. The last two print what they found as JSON.
"""

import json
import os
import signal
import sys
import time
import warnings

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
)

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, on

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")

X, Y = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32), np.arange(40) % 8
EPOCHS = 12


class Rows:
    """Notes which rows of the data each step has on the devices of this process."""

    def __init__(self):
        self.seen = {}


@dispatch
def on(event: fm.StepEnd, callback: Rows, run):
    shown = {float(v) for part in run.batch[0].addressable_shards for v in np.asarray(part.data)[:, 0]}
    callback.seen[run.step] = sorted(i for i, v in enumerate(X[:, 0]) if float(v) in shown)


class End:
    """Sends a signal to the process 1 after the second step; while SIGTERM is under way, steps take longer."""

    def __init__(self, number):
        self.number, self.steps = number, 0


@dispatch
def on(event: fm.StepEnd, callback: End, run):
    callback.steps += 1
    if callback.steps == 2 and jax.process_index() == 1:
        os.kill(os.getpid(), callback.number)
    if callback.steps >= 2 and callback.number == signal.SIGTERM:
        time.sleep(0.5)


def train(folder, callbacks=(), resume=None):
    """The run, and its state and history."""
    system = fm.Classifier(fm.models.Chain(fm.models.Dropout(0.1), fm.models.Dense(16, 8)))
    options = {"optimizer": optax.adam, "lr": 1e-2, "devices": fm.FSDP(fm.mesh(), min_size=64)}
    listed = [*callbacks, fm.JSONLines(f"{folder}/log.jsonl"), fm.Checkpoint(f"{folder}/runs", every=fm.Every(steps=1))]
    return fm.fit(
        system,
        (X, Y),
        validation=(X[:21], Y[:21]),
        epochs=EPOCHS,
        batch_size=16,
        seed=3,
        callbacks=listed,
        resume=resume,
        **options,
    )


def found(state, history, rows):
    """What the processes compare."""
    evaluated = fm.evaluate(state, (X[:37], Y[:37]))
    return {
        "devices": jax.device_count(),
        "losses": [*history["loss"].tolist(), *history["validation/loss"].tolist()],
        "evaluated": evaluated["loss"],
        "accuracy": evaluated["accuracy"],
        "predicted": fm.predict(state, X[:37])[[0, 36]].ravel().tolist(),
        "rows": rows.seen,
    }


def differ(state):
    """The error of processes with other data."""
    n = 40 - jax.process_index()
    try:
        fm.fit(state, (X[:n], Y[:n]), epochs=1, batch_size=16, progress=False)
    except ValueError as error:
        return str(error)


def main(port, process, processes, folder, what):
    # The processes of later runs read the programs of the first.
    jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        patience = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 10 if what == "killed" else 100}
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process, **patience)
    rows = Rows()
    if what in ("preempted", "killed"):
        train(folder, [End(signal.SIGTERM if what == "preempted" else signal.SIGKILL)], f"{folder}/runs")
    elif what == "resumed":
        state, history = train(folder, [rows], f"{folder}/runs")
        fm.save(f"{folder}/state.safetensors", state)
        print(json.dumps({**found(state, history, rows), "differ": differ(state)}), flush=True)
    else:
        state, history = train(f"{folder}/whole", [rows])
        loaded = fm.load(f"{folder}/state.safetensors", like=state)
        resumed, again = train(f"{folder}/copy", [], f"{folder}/copy/runs")
        loaded, resumed = found(loaded, history, rows), found(resumed, again, rows)
        print(json.dumps([found(state, history, rows), loaded, resumed]), flush=True)
    if processes > 1:
        jax.distributed.shutdown()  # waits for the other process; a forked process runs no exit handlers that would do it


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
