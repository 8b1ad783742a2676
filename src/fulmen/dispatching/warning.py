"""`warn`: a warning at the user's line that called the library."""

from __future__ import annotations

import os
import sys
import warnings

_LIBRARY = (
    os.path.dirname(os.path.dirname(__file__)) + os.sep
)  # a separator, so that other packages with this prefix do not count


def warn(message: str) -> None:
    """Warn at the innermost line outside the library, independent of how many verbs are between."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
