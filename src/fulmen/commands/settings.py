"""`--set path=value` and `--config FILE.toml`: other values of a system's fields."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fulmen as fm
from fulmen.commands.one_line_errors import CommandError
from fulmen.core import by_path, short
from fulmen.core.verbs import restore_run_state, run_state

_BOOLEANS = {"true": True, "false": False}


class Settings(fm.callbacks.Saver):
    """The values that were set on the command line, by path; a checkpoint keeps them, and a run is resumed with the same."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {path: _plain(value) for path, value in values.items()}


@fm.dispatch
def on(event: fm.FitStart, settings: Settings, run):
    return None


@fm.dispatch
def run_state(settings: Settings):
    return {"set": settings.values}


@fm.dispatch
def restore_run_state(settings: Settings, saved):
    if saved["set"] != settings.values:
        given = ", ".join(f"{path}={value}" for path, value in saved["set"].items()) or "nothing"
        raise CommandError(f"the run that is resumed was started with --set {given}; set the same.")


def read_settings(pairs: list[str], config: Path | None) -> dict[str, Any]:
    """The values by path: those of the file, then those of the pairs."""
    values = {} if config is None else _toml(config)
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise CommandError(f"--set must be path=value, such as --set model.rate=0.1, got {pair}.")
        values[path] = text
    return values


def with_settings(system: Any, values: Mapping[str, Any]) -> Any:
    """The system with the values, each of the type of the value that it replaces."""
    for path, value in values.items():
        try:
            before = fm.get(system, path)
        except KeyError as error:
            raise CommandError(f"--set {path}: {error.args[0]}") from None
        system = fm.replace(system, {path: _typed(path, value, before)})
    return system


def _typed(path: str, value: Any, before: Any) -> Any:
    """A value as the type of another one; the text of the command line is parsed."""
    kind, number = (
        type(before),
        isinstance(before, int | float | np.generic | np.ndarray | jax.Array) and np.ndim(before) == 0,
    )
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _BOOLEANS[str(value).lower()]
        if kind is str:
            return str(value)
        if kind is int and not isinstance(value, bool):
            return _integer(value)
        if number and not isinstance(value, bool):
            return float(value)
        if isinstance(before, tuple) and before and isinstance(value, str | list):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(_typed(path, part, before[0]) for part in parts)
    except (KeyError, TypeError, ValueError):
        raise CommandError(f"--set {path}: must be a {kind.__name__}, such as {short(before)}, got {value}.") from None
    raise CommandError(
        f"--set {path}: must be a number, a string, true, false or a tuple of them, but it is {short(before)}."
    )


def _integer(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value)


def _toml(path: Path) -> dict[str, Any]:
    """The values of a file's nested tables by their paths."""
    try:
        return dict(by_path(tomllib.loads(path.read_text()), lambda value: not isinstance(value, dict)))
    except OSError as error:
        raise CommandError(f"--config {path}: {error.strerror}.") from None
    except ValueError as error:
        raise CommandError(f"--config {path} must be a TOML file: {error}.") from None


def _plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
