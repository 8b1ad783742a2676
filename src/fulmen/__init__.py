"""Fulmen: composable systems of models, trained in JAX by verbs that dispatch on types."""

__version__ = "0.1.0"

from fulmen import data, environments, models
from fulmen.augmentations.augmentations import Augmentation, Augmentations, CutMix, Cutout, Flip, Mixup, Noise, ShiftCrop
from fulmen.compose.defence import Defence, defence_losses
from fulmen.compose.per_member import PerMember
from fulmen.compose.population import Population
from fulmen.compose.supervised import Classifier, Supervised
from fulmen.core import marks
from fulmen.core.batch import Attacked, Batch, Labeled, PartBatches, Unlabeled
from fulmen.core.component import Buffer, Component, Frozen, Game, Model, Parameter, System, Wrapper, record
from fulmen.core.leaves import Leaf, components, count_parameters, leaves
from fulmen.core.mergeable import Last, Mean, Mergeable, Spread
from fulmen.core.mode import Eval, Mode, Plan, Train
from fulmen.core.prediction import Prediction
from fulmen.core.state import State
from fulmen.core.tree import Tree, get, hyper, replace, static
from fulmen.core.verbs import (
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
    intervals,
    layer_order,
    loss,
    losses,
    metrics,
    on,
    partition,
    perturb,
    plot,
    predict,
    predictions,
    project,
    reduce_losses,
    setup,
    steps,
    steps_per_epoch,
    train_step,
    transformation,
    update,
    validate,
)
from fulmen.data import split
from fulmen.data.mixed import Mixed
from fulmen.dispatching.registry import AmbiguousMethodError, Method, MissingMethodError, Verb, dispatch, verb, verbs
from fulmen.inspect.explanation import explain
from fulmen.inspect.loss_nodes import loss_tree
from fulmen.inspect.preflight import check
from fulmen.inspect.table import summary
from fulmen.interop.functional import Functional, functional
from fulmen.interop.linen import Linen
from fulmen.metric_types.accuracy import Accuracy, TopK
from fulmen.metric_types.calibration import BitsPerCharacter, CalibrationError, Perplexity
from fulmen.metric_types.counts import F1, ConfusionMatrix, Precision, Recall
from fulmen.metric_types.metric import Metric
from fulmen.metric_types.regression_metrics import R2, RMSE, MeanAbsoluteError
from fulmen.objectives.algebra import Objective, Scaled, Scheduled, Sum
from fulmen.objectives.classification import KL, BinaryCrossEntropy, Brier, CrossEntropy, Hinge
from fulmen.objectives.contrastive import CosineDistance, InfoNCE, NTXent
from fulmen.objectives.margins import DLR, Margin
from fulmen.objectives.penalties import L1, L2, kernels
from fulmen.objectives.regression_losses import MAE, MSE, Huber
from fulmen.optimizers import Optimizer, depths, every, frozen, layerwise, unfreeze
from fulmen.optimizers.plateau import plateau
from fulmen.robust import attacks
from fulmen.robust import report as evidence
from fulmen.robust.attacks.adversarial_function import adversarial
from fulmen.robust.attacks.apgd import APGD, Boundary
from fulmen.robust.attacks.attack import FGSM, PGD, Attack, Clean, Start, Uniform, start_point
from fulmen.robust.attacks.autoattack import autoattack
from fulmen.robust.attacks.balls import fgm, fgsm, slide
from fulmen.robust.attacks.carlini_wagner import CarliniWagner
from fulmen.robust.attacks.deepfool import DeepFool
from fulmen.robust.attacks.ensemble import WorstOf
from fulmen.robust.attacks.fab import FAB
from fulmen.robust.attacks.input_transform import Diverse, Nesterov, View
from fulmen.robust.attacks.iterated import BIM, DIFGSM, MIFGSM, NIFGSM, RFGSM, SLIDE, TIFGSM, RandomSign
from fulmen.robust.attacks.minimal import MinimalNorm
from fulmen.robust.attacks.region import Ball, Box, Intersection, L1Ball, L2Ball, LinfBall, Region
from fulmen.robust.attacks.square import Square
from fulmen.robust.attacks.targets import LikelyTarget, PredictedLabel, Target, Targeting, TrueLabel
from fulmen.robust.defences import (
    AWP,
    MART,
    NFGSM,
    SAM,
    TRADES,
    VAT,
    FreeAdversarial,
    Gaussian,
    GradAlign,
    OverfittingGuard,
    WorseWeights,
    ascent,
    fast_fgsm,
)
from fulmen.robust.defences.adversarial import Adversarial, AttackSchedule, AttackTrained
from fulmen.robust.report import Report, robustness
from fulmen.schedules.schedule import Schedule
from fulmen.schedules.shapes import cosine, linear, one_cycle, step_decay, warmup
from fulmen.systems.actor_critic import ActorCritic, Rollout
from fulmen.systems.alternating import Alternating
from fulmen.systems.clip import CLIP
from fulmen.systems.distillation import Distillation
from fulmen.systems.ema import EMA
from fulmen.systems.gan import GAN, NonSaturating, Wasserstein, gan_losses
from fulmen.systems.language import LanguageModel, Tokens
from fulmen.systems.mean_teacher import MeanTeacher
from fulmen.systems.multi_task import MultiTask
from fulmen.systems.regressor import Regressor
from fulmen.systems.self_supervised import BYOL, SelfSupervised, embeddings
from fulmen.systems.semi_supervised import SemiSupervised
from fulmen.systems.vae import VAE, sample
from fulmen.systems.vqvae import VQVAE, CodeUsage
from fulmen.systems.weighted import Uncertainty, Weighted, weigh
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
from fulmen.train.folds import CrossValidation, cross_validate
from fulmen.train.history import History
from fulmen.train.members import best, members
from fulmen.train.step import apply_gradients, differentiate

__all__ = [
    "APGD",
    "AWP",
    "Accuracy",
    "ActorCritic",
    "Adversarial",
    "Alternating",
    "AmbiguousMethodError",
    "Attack",
    "AttackSchedule",
    "AttackTrained",
    "Attacked",
    "Augmentation",
    "Augmentations",
    "BIM",
    "BYOL",
    "Ball",
    "Batch",
    "BinaryCrossEntropy",
    "BitsPerCharacter",
    "Boundary",
    "Box",
    "Brier",
    "Buffer",
    "CLIP",
    "CalibrationError",
    "CarliniWagner",
    "Classifier",
    "Clean",
    "CodeUsage",
    "Component",
    "ConfusionMatrix",
    "CosineDistance",
    "CrossEntropy",
    "CrossValidation",
    "CutMix",
    "Cutout",
    "DIFGSM",
    "DLR",
    "DeepFool",
    "Defence",
    "Distillation",
    "Diverse",
    "EMA",
    "EpochEnd",
    "EpochStart",
    "Eval",
    "Event",
    "F1",
    "FAB",
    "FGSM",
    "FitEnd",
    "FitStart",
    "Flip",
    "FreeAdversarial",
    "Frozen",
    "Functional",
    "GAN",
    "Game",
    "Gaussian",
    "GradAlign",
    "Hinge",
    "History",
    "Huber",
    "InfoNCE",
    "Interrupted",
    "Intersection",
    "KL",
    "L1",
    "L1Ball",
    "L2",
    "L2Ball",
    "Labeled",
    "LanguageModel",
    "Last",
    "Leaf",
    "LikelyTarget",
    "Linen",
    "LinfBall",
    "Logs",
    "LogsRead",
    "MAE",
    "MART",
    "MIFGSM",
    "MSE",
    "Margin",
    "Mean",
    "MeanAbsoluteError",
    "MeanTeacher",
    "Mergeable",
    "Method",
    "Metric",
    "MinimalNorm",
    "MissingMethodError",
    "Mixed",
    "Mixup",
    "Mode",
    "Model",
    "MultiTask",
    "NFGSM",
    "NIFGSM",
    "NTXent",
    "Nesterov",
    "Noise",
    "NonSaturating",
    "Objective",
    "Optimizer",
    "OverfittingGuard",
    "PGD",
    "Parameter",
    "PartBatches",
    "PerMember",
    "Perplexity",
    "Plan",
    "Population",
    "Precision",
    "PredictedLabel",
    "Prediction",
    "R2",
    "RFGSM",
    "RMSE",
    "RandomSign",
    "Recall",
    "Region",
    "Regressor",
    "Report",
    "Rollout",
    "Run",
    "SAM",
    "SLIDE",
    "Scaled",
    "Schedule",
    "Scheduled",
    "SelfSupervised",
    "SemiSupervised",
    "ShiftCrop",
    "Spread",
    "Square",
    "Start",
    "State",
    "StepEnd",
    "Sum",
    "Supervised",
    "System",
    "TIFGSM",
    "TRADES",
    "Target",
    "Targeting",
    "Tokens",
    "TopK",
    "Train",
    "Tree",
    "TrueLabel",
    "Uncertainty",
    "Uniform",
    "Unlabeled",
    "VAE",
    "VAT",
    "VQVAE",
    "ValidationEnd",
    "Verb",
    "View",
    "Wasserstein",
    "Weighted",
    "WorseWeights",
    "WorstOf",
    "Wrapper",
    "adversarial",
    "after_update",
    "apply_gradients",
    "as_batch",
    "ascent",
    "attacks",
    "augment",
    "autoattack",
    "batches",
    "best",
    "bind",
    "check",
    "components",
    "configure_optimizers",
    "cosine",
    "count_parameters",
    "cross_validate",
    "data",
    "defence_losses",
    "depths",
    "differentiate",
    "dispatch",
    "embeddings",
    "environments",
    "eval_step",
    "evaluate",
    "every",
    "evidence",
    "explain",
    "fast_fgsm",
    "fgm",
    "fgsm",
    "fit",
    "forward",
    "frozen",
    "functional",
    "gan_losses",
    "get",
    "hyper",
    "init",
    "intervals",
    "kernels",
    "layer_order",
    "layerwise",
    "leaves",
    "linear",
    "load",
    "loss",
    "loss_tree",
    "losses",
    "marks",
    "members",
    "metrics",
    "models",
    "on",
    "one_cycle",
    "partition",
    "perturb",
    "plateau",
    "plot",
    "predict",
    "predictions",
    "project",
    "record",
    "reduce_losses",
    "replace",
    "robustness",
    "sample",
    "save",
    "setup",
    "slide",
    "split",
    "start_point",
    "static",
    "step_decay",
    "steps",
    "steps_per_epoch",
    "summary",
    "train_step",
    "transformation",
    "unfreeze",
    "update",
    "validate",
    "verb",
    "verbs",
    "warmup",
    "weigh",
]


def __getattr__(name: str):
    """`fm.testing` is loaded when it is first used."""
    if name == "testing":
        import importlib

        return importlib.import_module("fulmen.testing")
    raise AttributeError(f"module 'fulmen' has no attribute {name!r}")
