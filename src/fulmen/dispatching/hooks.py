"""Functions that the layers above set, since the verbs know nothing of models or of pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["advice", "comes_first", "verb_html"]


def _nothing(*args: Any) -> str:
    return ""


advice: Callable[[Exception, Any, str], str] = _nothing
"""From an error, the first argument and the verb's name to what the user can do about the error; empty for nothing."""

verb_html: Callable[[Any], str] = _nothing
"""From a verb to its table of methods in a notebook."""


def _never(kind: type) -> bool:
    return False


comes_first: Callable[[type], bool] = _never
"""Whether values of a class are the first argument of the verbs that take them."""
