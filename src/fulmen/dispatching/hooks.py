"""Functions that the layers above set, since this layer knows neither models nor HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def _nothing(*args: Any) -> str:
    return ""


annotate: Callable[[Exception, str, Any, Any], None] = lambda error, verb, args, options: None
"""Add notes to an error that a method raised, from the error, the verb's name, the arguments and the options."""

remedy: Callable[[str, str, Any], str] = _nothing
"""The remedy for a call without a method, from the verb's name, its first parameter's and the types; empty if there is none."""

spelled: Callable[[type], str] = _nothing
"""How a user writes a class, such as `fm.Labeled`; empty for one that is not public."""

verb_html: Callable[[Any], str] = _nothing
"""The HTML of a verb in a notebook: its table of methods."""


unknown_option: Callable[[str, Mapping[str, Any], Iterable[str]], str] = _nothing
"""The message for keywords that a method does not take, from the verb's name, these keywords and the names of its own."""

unknown_verb: Callable[[str], str] = _nothing
"""What to write instead of a method of a verb that does not exist, from its name; empty if nothing is known about it."""


def _never(kind: type) -> bool:
    return False


comes_first: Callable[[type], bool] = _never
"""Whether instances of a class are always a verb's first argument."""
