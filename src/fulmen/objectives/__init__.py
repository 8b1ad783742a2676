"""Objectives: loss terms that add up, `CrossEntropy(smoothing=0.1) + 1e-4 * L2()`, and print as their formula."""

from fulmen.core import Prediction
from fulmen.objectives.algebra import Objective, Scaled, Scheduled, Sum
from fulmen.objectives.classification import KL, BinaryCrossEntropy, Brier, CrossEntropy, Hinge
from fulmen.objectives.margins import DLR, Margin, ProbabilityMargin
from fulmen.objectives.number_objectives import MAE, MSE, CosineDistance, Huber, InfoNCE, NTXent
from fulmen.objectives.penalties import L1, L2, kernels

__all__ = [
    "BinaryCrossEntropy", "Brier", "CosineDistance", "CrossEntropy", "DLR", "Hinge", "Huber", "InfoNCE", "KL", "L1",
    "L2", "MAE", "MSE", "Margin", "ProbabilityMargin", "NTXent", "Objective", "Prediction", "Scaled", "Scheduled",
    "Sum", "kernels",
]  # fmt: skip
