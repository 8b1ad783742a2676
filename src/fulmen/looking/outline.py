"""A component as a tree that folds, in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.component import Buffer, Parameter
from fulmen.leaves import FROZEN, PARAMETER, Leaf, is_array, leaves
from fulmen.looking.table import described
from fulmen.looking.text import faint, html_page
from fulmen.naming import number
from fulmen.objectives import Objective
from fulmen.tree import Tree, kinds, short

__all__ = ["html_tree"]

_LONGEST = 80  # characters of a value


def html_tree(component: Any) -> str:
    """HTML: nested `<details>` of a component's fields, with types, shapes and numbers of parameters.

    Args:
        component: any component; of a description the shapes that `init` would draw are shown.
    """
    try:
        shown, drawn = described(component)
    except Exception:  # a picture of something half made must not fail: it is shown as it is
        shown, drawn = component, True
    body = _node("", shown, "", leaves(shown), 0)
    return html_page("", body + ("" if drawn else faint("a description: its arrays are not drawn yet")))


def _node(name: str, value: Any, path: str, known: list[Leaf], depth: int) -> str:
    inside = _inside(value)
    label = f"<b>{html.escape(name)}</b>: " if name else ""
    if inside is None:
        return f'<div style="padding-left:1.1em">{label}{_leaf(value, path, known)}</div>'
    remark = _shorten(repr(value)) if isinstance(value, Objective) else _counts(path, known)
    head = f"{label}{html.escape(type(value).__name__)} {faint(remark)}"
    join = f"{path}." if path else ""
    body = "".join(_node(key, item, join + key, known, depth + 1) for key, item in inside.items())
    if not body:
        return f'<div style="padding-left:1.1em">{head}</div>'
    start = f'<details{" open" if depth < 2 else ""} style="padding-left:{1.1 if depth else 0}em">'
    return f'{start}<summary style="cursor:pointer">{head}</summary>{body}</details>'


def _counts(path: str, known: list[Leaf]) -> str:
    """How many numbers at and below a path are trained, and how many are frozen."""
    inside = [leaf for leaf in known if _below(leaf.path, path)]
    trained, frozen = (sum(np.size(leaf.value) for leaf in inside if leaf.role == role) for role in (PARAMETER, FROZEN))
    counts = [(trained, "parameter" if trained == 1 else "parameters"), (frozen, "frozen")]
    return ", ".join(f"{n:,} {what}" for n, what in counts if n)


def _inside(value: Any) -> Mapping[str, Any] | None:
    """What is shown below a value, or None for a value that is shown on one line."""
    if isinstance(value, Parameter | Buffer):
        return None
    if isinstance(value, Tree):
        return {name: getattr(value, name) for name in kinds(type(value)) if name != "mode"}
    if isinstance(value, dict):
        return {str(key): value[key] for key in sorted(value)}
    if isinstance(value, list | tuple) and any(_inside(item) is not None or is_array(item) for item in value):
        return {str(i): item for i, item in enumerate(value)}
    return None


def _leaf(value: Any, path: str, known: list[Leaf]) -> str:
    """A value on one line, with what it is for."""
    roles = {leaf.role for leaf in known if _below(leaf.path, path)}
    role = faint(" · ".join(sorted(roles))) if roles else ""
    foreign = value is not None and not isinstance(value, Tree) and not jax.tree_util.all_leaves([value])
    if foreign and not isinstance(value, list | tuple):
        text = type(value).__name__
    else:
        text = short(value) if _is_key(value) else number(value)
    return f"{html.escape(_shorten(text))} {role}"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_key(value: Any) -> bool:
    return is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _below(leaf: str, path: str) -> bool:
    return not path or leaf == path or leaf.startswith((f"{path}.", f"{path}["))
