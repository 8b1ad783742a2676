"""`MLflow`: a run of MLflow."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fulmen.core.verbs import log, run_state
from fulmen.dispatching.lazy_libraries import installed
from fulmen.dispatching.registry import dispatch
from fulmen.train.every_interval import Every
from fulmen.train.loggers.logger import SeriesLogger
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Scalars, Text, image_bytes

_LONGEST = 6000  # characters of a parameter


class MLflow(SeriesLogger):
    """A logger that writes to MLflow, by default to a SQLite database: `pip install "fulmen[mlflow]"`.

    Args:
        experiment: the name of the experiment; it is created if it does not exist.
        uri: the tracking server or database.
        every: when to log within epochs, such as `fm.Every(steps=50)`; None is never.
        name: the name of the run; None lets MLflow choose one.
        artifacts: where a new experiment keeps images and texts; None is MLflow's default.

    Raises:
        ImportError: if mlflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "fulmen",
        uri: str = "sqlite:///mlflow.db",
        every: Every | None = None,
        name: str | None = None,
        artifacts: str | None = None,
    ) -> None:
        super().__init__(every)
        self.library = installed("mlflow", "Logs for mlflow", "mlflow")
        self.experiment, self.uri, self.name, self.artifacts = experiment, uri, name, artifacts
        self.client: Any = None
        self.run_id = ""

    def open(self, step: int, saved: Any) -> None:
        self.client = self.library.MlflowClient(self.uri)
        if saved is None:
            found = self.client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else self.client.create_experiment(self.experiment, self.artifacts)
            self.run_id = self.client.create_run(number, run_name=self.name).info.run_id
        else:
            self.run_id = saved["run_id"]
            self.client.update_run(self.run_id, status="RUNNING")
        names = self.client.get_run(self.run_id).data.metrics
        history = {name: self.client.get_metric_history(self.run_id, name) for name in names}
        self.newest = {name: max(each.step for each in values) for name, values in history.items()}

    def close(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run_id)


@dispatch
def run_state(callback: MLflow):
    return {"run_id": callback.run_id} if callback.run_id else None


@dispatch
def log(logger: MLflow, record: Scalars):
    metric, now = logger.library.entities.Metric, int(time.time() * 1000)
    numbers = logger.new_numbers(record).items()
    logger.client.log_batch(logger.run_id, [metric(name, value, now, record.step) for name, value in numbers])


@dispatch
def log(logger: MLflow, record: Hyperparameters):
    params = [logger.library.entities.Param(name, str(value)[:_LONGEST]) for name, value in record.value.items()]
    logger.client.log_batch(logger.run_id, params=params)


@dispatch
def log(logger: MLflow, record: Text):
    logger.client.log_text(logger.run_id, record.value, f"{record.name}-{record.step}.txt")


@dispatch
def log(logger: MLflow, record: Image):
    logger.client.log_image(logger.run_id, image_bytes(record.value), f"{record.name}-{record.step}.png")


@dispatch
def log(logger: MLflow, record: Histogram):
    counts, edges = np.histogram(np.asarray(record.value))
    content = {"counts": counts.tolist(), "edges": edges.tolist()}
    logger.client.log_dict(logger.run_id, content, f"{record.name}-{record.step}.json")
