"""Errors on the command line: one line each, and a traceback only for errors in the user's code."""

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import PurePath
from types import TracebackType
from typing import NoReturn

import fulmen

_LIBRARY = PurePath(fulmen.__file__).parent
_STANDARD = PurePath(sysconfig.get_path("stdlib"))


class CommandError(ValueError):
    """The input cannot be used; the message is one line that says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there {'is' if len(known) == 1 else 'are'}: {', '.join(known)}." if known else "there is none."


def user_traceback(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from its first frame in the user's code (neither this library nor an installed package), or None."""
    while trace is not None and not _is_user_file(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def show_user_error(error: Exception) -> NoReturn:
    """Exit with the traceback of an error in the user's code, from there on: one line would hide where it was raised."""
    trace = user_traceback(error.__traceback__)
    # A SyntaxError has no frame in the file; its text shows the line.
    traceback.print_exception(error.with_traceback(trace) if trace is not None or isinstance(error, SyntaxError) else error)
    raise SystemExit(1)


def in_one_line(error: BaseException) -> str | None:
    """The message of an error that this library raised, or the file system; None for other errors."""
    if isinstance(error, CommandError):
        return str(error)
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    users = [(file, line) for file, line in lines if _is_user_file(file)]
    ours = bool(lines) and _LIBRARY in PurePath(lines[-1][0]).parents
    known = isinstance(error, ArithmeticError | ImportError | LookupError | TypeError | ValueError)
    if not (ours and known) and not (isinstance(error, OSError) and not users):
        return None
    message = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError prints its message quoted
    place = f" ({os.path.relpath(users[-1][0])}:{users[-1][1]})" if users else ""  # the innermost line of the user's code
    return f"{' '.join(str(message).split())}{place}"


def _is_user_file(filename: str) -> bool:
    file = PurePath(filename)
    packaged = {"site-packages", "dist-packages"} & {*file.parts} or filename.startswith("<")
    return not packaged and _LIBRARY not in file.parents and _STANDARD not in file.parents
