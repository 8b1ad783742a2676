"""`Predictions`: logs the outputs for some examples at an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fulmen.core.verbs import due, on, predict
from fulmen.dispatching.registry import dispatch
from fulmen.train.events import Due
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import write_record
from fulmen.train.loggers.records import Record, Text


class Predictions:
    """A callback that computes the outputs for some examples at an interval, and gives them to the run's loggers.

    Args:
        examples: inputs, or data as for `fm.predict`.
        every: the interval.
        record: makes the record from the step's number and the outputs, NumPy arrays `(n, …)`, such as `lambda step, y:
            fm.loggers.Image(step, "samples", y)`. None makes a `Text` of the numbers.

    Attributes:
        outputs: the newest outputs.
        step: the number of the step that they were computed after.

    >>> shown = fm.callbacks.Predictions(jnp.ones((2, 4)))
    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> system = fm.Classifier(fm.models.Dense(4, 3))
    >>> state, _ = fm.fit(system, data, optimizer=optax.sgd, lr=0.1, epochs=2, callbacks=[shown], progress=False)
    >>> shown.step, shown.outputs.shape
    (2, (2, 3))
    """

    def __init__(
        self, examples: Any, every: Every = Every(epochs=1), record: Callable[[int, Any], Record] | None = None
    ) -> None:
        self.examples, self.every, self.record = examples, every, record or _as_text
        self.outputs: Any = None
        self.step: int | None = None


def _as_text(step: int, outputs: Any) -> Text:
    return Text(step, "predictions", np.array2string(np.asarray(outputs), precision=4, threshold=1000))


@dispatch
def due(callback: Predictions):
    return callback.every


@dispatch
def on(event: Due, callback: Predictions, run):
    callback.outputs, callback.step = predict(run.arrays(), callback.examples), run.step
    write_record(run, callback.record(run.step, callback.outputs))
