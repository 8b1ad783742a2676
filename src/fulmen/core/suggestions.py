"""Suggestions for names that do not exist."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import optax

P = ParamSpec("P")
R = TypeVar("R")

# Names in other libraries whose counterpart has a different name.
_COUNTERPARTS = {
    "AUC": "fm.metric_types.AUROC",
    "BCELoss": "fm.BinaryCrossEntropy, whose outputs are logits: without a sigmoid",
    "BCEWithLogitsLoss": "fm.BinaryCrossEntropy",
    "Callback": "any class, with a method of `on` such as `def on(event: fm.EpochEnd, callback: Mine, run)`",
    "Conv2d": "fm.models.Conv",
    "Conv2D": "fm.models.Conv",
    "CSVLogger": "fm.CSV",
    "DQN": "fm.System with a method of `losses`, as in examples/dqn.py",
    "DataLoader": "the arrays themselves, as in fm.fit(system, (x, y)), or fm.batches",
    "L1Loss": "fm.MAE",
    "LightningModule": "fm.Model, with a method of `loss`, or fm.System for several models",
    "Linear": "fm.models.Dense",
    "ModelCheckpoint": "fm.Checkpoint",
    "Module": "fm.Model",
    "ReduceLROnPlateau": "fm.ReduceOnPlateau, or fm.plateau",
    "ROCAUC": "fm.metric_types.AUROC",
    "Sequential": "fm.models.Chain",
    "SimCLR": "fm.systems.SelfSupervised",
    "Step": "fm.StepEnd",
    "TensorBoardLogger": "fm.TensorBoard",
    "TerminateOnNaN": "fm.NaNGuard",
    "Trainer": "fm.fit",
    "WandbLogger": "fm.WandB",
    "evidence": "fm.robust.report",
    "layers": "fm.models",
    "nn": "fm.models",
    "optim": "optax, as in fm.fit(…, optimizer=optax.adam, lr=1e-3)",
}
# Keywords in other libraries, and those with the same meaning here, perhaps with a value: the first that exists is suggested.
_BEST = 'keep=fm.Best("validation/loss")'
_BOX = "region=fm.LinfBall(0.1) & fm.Box(0, 1)"
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    # of systems, objectives and models
    **dict.fromkeys(("criterion", "loss", "loss_fn"), ("objective",)),
    **dict.fromkeys(("module", "net", "network"), ("model",)),
    "label_smoothing": ("smoothing",),
    "p": ("rate",),
    "pos_weight": ("positive_weight",),
    "weight": ("class_weights",),
    # of attacks and regions
    **dict.fromkeys(("eps", "epsilon", "radius", "max_norm"), ("eps", "epsilon", "region=fm.LinfBall(0.1)")),
    **dict.fromkeys(("norm", "ball", "ord"), ("region=fm.LinfBall(0.1)",)),
    **dict.fromkeys(("clip_min", "clip_max", "bounds", "clip_values"), (_BOX,)),
    **dict.fromkeys(("alpha", "eps_iter", "eps_step", "abs_stepsize", "rel_stepsize", "stepsize"), ("step_size",)),
    **dict.fromkeys(("num_steps", "n_steps", "iters", "num_iter", "n_iter", "nb_iter", "max_iter", "iterations"), ("steps",)),
    **dict.fromkeys(("random_start", "rand_init"), ("start",)),
    **dict.fromkeys(("n_restarts", "num_restarts", "num_random_init"), ("restarts",)),
    "targeted": ("target",),
    # of callbacks
    "monitor": ("metric", _BEST),
    **dict.fromkeys(("save_top_k", "save_best_only"), (_BEST,)),
    **dict.fromkeys(("save_last", "max_to_keep", "save_total_limit"), ("keep=fm.Latest(1)",)),
    **dict.fromkeys(("dirpath", "filepath", "path", "output_dir"), ("directory",)),
    **dict.fromkeys(("every_n_epochs", "save_freq"), ("every=fm.Every(epochs=1)",)),
    **dict.fromkeys(("every_n_train_steps", "save_steps"), ("every=fm.Every(steps=500)",)),
    "restore_best_weights": ("restore_best",),
    "threshold": ("min_delta",),
    "min_lr": ("floor",),
    # of schedules and optimizers
    "learning_rate": ("lr", "peak"),
    **dict.fromkeys(("lr", "max_lr", "init_value", "peak_value"), ("peak",)),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "warmup_epochs", "warmup_ratio"), ("warmup", "steps")),
    **dict.fromkeys(("eta_min", "end_value"), ("end",)),
    **dict.fromkeys(("milestones", "boundaries"), ("at",)),
    **dict.fromkeys(("gamma", "decay_rate"), ("factor",)),
    "pct_start": ("rise",),
}  # fmt: skip


def unknown_name(name: str, package: Any, space: str = "") -> str:
    """The message for a name that a package, or a namespace `space` in it, does not have. Its `__all__` may have namespaces."""
    found = {**_public_names(package, "fm"), "testing": "fm.testing"}
    short = name.removesuffix("Loss").removesuffix("Score")
    known = found.get(name) or _COUNTERPARTS.get(name) or found.get(short)
    for library in (optax, jax.nn):
        if known is None and callable(getattr(library, name.lower(), None)):
            known = f"{library.__name__}.{name.lower()}"
    if known is None and (near := nearest(name, found)):
        known = found[near]
    path = f"fm.{space}".rstrip(".")
    where = f"{package.__name__}.{space}".rstrip(".")
    return f"module {where!r} has no attribute {name!r}; " + (f"use {known}." if known else f"dir({path}) lists its names.")


def public_path(package: Any, kind: type) -> str:
    """The path of a class of a package as users write it, such as `fm.models.MLP`; empty for any other class."""
    path = _public_names(package, "fm").get(kind.__name__, "")
    found = functools.reduce(lambda value, name: getattr(value, name, None), path.split(".")[1:], package)
    return path if found is kind else ""


def _public_names(package: Any, path: str) -> dict[str, str]:
    """The paths of the public names of a package and of the namespaces in it; the first path wins."""
    found = {name: f"{path}.{name}" for name in package.__all__}
    for name in package.__all__:
        if inspect.ismodule(inside := getattr(package, name)):
            found = {**_public_names(inside, f"{path}.{name}"), **found}
    return found


def unknown_keyword(who: str, unknown: str, names: Iterable[str], given: Collection[str] = (), what: str = "field") -> str:
    """The message for an unknown keyword of `who`, a class or function, whose keywords are `names` and are called `what`.

    Arguments that were `given` are not suggested.
    """
    names = list(names)
    free = [name for name in names if name not in given]
    meant = {written: written.partition("=")[0] for written in _SYNONYMS.get(unknown, ())}
    near = next((written for written, name in meant.items() if name in free), None) or nearest(unknown, free)
    part_of = next((written for written, name in meant.items() if "=" in written and name in names), None)
    hint = f"; use {near if '=' in near else f'{near}=…'}" if near else f"; it belongs to {part_of}" if part_of else ""
    return f"{who} has no {what} {unknown!r}{hint}. Its {what}s are: {', '.join(names) or 'none'}."


def suggesting(function: Callable[P, R], what: str = "argument") -> Callable[P, R]:
    """A function or an `__init__` whose error for an unknown keyword suggests one that it has; `what` its keywords are called."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        except TypeError:
            _require_parameters(function, len(args), options, what)
            raise

    return call


def _require_parameters(function: Callable[..., Any], by_position: int, options: Iterable[str], what: str) -> None:
    """Raise for a keyword that a function does not have; `by_position` is the number of arguments that were given by position."""
    parameters = [*inspect.signature(function).parameters.values()]
    unknown = next((name for name in options if name not in {p.name for p in parameters}), None)
    if unknown is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    given = {*options, *(p.name for p in parameters[:by_position])}
    names = [f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name for p in parameters if p.name != "self"]
    who = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    raise TypeError(unknown_keyword(who, unknown, names, given, what)) from None


_SURELY_NEAR = 0.76  # just above the similarity of `eps` and `steps`


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, regardless of case, or None."""
    lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=_SURELY_NEAR)
    return lower[near[0]] if near else None
