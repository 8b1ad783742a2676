"""Which libraries' data sources the verbs know, each taught in a file of its own that is loaded when one is first seen."""

from __future__ import annotations

import importlib

__all__ = ["teach"]

# Where the classes of a library stand, and the file that teaches them to the verbs.
_TAUGHT = {
    "torch.utils.data": "torch_data",
    "datasets.arrow_dataset": "datasets_data",
    "datasets.iterable_dataset": "datasets_data",
    "datasets.dataset_dict": "datasets_data",
    "grain._src.python": "grain_data",
    "tensorflow.python.data": "tensorflow_data",
}


_known: set[type] = set()


def teach(kind: type) -> bool:
    """Load the file that teaches a type to the verbs, if there is one. Returns whether there is something new."""
    if kind in _known:
        return False
    _known.add(kind)
    places = {f"{base.__module__}." for base in kind.__mro__}
    files = {file for place in places for prefix, file in _TAUGHT.items() if place.startswith(f"{prefix}.")}
    for file in files:
        importlib.import_module(f"fulmen.interop.{file}")
    return bool(files)
