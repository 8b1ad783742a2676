"""Suggestions for names that do not exist."""

import difflib
import functools
import inspect
from collections.abc import Iterable
from typing import Any

import jax
import optax

# Names in other libraries whose counterpart has a different name.
_COUNTERPARTS = {
    "AUC": "fm.metric_types.AUROC",
    "BCELoss": "fm.BinaryCrossEntropy, whose outputs are logits: without a sigmoid",
    "BCEWithLogitsLoss": "fm.BinaryCrossEntropy",
    "Conv2d": "fm.models.Conv",
    "Conv2D": "fm.models.Conv",
    "CSVLogger": "fm.CSV",
    "DataLoader": "the arrays themselves, as in fm.fit(system, (x, y)), or fm.batches",
    "L1Loss": "fm.MAE",
    "LightningModule": "fm.System",
    "Linear": "fm.models.Dense",
    "ModelCheckpoint": "fm.Checkpoint",
    "Module": "fm.Model",
    "ReduceLROnPlateau": "fm.ReduceOnPlateau, or fm.plateau",
    "ROCAUC": "fm.metric_types.AUROC",
    "Sequential": "fm.models.Chain",
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
_SYNONYMS = {
    "criterion": "objective",
    "loss": "objective",
    "loss_fn": "objective",
    "module": "model",
    "learning_rate": "lr",
    "label_smoothing": "smoothing",
    "p": "rate",
    "pos_weight": "positive_weight",
    "weight": "class_weights",
}


def unknown_name(name: str, package: Any) -> str:
    """The message for a name that a package does not have.

    Args:
        name: the name.
        package: the package; names in its `__all__` may be namespaces.
    """
    found = {**_public_names(package, "fm"), "testing": "fm.testing"}
    short = name.removesuffix("Loss").removesuffix("Score")
    known = found.get(name) or _COUNTERPARTS.get(name) or found.get(short)
    for library in (optax, jax.nn):
        if known is None and callable(getattr(library, name.lower(), None)):
            known = f"{library.__name__}.{name.lower()}"
    if known is None and (near := nearest(name, found)):
        known = found[near]
    return f"module {package.__name__!r} has no attribute {name!r}; " + (
        f"use {known}." if known else "dir(fm) lists its names."
    )


def public_path(package: Any, kind: type) -> str:
    """The path of a class of a package as users write it, such as `fm.models.MLP`; empty for any other class.

    Args:
        package: as in `unknown_name`.
        kind: the class.
    """
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


def unknown_keyword(cls: type, unknown: str, names: Iterable[str]) -> str:
    """The message for an unknown keyword of a class.

    Args:
        cls: the class.
        unknown: the keyword.
        names: the keywords of the class.
    """
    names = list(names)
    synonym = _SYNONYMS.get(unknown)
    near = synonym if synonym in names else nearest(unknown, names)
    hint = f"; use {near}=…" if near else ""
    return f"{cls.__name__} has no field {unknown!r}{hint}. Its fields are: {', '.join(names) or 'none'}."


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, regardless of case, or None."""
    lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return lower[near[0]] if near else None
