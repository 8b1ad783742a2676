"""`Printer`: prints the metrics of a run in plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fulmen.core.verbs import due, on
from fulmen.devices.processes import is_first
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import Due, LogReader
from fulmen.train.every_interval import Every
from fulmen.train.history import find_metric
from fulmen.train.progress import line


class Printer(LogReader):
    """A callback that prints a line with the metrics after each epoch, and at an interval.

    Args:
        every: when to print within epochs, such as `fm.Every(steps=100)`; None is never.
        metrics: the names of the metrics to print; None is all single numbers but the entries of the loss.
        file: where to print; None is the standard output.

    >>> printer = fm.Printer(metrics=["loss"])
    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> system = fm.Classifier(fm.models.Dense(4, 3, weight=jnp.zeros((4, 3)), bias=jnp.zeros(3)))
    >>> state, _ = fm.fit(system, data, optimizer=optax.sgd, lr=0.1, epochs=2, callbacks=[printer], progress=False)
    epoch 1  step 1  loss 1.099
    epoch 2  step 2  loss 0.7944
    """

    def __init__(self, every: Every | None = None, metrics: Sequence[str] | None = None, file: Any = None) -> None:
        self.every, self.metrics, self.file = every, metrics, file


@dispatch
def due(callback: Printer):
    return Every(epochs=1) if callback.every is None else callback.every | Every(epochs=1)


@dispatch
def on(event: Due, callback: Printer, run):
    logs = run.logs
    if callback.metrics is not None and event.by == "epochs":
        logs = {name: find_metric(logs, name, "Printer") for name in callback.metrics}
    elif callback.metrics is not None:  # some metrics are logged only after epochs
        logs = {name: logs[name] for name in callback.metrics if name in logs}
    if is_first():
        print(f"epoch {run.epoch + 1}  step {run.step}  {line(logs)}", file=callback.file, flush=True)
