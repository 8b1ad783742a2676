"""`warn`: a warning at the line of the user's own from which the library was called."""

from __future__ import annotations

import os
import sys
import warnings

__all__ = ["warn"]

_LIBRARY = os.path.dirname(os.path.dirname(__file__)) + os.sep  # and not what only begins with its name


def warn(message: str) -> None:
    """Warn at the innermost line that is not the library's: how many verbs lie between is no matter."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
