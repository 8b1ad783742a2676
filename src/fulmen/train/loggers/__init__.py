"""Loggers of a run: callbacks that write its metrics, pictures and settings."""

from fulmen.core.verbs import log
from fulmen.train.loggers.csv_file import CSV
from fulmen.train.loggers.json_lines import JSONLines
from fulmen.train.loggers.logger import Logger, SeriesLogger, write_record
from fulmen.train.loggers.mlflow_run import MLflow
from fulmen.train.loggers.project_loggers import Trackio, WandB
from fulmen.train.loggers.records import Histogram, Hyperparameters, Image, Record, Scalars, Text
from fulmen.train.loggers.tensorboard_files import TensorBoard

__all__ = [
    "CSV",
    "Histogram",
    "Hyperparameters",
    "Image",
    "JSONLines",
    "Logger",
    "MLflow",
    "Record",
    "Scalars",
    "SeriesLogger",
    "TensorBoard",
    "Text",
    "Trackio",
    "WandB",
    "log",
    "write_record",
]
