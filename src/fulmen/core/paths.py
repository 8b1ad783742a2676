"""Paths of parameters and parts in a component, such as `"model.layers.0.weight"`, and patterns of them."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, such as `"layers.0.weight"`, in JAX's order; `""` for a leaf itself."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in found]


def join_path(path: str, name: str) -> str:
    """The path of the field `name` of the part at a path; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def covers(above: str, path: str) -> bool:
    """Whether a path is equal to another one, or below it."""
    return above in ("", path) or path.startswith(f"{above}.")


def nearest_above(path: str, values: Mapping[str, T]) -> T | None:
    """The value of the longest path that covers a path, or None."""
    while path and path not in values:
        path = path.rpartition(".")[0]
    return values.get(path)


def matching_paths(pattern: str, paths: list[str]) -> list[str]:
    """The paths that a pattern matches: `*` matches one name or a piece of it, `**` any number of names.

    >>> from fulmen.core.paths import matching_paths
    >>> matching_paths("**.bias", ["bias", "layers", "layers.0", "layers.0.bias"])
    ['bias', 'layers.0.bias']
    """
    pieces = {"**.": r"(?:[^.]+\.)*", "**": r".+", "*": r"[^.]*"}
    expression = "".join(pieces.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*\.|\*\*|\*)", pattern))
    return [path for path in paths if re.fullmatch(expression, path)]


def similar_pattern(pattern: str, paths: list[str]) -> str | None:
    """The pattern with each unknown name replaced by the most similar known one, or None if it then matches nothing.

    >>> from fulmen.core.paths import similar_pattern
    >>> similar_pattern("**.biases", ["bias", "layers", "layers.0", "layers.0.bias"])
    '**.bias'
    """
    known = {name for path in paths for name in path.split(".")}
    names = [name if "*" in name or name in known else _near(name, known) for name in pattern.split(".")]
    found = ".".join(names)
    return found if matching_paths(found, paths) else None


def _near(name: str, known: set[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), name)
