"""The place where a method is defined, in short form."""

from __future__ import annotations

import sys
from pathlib import PurePath


def place(location: str, module: str) -> str:
    """A file and line `"/…/file.py:12"`, the file as its module is imported: `fulmen/systems/gan.py:12`."""
    file, _, line = location.rpartition(":")
    if not file or not line.isdigit():
        return location
    cell = _cell(file)
    if cell is not None:
        return f"In [{cell}]:{line}"
    parts = PurePath(file).parts
    deep = 1 if module == "__main__" else len(module.split(".")) + (parts[-1] == "__init__.py")
    return f"{'/'.join(parts[-deep:])}:{line}"


def _cell(file: str) -> int | None:
    """The number of the notebook cell that a file name belongs to."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers.get(file)
