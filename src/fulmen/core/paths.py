"""Paths: which place in a component a parameter lies at."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fulmen.core.leaves import PARAMETER, leaves

__all__: list[str] = []

T = TypeVar("T")


def join(path: str, name: str) -> str:
    """The path of what is called `name` at a path; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def within(place: str, path: str) -> bool:
    """Whether a path is at or below a place."""
    return place in ("", path) or path.startswith(f"{place}.")


def nearest(path: str, places: Mapping[str, T]) -> T | None:
    """What there is for the longest place that a path is at or below."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path)


def places_in(part: Any) -> list[str]:
    """The paths of all parameters in a part, and of what they lie in."""
    found: dict[str, None] = {}
    for leaf in leaves(part):
        if leaf.role == PARAMETER:
            names = leaf.path.split(".")
            found.update((".".join(names[: i + 1]), None) for i in range(len(names)))
    return list(found)


def fitting(pattern: str, places: list[str]) -> list[str]:
    """The places that a pattern fits: `*` stands for one name or a piece of it, `**` for any number of names.

    >>> from fulmen.core.paths import fitting
    >>> fitting("**.bias", ["bias", "layers", "layers.0", "layers.0.bias"])
    ['bias', 'layers.0.bias']
    """
    pieces = {"**.": r"(?:[^.]+\.)*", "**": r".+", "*": r"[^.]*"}
    expression = "".join(pieces.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*\.|\*\*|\*)", pattern))
    return [place for place in places if re.fullmatch(expression, place)]


def like(pattern: str, places: list[str]) -> str | None:
    """The pattern with its names as the nearest ones that there are, if it fits something then.

    >>> from fulmen.core.paths import like
    >>> like("**.biases", ["bias", "layers", "layers.0", "layers.0.bias"])
    '**.bias'
    """
    known = {name for place in places for name in place.split(".")}
    names = [name if "*" in name or name in known else _near(name, known) for name in pattern.split(".")]
    found = ".".join(names)
    return found if fitting(found, places) else None


def _near(name: str, known: set[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), name)
