"""Suggestions for names that do not exist."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import optax

# Names in other libraries whose counterpart has a different name.
_COUNTERPARTS = {
    "AUROC": "a custom metric: subclass fm.Metric and write `metrics(metric, prediction)`",
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
_SYNONYMS = {"criterion": "objective", "learning_rate": "lr", "loss": "objective", "loss_fn": "objective", "module": "model"}


def unknown_name(name: str, package: Any) -> str:
    """The message for a name that a package does not have.

    Args:
        name: the name.
        package: the package; names in its `__all__` may be namespaces.
    """
    found = {**_public_names(package, "fm"), "testing": "fm.testing"}
    short = name.removesuffix("Loss").removesuffix("Score")
    known = found.get(name) or _COUNTERPARTS.get(name) or found.get(short)
    if known is None and callable(getattr(optax, name.lower(), None)):
        known = f"optax.{name.lower()}"
    if known is None and (near := nearest(name, found)):
        known = found[near]
    return f"module {package.__name__!r} has no attribute {name!r}; " + (
        f"use {known}." if known else "dir(fm) lists its names."
    )


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
