"""What the one kernel that runs all notebooks does before each: its state is as new, and the data are few."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from IPython import get_ipython

sys.path.insert(0, str(Path(__file__).parents[1]))
from few_digits import few_digits

import conftest  # noqa: F401, the kernel compiles as the tests do
from fulmen.dispatching.registry import all_named_verbs

_METHODS = {verb: verb.methods for verb in all_named_verbs()}
_FILE, _data = os.__file__, contextlib.ExitStack()


def begin(folder: str, short: bool) -> None:
    """Begin a notebook in the kernel.

    Args:
        folder: the notebook's working directory.
        short: whether `load_digits` gives few digits, and the licence that lies beside Python's files is a short one.
    """
    get_ipython().reset()
    get_ipython().run_line_magic("config", "InlineBackend.print_figure_kwargs = {'bbox_inches': None}")  # draws once
    plt.close("all")
    os.chdir(folder)
    for verb in all_named_verbs():
        lazy = [method for method in verb.methods if method.module.startswith("fulmen.")]
        verb.restore(list(dict.fromkeys([*_METHODS.get(verb, []), *lazy])))
    _data.close()
    os.__file__ = _FILE
    if short:
        _data.enter_context(few_digits(160))
        os.__file__ = f"{folder}/os.py"
        Path("LICENSE.txt").write_text("Permission to use, to copy and to change this text is granted to all.\n" * 8)
