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
    given = [str(each) for each in arguments], str(output), os.getcwd(), dict(os.environ)
    process = forking().Process(target=_run, args=(str(program), *given))
    process.start()
    return process


def start_code(code: str, folder: Path, *arguments: Any, name: str = "code") -> tuple[Any, Path]:
    """Start Python code, which is written into a folder; returns the process and the file of its output."""
    program, output = folder / f"{name}.py", folder / f"{name}.txt"
    program.write_text(code)
    return start(program, *arguments, output=output), output


def run_code(code: str, folder: Path, *arguments: Any, exitcode: int = 0) -> str:
    """Run Python code, require that it ends with an exit code, and return its output."""
    process, output = start_code(code, folder, *arguments)
    process.join(600)
    process.kill()
    assert process.exitcode == exitcode, output.read_text()
    return output.read_text()


def _run(program: str, arguments: list[str], output: str, folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)  # else it is that in which the first process was started
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
