"""Fulmen: composable systems of models, trained in JAX by verbs that dispatch on types.

Here is what most programs use; more of a kind is in `fm.attacks`, `fm.augmentations`, `fm.data`, `fm.defences`,
`fm.devices`, `fm.environments`, `fm.metric_types`, `fm.models`, `fm.objectives`, `fm.optimizers`, `fm.robust`, `fm.schedules`,
`fm.systems`, `fm.tune` and `fm.testing`.
"""

import functools
import importlib
import sys
from types import ModuleType

from fulmen import (
    augmentations,
    data,
    devices,
    environments,
    metric_types,
    models,
    objectives,
    optimizers,
    robust,
    schedules,
    systems,
)
from fulmen.core import advice as _advice  # what errors say in addition
from fulmen.core import component_methods as _component_methods  # registers methods for all components
from fulmen.core import limits as _limits  # registers the checks of fields with `validate`
from fulmen.core import marks
from fulmen.core.batch import Batch, Labeled, Unlabeled
from fulmen.core.component import Buffer, Component, Frozen, Game, Model, Parameter, System, Wrapper, record
from fulmen.core.fields import hyper, static
from fulmen.core.leaves import count_parameters, leaves
from fulmen.core.mergeable import Mean
from fulmen.core.mode import Eval, Mode, Plan, Train
from fulmen.core.prediction import Prediction
from fulmen.core.rebuild import rebuild
from fulmen.core.state import State
from fulmen.core.suggestions import public_path as _public_path
from fulmen.core.suggestions import unknown_name
from fulmen.core.tree import get, replace
from fulmen.core.verbs import (
    after_update,
    as_batch,
    augment,
    batches,
    bind,
    certify,
    configure_optimizers,
    eval_step,
    evaluate,
    fit,
    forward,
    init,
    intervals,
    layer_order,
    log,
    loss,
    losses,
    metrics,
    model_inputs,
    on,
    partition,
    perturb,
    plot,
    predict,
    predictions,
    reduce_losses,
    robustness,
    run_epoch,
    sample,
    setup,
    show,
    steps,
    steps_per_epoch,
    summary,
    train_step,
    update,
    validate,
)
from fulmen.core.version import __version__
from fulmen.data import split
from fulmen.devices import FSDP, Replicated, TensorParallel, mesh
from fulmen.dispatching import hooks as _hooks
from fulmen.dispatching.errors import AmbiguousMethodError, MissingMethodError
from fulmen.dispatching.registry import dispatch, verb, verbs
from fulmen.inspect import check, explain, loss_tree
from fulmen.interop.functional import Linen, functional
from fulmen.metric_types import F1, Accuracy, Metric, Precision, Recall
from fulmen.models import Normalized, Remat
from fulmen.objectives import L1, L2, MAE, MSE, BinaryCrossEntropy, CrossEntropy, Objective
from fulmen.optimizers import frozen, plateau, unfreeze
from fulmen.robust import attacks, defences
from fulmen.robust.attacks import FGSM, PGD, Attack, Box, L1Ball, L2Ball, LinfBall, WorstOf, autoattack, quick
from fulmen.robust.certified import IBP, Interval, Smoothed
from fulmen.robust.defences import TRADES, Adversarial
from fulmen.robust.report import Report
from fulmen.schedules import cosine, one_cycle, warmup
from fulmen.systems import (
    EMA,
    GAN,
    VAE,
    Averaged,
    Classifier,
    Distillation,
    LanguageModel,
    MixedPrecision,
    MultiTask,
    Population,
    Regressor,
    Weighted,
)
from fulmen.train import (
    Due,
    EpochEnd,
    EpochStart,
    Every,
    FitEnd,
    FitStart,
    History,
    Interrupted,
    Phase,
    StepEnd,
    Stopped,
    Training,
    Validation,
    ValidationEnd,
    apply_gradients,
    callbacks,
    cross_validate,
    differentiate,
    loggers,
    tune,
)
from fulmen.train.callbacks import (
    EarlyStopping,
    GradientNorms,
    NaNGuard,
    Printer,
    Profiler,
    ReduceOnPlateau,
    Throughput,
    TimeLimit,
)
from fulmen.train.checkpoints import Best, Checkpoint, Latest, OrbaxStore, checkpoints, load, restore, save
from fulmen.train.loggers import CSV, JSONLines, MLflow, TensorBoard, Trackio, WandB
from fulmen.train.members import best_member, members

_hooks.spelled = functools.partial(_public_path, sys.modules[__name__])

# Import paths that are shorter than the folders': `from fulmen.attacks import PGD`.
sys.modules |= {f"fulmen.{name}": globals()[name] for name in ("attacks", "callbacks", "defences", "loggers", "tune")}

__all__ = [
    "Accuracy", "Adversarial", "AmbiguousMethodError", "Attack", "Averaged", "Batch", "Best", "BinaryCrossEntropy", "Box",
    "Buffer", "Checkpoint", "CSV", "Classifier", "Component", "CrossEntropy", "Distillation", "Due", "EMA", "EarlyStopping",
    "EpochEnd", "EpochStart", "Eval", "Every", "F1", "FGSM", "FSDP", "FitEnd", "FitStart", "Frozen", "GAN", "Game",
    "GradientNorms", "History", "IBP", "Interrupted", "Interval", "JSONLines", "L1", "L1Ball", "L2", "L2Ball", "Labeled",
    "LanguageModel", "Latest", "Linen", "LinfBall", "MAE", "MLflow", "MSE", "Mean", "Metric", "MissingMethodError",
    "MixedPrecision", "Mode", "Model", "MultiTask", "NaNGuard", "Normalized", "Objective", "OrbaxStore", "PGD", "Parameter",
    "Phase", "Plan", "Population", "Precision", "Prediction", "Printer", "Profiler", "Recall", "ReduceOnPlateau",
    "Regressor", "Remat", "Replicated", "Report", "Smoothed", "State", "StepEnd", "Stopped", "System", "TRADES",
    "TensorBoard", "TensorParallel", "Throughput", "TimeLimit", "Trackio", "Train", "Training", "Unlabeled", "VAE",
    "Validation", "ValidationEnd", "WandB", "Weighted", "WorstOf", "Wrapper", "after_update", "apply_gradients", "as_batch",
    "attacks", "augment", "augmentations", "autoattack", "batches", "best_member", "bind", "callbacks", "certify", "check",
    "checkpoints", "configure_optimizers", "cosine", "count_parameters", "cross_validate", "data", "defences", "devices",
    "differentiate", "dispatch", "environments", "eval_step", "evaluate", "explain", "fit", "forward", "frozen",
    "functional", "get", "hyper", "init", "intervals", "layer_order", "leaves", "load", "log", "loggers", "loss",
    "loss_tree", "losses", "marks", "members", "mesh", "metric_types", "metrics", "model_inputs", "models", "objectives",
    "on", "one_cycle", "optimizers", "partition", "perturb", "plateau", "plot", "predict", "predictions", "quick", "rebuild",
    "record", "reduce_losses", "replace", "restore", "robust", "robustness", "run_epoch", "sample", "save", "schedules",
    "setup", "show", "split", "static", "steps", "steps_per_epoch", "summary", "systems", "train_step", "tune", "unfreeze",
    "update", "validate", "verb", "verbs", "warmup",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "testing"]


def _unknown(space: ModuleType, path: str, name: str):
    """Raise for a name that a namespace does not have, with what to use instead."""
    raise AttributeError(_message(name, path), name=name, obj=space)


def _message(name: str, path: str = "") -> str:
    """The message for a name that a namespace does not have; it is short for those that Python and its tools look for."""
    if name.startswith("__"):
        return f"module {f'{__name__}.{path}'.rstrip('.')!r} has no attribute {name!r}"
    return unknown_name(name, sys.modules[__name__], path)


def _list_public_names(package: ModuleType, path: str = "") -> None:
    """Let `dir` and completion list the public names of a package and of the namespaces in it, and no modules.

    An unknown name of a namespace gets the error of the package.
    """
    for name in package.__all__:
        if isinstance(space := getattr(package, name), ModuleType):
            space.__dir__ = functools.partial(sorted, space.__all__)  # type: ignore[method-assign]
            space.__getattr__ = functools.partial(_unknown, space, f"{path}{name}")  # type: ignore[method-assign]
            _list_public_names(space, f"{path}{name}.")


_list_public_names(sys.modules[__name__])


def __getattr__(name: str):
    """`fm.testing` is loaded when it is first used; the error for any other name says what to use instead."""
    if name == "testing":
        return importlib.import_module("fulmen.testing")
    raise AttributeError(_message(name), name=name, obj=sys.modules[__name__])
