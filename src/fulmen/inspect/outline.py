"""`show` of components, states and batches: nested `<details>` of fields with types, shapes, roles and parameter counts."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Batch, Buffer, Component, Parameter, State, Tree, covers, join_path, number, short
from fulmen.core.fields import kinds
from fulmen.core.leaves import FROZEN, PARAMETER, Leaf, described, is_array, leaves
from fulmen.core.verbs import show
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.text import describe_bytes, faint, first_line, html_page, html_table
from fulmen.objectives import Objective, Scaled, Scheduled

_LONGEST = 80  # characters of a value


@dispatch
def show(state: State):
    return html_page("", _state(state) + _node("", state.system, "", leaves(state.system), 0))


@dispatch
def show(batch: Batch):
    return html_page("", _node("", batch, "", [], 0))


@dispatch
def show(component: Component):
    try:
        shown, drawn = described(component)
    except Exception:  # an incomplete component is shown without shapes
        shown, drawn = component, True
    body = _node("", shown, "", leaves(shown), 0)
    return html_page("", body + ("" if drawn else faint("a description: its arrays are not drawn yet")))


def _state(state: State) -> str:
    """The fields of a state other than its system."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer_state) if is_array(leaf))
    values = {"step": number(state.step), "optimizer state": describe_bytes(size)}
    if state.optimizer is not None and isinstance(state.optimizer, Tree):
        values["optimizer"] = repr(state.optimizer)
    values |= {k.replace("_", " "): str(getattr(state.plan, k)) for k in kinds(type(state.plan)) if getattr(state.plan, k)}
    return f"<div><b>State</b> {faint(' · '.join(f'{k}: {_shorten(v)}' for k, v in values.items()))}</div>"


def _node(name: str, value: Any, path: str, known: list[Leaf], depth: int) -> str:
    label = f"<b>{html.escape(name)}</b>: " if name else ""
    inside = _inside(value)
    if inside is None:
        return _LINE.format(f"{label}{_leaf(value, path, known)}")
    head = f"{label}{html.escape(type(value).__name__)} {faint(_remark(value, path, known))}"
    # Settings share one line; fields with arrays or parts have one each.
    settings = {key: item for key, item in inside.items() if _is_setting(item)}
    body = _terms(value) if isinstance(value, Objective) and "objective" not in path.split(".")[:-1] else ""
    if settings:
        body += _LINE.format(faint(" · ".join(f"{k}: {_shorten(_plain(v))}" for k, v in settings.items())))
    body += "".join(_node(k, item, join_path(path, k), known, depth + 1) for k, item in inside.items() if k not in settings)
    if not body:
        return _LINE.format(head)
    start = f'<details{" open" if depth < 2 else ""} style="padding-left:{1.1 if depth else 0}em">'
    return f'{start}<summary style="cursor:pointer">{head}</summary>{body}</details>'


_LINE = '<div style="padding-left:1.1em">{}</div>'


def _remark(value: Any, path: str, known: list[Leaf]) -> str:
    """The note after a value's type; for a part, its numbers of trained and of frozen elements."""
    if isinstance(value, Objective):
        return repr(value) if not path else _shorten(repr(value))
    if isinstance(value, Batch):
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(value)}
        return f"{len(value):,} examples" if len(sizes) == 1 and () not in sizes else ""
    inside = [leaf for leaf in known if covers(path, leaf.path)]
    trained, frozen = (sum(np.size(leaf.value) for leaf in inside if leaf.role == role) for role in (PARAMETER, FROZEN))
    counts = [(trained, "parameter" if trained == 1 else "parameters"), (frozen, "frozen")]
    return ", ".join(f"{n:,} {what}" for n, what in counts if n)


def _terms(objective: Objective) -> str:
    """The terms of a sum: the name in the logs, the weight, and the first line of the docstring."""
    rows = []
    for name, term in objective.by_name().items():
        weight, bare = "1", term
        if isinstance(term, Scaled | Scheduled):
            weight, bare = number(term.weight if isinstance(term, Scaled) else term.schedule), term.objective
        doc = first_line(type(bare))
        cells = [html.escape(_shorten(text)) for text in (name, weight, repr(bare))]
        # A dataclass without a docstring gets one made of its fields.
        text = "" if doc.startswith(f"{type(bare).__name__}(") else faint(doc)
        rows.append((*cells, f'<div style="white-space:normal;min-width:20em">{text}</div>'))
    return _LINE.format(html_table(("term", "weight>", "", ""), rows)) if len(rows) > 1 else ""


def _inside(value: Any) -> Mapping[str, Any] | None:
    """The values that are shown below a value, or None for a value on one line."""
    if isinstance(value, Parameter | Buffer):
        return None
    if isinstance(value, Tree):
        fields = {f.name: f for f in dataclasses.fields(value) if f.repr and f.name != "mode"}
        # Optional fields of a base class are hidden while they are None.
        return {n: getattr(value, n) for n, f in fields.items() if not (f.kw_only and getattr(value, n) is None)}
    if isinstance(value, dict):
        return {str(key): value[key] for key in sorted(value)}
    if isinstance(value, list | tuple) and any(_inside(item) is not None or is_array(item) for item in value):
        return {str(i): item for i, item in enumerate(value)}
    return None


def _is_setting(value: Any) -> bool:
    """Whether a value is a number, a word or a function, which takes few characters."""
    return _inside(value) is None and not isinstance(value, Tree) and (not is_array(value) or np.shape(value) == ())


def _leaf(value: Any, path: str, known: list[Leaf]) -> str:
    """A value on one line, with its roles."""
    roles = {leaf.role for leaf in known if covers(path, leaf.path)}
    role = faint(" · ".join(sorted(roles))) if roles else ""
    return f"{html.escape(_shorten(_plain(value)))} {role}"


def _plain(value: Any) -> str:
    foreign = value is not None and not isinstance(value, Tree) and not jax.tree_util.all_leaves([value])
    if foreign and not isinstance(value, list | tuple):
        return type(value).__name__
    array: Any = value
    is_key = is_array(value) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return short(value) if is_key else number(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
