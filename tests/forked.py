"""Programs in processes that are forked from one that has imported JAX and has not used it: each would import it again."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from fulmen.testing.resume_check import forking


def start(program: Path, *arguments: Any, output: Path) -> Any:
    """Start a program, as `python PROGRAM ARGUMENTS > OUTPUT 2>&1` does.

    Args:
        program: a Python file.
        *arguments: what `sys.argv` has after the program.
        output: a file for the standard output and errors.

    Returns:
        A process of `multiprocessing`, with `join`, `kill` and `exitcode`.
    """
    process = forking().Process(target=_run, args=(str(program), [str(each) for each in arguments], str(output)))
    process.start()
    return process


def _run(program: str, arguments: list[str], output: str) -> None:
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
