"""Finds and calls the user's function that a command is given."""

import importlib
import importlib.util
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fulmen as fm
from fulmen.commands.one_line_errors import CommandError, nearest, show_user_error
from fulmen.core import short
from fulmen.core.tree import with_article


def _function(target: str) -> Callable[[], Any]:
    """The function that a target such as `examples:run` or `examples.py:run` names."""
    place, _, name = target.rpartition(":")
    if not place:
        place, name = target, ""
    module = _module(place)
    named = {k: v for k, v in vars(module).items() if inspect.isfunction(v) and v.__globals__ is vars(module)}
    if not name:
        raise CommandError(f"{target}: which function? Write {target}:NAME; {nearest('', named)}")
    found = getattr(module, name, None)
    if found is None:
        raise CommandError(f"{place} has no function {name!r}; {nearest(name, named)}")
    if not callable(found):
        raise CommandError(f"{place}:{name} must be a function that returns a system and data, got {type(found).__name__}.")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise CommandError(
            f"{place}:{name} must be callable without arguments: {error}. Give the argument a default."
        ) from None
    return found


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        return _file(Path(place))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            show_user_error(error)  # a module that the user's module imports
        if "/" in place or os.sep in place:
            raise CommandError(f"{place} is not a module; for a file, write {place}.py:NAME.") from None
        here = [path.stem for path in Path.cwd().glob("*.py")]
        raise CommandError(f"there is no module {error.name!r} here or installed; {nearest(place, here)}") from None
    except Exception as error:
        show_user_error(error)


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        here = [str(path.with_name(other.name)) for other in path.parent.glob("*.py")]
        raise CommandError(f"there is no file {path}; {nearest(str(path), here)}")
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path` has it, so that it can import its neighbours
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_file"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        show_user_error(error)
    return module


def returned_by(target: str) -> Any:
    """What the user's function returns."""
    run = _function(target)
    try:
        return run()
    except Exception as error:
        show_user_error(error)


def run_arguments(target: str) -> dict[str, Any]:
    """What the user's function returns, as `fit`'s arguments: `system`, `data`, and perhaps `validation` and others."""
    returned = returned_by(target)
    expected = f"{target} must return (system, data), (system, data, validation) or a dict of fit's arguments"
    if isinstance(returned, tuple) and len(returned) in (2, 3):
        if isinstance(returned[1], fm.History):
            raise CommandError(
                f"{expected}, got the state and history that `fit` returns: return the system and its data without training."
            )
        return dict(zip(("system", "data", "validation"), returned, strict=False))
    if isinstance(returned, dict):
        for name in ("system", "data"):
            if name not in returned:
                raise CommandError(f"{expected}, got a dict without {name!r}; it has: {', '.join(map(str, returned))}.")
        return dict(returned)
    if isinstance(returned, fm.State | fm.Component):
        raise CommandError(
            f"{expected}, got {with_article(type(returned))} without data: return it with its data, (…, (x, y))."
        )
    got = textwrap.shorten(short(returned), 80, placeholder="…")
    raise CommandError(f"{expected}, got {got}.{' Does it end with `return …`?' if returned is None else ''}")
