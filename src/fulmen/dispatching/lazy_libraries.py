"""Which libraries' modules the verbs know, and what loads what they are taught. Nothing of those libraries is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

__all__ = ["hint", "library_of", "meet", "missing", "teach"]

# From where a base class called `Module` is defined to the file that teaches it.
_TEACHERS = {"equinox.": "fulmen.interop.equinox", "flax.nnx.": "fulmen.interop.nnx"}
_HINTS = {
    "flax": "A Linen module holds no arrays: give it with an example of its inputs, fm.Linen(module, x[:1]).",
    "haiku": "A Haiku module is used inside a function: fm.functional(*hk.transform(function), x[:1]).",
    "keras": "A Keras model is functions of its variables: fm.functional(init, apply), with model.stateless_call in apply.",
    "torch": "A PyTorch module holds no JAX arrays: write it in JAX, Equinox or Flax, and copy its arrays.",
}

_libraries: dict[type, Any] = {}  # by the base class of its modules
_found: dict[type, Any] = {}


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
    """Load what the verbs are taught of the libraries that some classes are modules of."""
    for base in (base for kind in kinds if kind not in _found for base in kind.__mro__ if base.__name__ == "Module"):
        for place, teacher in _TEACHERS.items():
            if base.__module__.startswith(place) and base not in _libraries:
                importlib.import_module(teacher)


def hint(kind: type) -> str:
    """What to do with a module of a library of which the verbs know nothing; empty for other classes."""
    roots = [
        base.__module__.partition(".")[0] for base in kind.__mro__ if base.__name__ == "Module" or "keras" in base.__module__
    ]
    return next((_HINTS[root] for root in roots if root in _HINTS), "") if library_of(kind) is None else ""


def missing(package: str, what: str, extra: str) -> ImportError:
    """The error for a library that is not installed."""
    return ImportError(f'{what} need the package {package}: pip install "fulmen[{extra}]"')
