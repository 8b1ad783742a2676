"""Functions that the layers above set, since this layer knows neither models nor HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def _nothing(*args: Any) -> str:
    return ""


advice: Callable[[Exception, Any, str], str] = _nothing
"""The remedy for an error, from the error, the first argument and the verb's name; empty if there is none."""

verb_html: Callable[[Any], str] = _nothing
"""The HTML of a verb in a notebook: its table of methods."""


unknown_option: Callable[[str, Mapping[str, Any], Iterable[str]], str] = _nothing
"""The message for keywords that a method does not take, from the verb's name, these keywords and the names of its own."""


def _never(kind: type) -> bool:
    return False


comes_first: Callable[[type], bool] = _never
"""Whether instances of a class are always a verb's first argument."""
