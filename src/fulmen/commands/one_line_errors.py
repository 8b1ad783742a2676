"""What the command line says of mistakes: one line, and a traceback only where it leads to the user's own code."""

from __future__ import annotations

import difflib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import PurePath
from types import TracebackType

import fulmen

__all__ = ["CommandError", "first_of_theirs", "in_one_line", "nearest", "parsing_error"]

_LIBRARY = PurePath(fulmen.__file__).parent
_STANDARD = PurePath(sysconfig.get_path("stdlib"))


class CommandError(ValueError):
    """What was given cannot be worked with; the message is one line that says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: the nearest one that there is, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there {'is' if len(known) == 1 else 'are'}: {', '.join(known)}." if known else "there is none."


def first_of_theirs(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame that is neither this library's nor an installed package's; None without one."""
    while trace is not None and not _is_theirs(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def in_one_line(error: BaseException) -> str | None:
    """What this library, or the system of a file, says of something wrong; None for an error that came from elsewhere."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = bool(frames) and _LIBRARY in PurePath(frames[-1]).parents
    if isinstance(error, CommandError):
        return str(error)
    of_a_file = isinstance(error, OSError) and not any(map(_is_theirs, frames))
    if not of_a_file and not (
        ours and isinstance(error, ArithmeticError | ImportError | LookupError | TypeError | ValueError)
    ):
        return None
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError prints its message quoted
    return f"{' '.join(str(said).split())}{_place(error)}"


def _place(error: BaseException) -> str:
    """The innermost line of the user's own that an error came through."""
    found = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_theirs(frame.f_code.co_filename)]
    return f" ({os.path.relpath(found[-1][0].f_code.co_filename)}:{found[-1][1]})" if found else ""


def _is_theirs(filename: str) -> bool:
    file = PurePath(filename)
    packaged = {"site-packages", "dist-packages"} & {*file.parts} or filename.startswith("<")
    return not packaged and _LIBRARY not in file.parents and _STANDARD not in file.parents


def parsing_error(box: str) -> str:
    """tyro's box about an argument that it could not read, as one line."""
    parts: list[list[str]] = [[]]
    for line in (line.strip("│ \t") for line in box.splitlines()):
        if line and line[0] in "╭╰":
            continue
        if line and not line.strip("─"):
            parts.append([])
        elif line:
            parts[-1].append(line)
    said = " ".join(parts[0]).rstrip(".")
    more = {" ".join(part).rstrip(".") for part in parts[1:]}
    commands = [part for part in more if part.startswith("Available subcommands")]
    similar = {name for part in more if part.startswith("Perhaps you meant") for name in re.findall(r"--[a-z-]+", part)}
    wrong = re.search(r"--[\w-]+", said)
    near = difflib.get_close_matches(wrong[0], similar, n=1) if wrong else []
    return (
        ". ".join([said, *commands, *(f"Did you mean {name}?" for name in near)]).replace("?.", "?") + " (--help shows all.)"
    )
