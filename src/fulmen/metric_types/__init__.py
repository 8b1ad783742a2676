"""Metrics: mergeable values, so that an epoch's are exact. `fm.metrics` is the verb that computes them."""

from fulmen.core.mergeable import Last, Mean, Mergeable, Spread
from fulmen.metric_types.calibration import BitsPerCharacter, CalibrationError, Perplexity
from fulmen.metric_types.classification_metrics import F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from fulmen.metric_types.external_metric import External
from fulmen.metric_types.metric import Metric
from fulmen.metric_types.ranking_metrics import AUROC, AveragePrecision
from fulmen.metric_types.regression_metrics import R2, RMSE, MeanAbsoluteError

__all__ = [
    "AUROC", "Accuracy", "AveragePrecision", "BitsPerCharacter", "CalibrationError", "ConfusionMatrix", "External",
    "F1", "Last", "Mean", "MeanAbsoluteError", "Mergeable", "Metric", "Perplexity", "Precision", "R2", "RMSE", "Recall",
    "Spread", "TopK",
]  # fmt: skip
