"""Fulmen: composable systems of models, trained in JAX by verbs that dispatch on types."""

__version__ = "0.1.0"

from fulmen import models
from fulmen.attacks.attack import FGSM, PGD, Attack, Clean, Start, Uniform, fgsm, start_point
from fulmen.attacks.function import adversarial
from fulmen.attacks.region import Ball, Box, Intersection, LinfBall, Region
from fulmen.augmentations import Augmentation, Augmentations, CutMix, Cutout, Flip, Mixup, Noise, ShiftCrop
from fulmen.batch import Attacked, Batch, Labeled, Unlabeled
from fulmen.check import check
from fulmen.component import Buffer, Component, Frozen, Game, Model, Parameter, System, Wrapper, record
from fulmen.data import split
from fulmen.dispatch import AmbiguousMethodError, Method, MissingMethodError, Verb, dispatch, verb, verbs
from fulmen.leaves import Leaf, components, count_parameters, leaves
from fulmen.looking.explanation import explain
from fulmen.looking.lossnodes import loss_tree
from fulmen.looking.table import summary
from fulmen.mergeable import Last, Mean, Mergeable
from fulmen.metrics.accuracy import Accuracy, TopK
from fulmen.metrics.calibration import CalibrationError, Perplexity
from fulmen.metrics.counts import F1, ConfusionMatrix, Precision, Recall
from fulmen.metrics.metric import Metric
from fulmen.metrics.regression import R2, RMSE, MeanAbsoluteError
from fulmen.mode import Eval, Mode, Plan, Train
from fulmen.objectives.algebra import Objective, Scaled, Scheduled, Sum
from fulmen.objectives.classification import KL, BinaryCrossEntropy, CrossEntropy, Hinge
from fulmen.objectives.penalties import L1, L2, kernels
from fulmen.objectives.regression import MAE, MSE, Huber
from fulmen.optimizers import Optimizer, frozen
from fulmen.prediction import Prediction
from fulmen.schedules.plateau import plateau
from fulmen.schedules.schedule import Schedule
from fulmen.schedules.shapes import cosine, linear, one_cycle, step_decay, warmup
from fulmen.systems.adversarial import Adversarial
from fulmen.systems.classifier import Classifier, Supervised
from fulmen.systems.regressor import Regressor
from fulmen.train.checkpoint import load, save
from fulmen.train.events import (
    EpochEnd,
    EpochStart,
    Event,
    FitEnd,
    FitStart,
    Interrupted,
    Logs,
    LogsRead,
    Run,
    StepEnd,
    ValidationEnd,
)
from fulmen.train.history import History
from fulmen.train.state import State
from fulmen.train.step import apply_gradients, differentiate
from fulmen.tree import Tree, get, hyper, replace, static
from fulmen.verbs import (
    after_update,
    as_batch,
    augment,
    batches,
    bind,
    configure_optimizers,
    eval_step,
    evaluate,
    fit,
    forward,
    init,
    loss,
    losses,
    metrics,
    on,
    partition,
    perturb,
    plot,
    predict,
    project,
    reduce_losses,
    setup,
    steps,
    train_step,
    transformation,
    update,
    validate,
)

__all__ = [
    "Accuracy",
    "Adversarial",
    "AmbiguousMethodError",
    "Attack",
    "Attacked",
    "Augmentation",
    "Augmentations",
    "Ball",
    "Batch",
    "BinaryCrossEntropy",
    "Box",
    "Buffer",
    "CalibrationError",
    "Classifier",
    "Clean",
    "Component",
    "ConfusionMatrix",
    "CrossEntropy",
    "CutMix",
    "Cutout",
    "EpochEnd",
    "EpochStart",
    "Eval",
    "Event",
    "F1",
    "FGSM",
    "FitEnd",
    "FitStart",
    "Flip",
    "Frozen",
    "Game",
    "Hinge",
    "History",
    "Huber",
    "Interrupted",
    "Intersection",
    "KL",
    "L1",
    "L2",
    "Labeled",
    "Last",
    "Leaf",
    "LinfBall",
    "Logs",
    "LogsRead",
    "MAE",
    "MSE",
    "Mean",
    "MeanAbsoluteError",
    "Mergeable",
    "Method",
    "Metric",
    "MissingMethodError",
    "Mixup",
    "Mode",
    "Model",
    "Noise",
    "Objective",
    "Optimizer",
    "PGD",
    "Parameter",
    "Perplexity",
    "Plan",
    "Precision",
    "Prediction",
    "R2",
    "RMSE",
    "Recall",
    "Region",
    "Regressor",
    "Run",
    "Scaled",
    "Schedule",
    "Scheduled",
    "ShiftCrop",
    "Start",
    "State",
    "StepEnd",
    "Sum",
    "Supervised",
    "System",
    "TopK",
    "Train",
    "Tree",
    "Uniform",
    "Unlabeled",
    "ValidationEnd",
    "Verb",
    "Wrapper",
    "adversarial",
    "after_update",
    "apply_gradients",
    "as_batch",
    "augment",
    "batches",
    "bind",
    "check",
    "components",
    "configure_optimizers",
    "cosine",
    "count_parameters",
    "differentiate",
    "dispatch",
    "eval_step",
    "evaluate",
    "explain",
    "fgsm",
    "fit",
    "forward",
    "frozen",
    "get",
    "hyper",
    "init",
    "kernels",
    "leaves",
    "linear",
    "load",
    "loss",
    "loss_tree",
    "losses",
    "metrics",
    "models",
    "on",
    "one_cycle",
    "partition",
    "perturb",
    "plateau",
    "plot",
    "predict",
    "project",
    "record",
    "reduce_losses",
    "replace",
    "save",
    "setup",
    "split",
    "start_point",
    "static",
    "step_decay",
    "steps",
    "summary",
    "train_step",
    "transformation",
    "update",
    "validate",
    "verb",
    "verbs",
    "warmup",
]
