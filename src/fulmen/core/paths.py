"""Paths of parameters and parts in a component, such as `"model.layers.0.weight"`, and patterns of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from fulmen.core.leaves import PARAMETER, leaves

__all__: list[str] = []

T = TypeVar("T")


def join_path(path: str, name: str) -> str:
    """The path of the field `name` of the part at a path; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def covers(place: str, path: str) -> bool:
    """Whether a path is at or below a place."""
    return place in ("", path) or path.startswith(f"{place}.")


def nearest_above(path: str, places: Mapping[str, T]) -> T | None:
    """The value of the longest place that covers a path, or None."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path)


def parameter_paths(part: Any) -> list[str]:
    """The paths of all parameters in a part, and of the parts that contain them."""
    found: dict[str, None] = {}
    for leaf in leaves(part):
        if leaf.role == PARAMETER:
            names = leaf.path.split(".")
            found.update((".".join(names[: i + 1]), None) for i in range(len(names)))
    return list(found)


def matching_paths(pattern: str, places: list[str]) -> list[str]:
    """The places that a pattern matches: `*` matches one name or a piece of it, `**` any number of names.

    >>> from fulmen.core.paths import matching_paths
    >>> matching_paths("**.bias", ["bias", "layers", "layers.0", "layers.0.bias"])
    ['bias', 'layers.0.bias']
    """
    pieces = {"**.": r"(?:[^.]+\.)*", "**": r".+", "*": r"[^.]*"}
    expression = "".join(pieces.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*\.|\*\*|\*)", pattern))
    return [place for place in places if re.fullmatch(expression, place)]


def similar_pattern(pattern: str, places: list[str]) -> str | None:
    """The pattern with each unknown name replaced by the most similar known one, or None if it then matches nothing.

    >>> from fulmen.core.paths import similar_pattern
    >>> similar_pattern("**.biases", ["bias", "layers", "layers.0", "layers.0.bias"])
    '**.bias'
    """
    known = {name for place in places for name in place.split(".")}
    names = [name if "*" in name or name in known else _near(name, known) for name in pattern.split(".")]
    found = ".".join(names)
    return found if matching_paths(found, places) else None


def _near(name: str, known: set[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), name)
