"""The public names of Fulmen, where each is defined, and its docstring."""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import pkgutil
import sys
from pathlib import Path
from typing import Any

import fulmen as fm
import fulmen.testing
from fulmen.dispatching.registry import Verb

ROOT = Path(fm.__file__).parents[2]  # of the repository

# The pages of the API, by the folders whose names they hold.
TOPICS = {
    "dispatching": "Dispatch",
    "core": "Components, batches and states",
    "models": "Models and layers",
    "objectives": "Objectives",
    "metric_types": "Metrics",
    "systems": "Systems",
    "compose": "Composition",
    "data": "Data",
    "augmentations": "Augmentations",
    "environments": "Environments",
    "schedules": "Schedules",
    "optimizers": "Optimizers",
    "train": "Training",
    "train.callbacks": "Callbacks",
    "train.loggers": "Loggers",
    "train.checkpoints": "Checkpoints",
    "devices": "Devices",
    "inspect": "Inspection",
    "interop": "Other libraries",
    "robust.attacks": "Attacks",
    "robust.defences": "Defences",
    "robust.certified": "Certificates",
    "robust.report": "Robustness reports",
    "testing": "Testing",
}


@dataclasses.dataclass(frozen=True)
class PublicName:
    """A public name.

    Attributes:
        path: as users write it, such as `fm.models.Dense`; the shortest, if there are several.
        value: what it names.
        others: its other paths.
    """

    path: str
    value: Any
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def topic(self) -> str:
        """The key of `TOPICS`: the innermost folder that the value is defined in."""
        home = getattr(self.value, "__module__", None) or f"fulmen.{self.path.removeprefix('fm.')}"
        folders = home.split(".")[1:]
        found = [".".join(folders[:n]) for n in (2, 1) if ".".join(folders[:n]) in TOPICS]
        if not found:
            raise LookupError(f"{self.path} is defined in {home}, for which TOPICS has no page.")
        return found[0]

    @property
    def doc(self) -> str:
        """Its own docstring; for a constant, the string after the assignment or its class's docstring."""
        if isinstance(self.value, type):
            written = self.value.__dict__.get("__doc__") or ""
            generated = written.startswith(f"{self.value.__name__}(")  # by `dataclasses`
            return "" if generated else inspect.cleandoc(written)
        own = _doc_of_constant(self.name, self.value)
        return inspect.cleandoc(own or getattr(self.value, "__doc__", None) or "")


def _doc_of_constant(name: str, value: Any) -> str:
    if inspect.isfunction(value) or isinstance(value, Verb):
        return ""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("fulmen.") and vars(module).get(name) is value:
            for first, second in _pairs(module.__file__):
                targets = getattr(first, "targets", [getattr(first, "target", None)])
                text = getattr(getattr(second, "value", None), "value", None)
                if any(getattr(target, "id", None) == name for target in targets) and isinstance(text, str):
                    return text
    return ""


@functools.cache
def _pairs(file: str) -> list[tuple[ast.stmt, ast.stmt]]:
    body = ast.parse(Path(file).read_text()).body
    return list(itertools.pairwise(body))


def all_modules() -> None:
    """Import every module, so that every method is registered; those of libraries that are not installed are left out."""
    for found in pkgutil.walk_packages(fm.__path__, "fulmen."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                if "fulmen" in str(error):
                    raise


def _paths(module: Any, path: str):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from _paths(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


@functools.cache
def public_names() -> list[PublicName]:
    """All public names except modules, each value once, by path."""
    paths: dict[int, list[str]] = {}
    values = {}
    for path, value in [*_paths(fm, "fm"), *_paths(fulmen.testing, "fm.testing")]:
        paths.setdefault(id(value), []).append(path)
        values[id(value)] = value
    found = []
    for key, value in values.items():
        first, *others = sorted(paths[key], key=lambda path: (path.count("."), len(path)))
        found.append(PublicName(first, value, tuple(others)))
    return sorted(found, key=lambda each: each.path.lower())


def place(function: Any) -> tuple[str, int] | None:
    """The file of a function or class, relative to the repository, and its line."""
    try:
        plain = inspect.unwrap(function)
        file, line = inspect.getsourcefile(plain), inspect.getsourcelines(plain)[1]
    except (TypeError, OSError):
        return None
    if file is None or not Path(file).is_relative_to(ROOT):
        return None
    return Path(file).relative_to(ROOT).as_posix(), max(line, 1)
