"""Data sources of other libraries: the file with the methods for a library is loaded when one of its types is first used."""

import importlib

# From the modules of a library's classes to the file in `interop` with the methods for them.
_FILES = {
    "torch.utils.data": "torch_data",
    "datasets.arrow_dataset": "datasets_data",
    "datasets.iterable_dataset": "datasets_data",
    "datasets.dataset_dict": "datasets_data",
    "grain._src.python": "grain_data",
    "tensorflow.python.data": "tensorflow_data",
}
_known: set[type] = set()


def teach(kind: type) -> bool:
    """Load the file with the methods for a type, if there is one. Returns whether one was loaded for the type now."""
    if kind in _known:
        return False
    _known.add(kind)
    modules = {f"{base.__module__}." for base in kind.__mro__}
    files = {file for module in modules for prefix, file in _FILES.items() if module.startswith(f"{prefix}.")}
    for file in files:
        importlib.import_module(f"fulmen.interop.{file}")
    return bool(files)
