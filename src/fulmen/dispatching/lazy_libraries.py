"""Which libraries' modules the verbs know, and which file teaches them. Nothing of those libraries is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

__all__ = ["explain_unknown", "hint", "library_of", "load_when_met", "meet", "missing", "teach"]

_teachers: dict[str, str] = {}  # from where a base class called `Module` is defined to the module that teaches it
_hints: dict[str, str] = {}
_libraries: dict[type, Any] = {}  # by the base class of its modules
_found: dict[type, Any] = {}
_met: set[type] = set()


def load_when_met(prefix: str, teacher: str) -> None:
    """Have a module imported when a class called `Module` that is defined under a prefix is met for the first time."""
    _teachers[prefix] = teacher


def explain_unknown(hints: dict[str, str]) -> None:
    """Set what to do with modules of libraries that the verbs are not taught, by the libraries' names."""
    _hints.update(hints)


def teach(base: type, library: Any) -> None:
    """Let the modules of a library be known, by their base class."""
    _libraries[base] = library
    _found.clear()


def library_of(kind: type) -> Any:
    """What is known of the library that a class is a module of, or None. Loads it where it is met for the first time."""
    try:
        return _found[kind]
    except KeyError:
        meet([kind])
        found = next((_libraries[base] for base in kind.__mro__ if base in _libraries), None)
        _found[kind] = found
        return found


def meet(kinds: Iterable[type]) -> None:
    """Load what the verbs are taught of the libraries that some classes are modules of.

    Never under the verbs' lock: another thread may be importing the same module, which registers methods.
    """
    for base in (base for kind in kinds for base in kind.__mro__ if base.__name__ == "Module"):
        for prefix, teacher in _teachers.items():
            if base.__module__.startswith(prefix) and base not in _met:
                importlib.import_module(teacher)  # waits for a thread that is importing it
                _met.add(base)


def hint(kind: type) -> str:
    """What to do with a module of a library of which the verbs know nothing; empty for other classes."""
    roots = [
        base.__module__.partition(".")[0] for base in kind.__mro__ if base.__name__ == "Module" or "keras" in base.__module__
    ]
    return next((_hints[root] for root in roots if root in _hints), "") if library_of(kind) is None else ""


def missing(package: str, what: str, extra: str) -> ImportError:
    """The error for a library that is not installed."""
    return ImportError(f'{what} need the package {package}: pip install "fulmen[{extra}]"')
