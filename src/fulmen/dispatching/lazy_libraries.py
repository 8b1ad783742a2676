"""Other libraries whose types the verbs support, each loaded when its first type is met. Nothing of them is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

_adapters: dict[
    str, str
] = {}  # from the beginning of the modules of a library's classes to the module with the methods for them
_hints: dict[str, str] = {}
_libraries: dict[type, Any] = {}  # by the base class of its modules
_found: dict[type, Any] = {}
_known: set[type] = set()  # the classes whose libraries are loaded


def load_when_met(prefix: str, adapter: str) -> None:
    """Import a module when a class that is defined under a prefix such as `"equinox."`, or a subclass, is met for the first time."""
    _adapters[prefix] = adapter


def explain_unknown(hints: dict[str, str]) -> None:
    """Set the remedies for modules of unsupported libraries, by the libraries' names."""
    _hints.update(hints)


def teach(base: type, library: Any) -> None:
    """Support the modules of a library, by their base class."""
    _libraries[base] = library
    _found.clear()


def library_of(kind: type) -> Any:
    """The library that a class is a module of, or None. It is loaded when it is met for the first time."""
    try:
        return _found[kind]
    except KeyError:
        load_libraries([kind])
        found = next((_libraries[base] for base in kind.__mro__ if base in _libraries), None)
        _found[kind] = found
        return found


def load_libraries(kinds: Iterable[type]) -> None:
    """Load the methods for the libraries that some classes or their bases are defined in.

    Call it without holding the verbs' lock: another thread may be importing the same module, which registers methods.
    """
    for kind in {*kinds} - _known:
        modules = {f"{base.__module__}." for base in kind.__mro__}
        for adapter in {adapter for prefix, adapter in _adapters.items() for name in modules if name.startswith(prefix)}:
            importlib.import_module(adapter)  # waits for a thread that is importing it
        _known.add(kind)


def hint(kind: type) -> str:
    """The remedy for a module of an unsupported library; empty for other classes."""
    roots = [
        base.__module__.partition(".")[0] for base in kind.__mro__ if base.__name__ == "Module" or "keras" in base.__module__
    ]
    return next((_hints[root] for root in roots if root in _hints), "") if library_of(kind) is None else ""


def installed(module: str, what: str, extra: str, package: str = "") -> Any:
    """A module that `what` needs, imported; or the ImportError that `missing` makes, by default for a package of its name."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(package or module.partition(".")[0], what, extra) from error


def missing(package: str, what: str, extra: str) -> ImportError:
    """The error for a package that is not installed, which the features `what` need, and which `extra` installs."""
    return ImportError(
        f'{what} need the package {package}: pip install "fulmen[{extra}]", or in a clone pip install -e ".[{extra}]".'
    )
