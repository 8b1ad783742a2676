"""`loss_tree`: the tree of a system's losses, with values."""

from __future__ import annotations

import dataclasses
import html
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from fulmen.compose.defence import Defence
from fulmen.compose.example_means import example_mean
from fulmen.compose.loss_entries import part_batch, sums_its_losses
from fulmen.core import Eval, Mode, State, bound_mode, checked_batch, inner, require_arrays
from fulmen.core.component import Model, System, Wrapper, named_parts
from fulmen.core.immutable import Immutable
from fulmen.core.verbs import as_batch, bind, loss, losses, reduce_losses
from fulmen.dispatching.location import place
from fulmen.inspect.text import Picture, align, faint, html_code, html_page, html_table, tree_prefixes
from fulmen.objectives import Objective, Scaled, Scheduled


class LossNode(Picture, Immutable):
    """A node of a tree of losses; prints as the tree below it.

    Attributes:
        name: the entry's name in the `losses` of the system above; `"loss"` for the root.
        type: the name of the component's type; empty for an entry that is not a field.
        value: the value that is added to the sum above.
        examples: the number of examples that it is a mean over; None for a loss that is one number.
        children: the nodes below, by name.
        note: the formula of a term with its weight, or the method of `reduce_losses` where it is not a plain sum.
    """

    name: str
    type: str
    value: float
    examples: int | None = None
    children: dict[str, LossNode] = dataclasses.field(default_factory=dict)
    note: str = ""

    def _lines(self, before: str = "", above: str = "") -> Iterator[tuple[str, LossNode]]:
        yield before + self.name, self
        inside = list(self.children.values())
        for child, (own, below) in zip(inside, tree_prefixes(above, len(inside)), strict=True):
            yield from child._lines(own, below)

    def _remark(self) -> str:
        mean = "" if self.examples is None else f"mean over {self.examples} example{'s' * (self.examples != 1)}"
        return ", ".join(part for part in (self.note, mean) if part)

    def _text(self) -> str:
        return align([(name, node.type, f"{node.value:.6g}", node._remark()) for name, node in self._lines()], right=(2,))

    def _repr_html_(self) -> str:
        lines = [*self._lines()]
        values = [0.0, 0.0, *(node.value for _, node in lines if math.isfinite(node.value))]
        rows = []
        for name, node in lines:
            bar = _bar(node.value, min(values), max(values))
            rows.append((html_code(name), html.escape(node.type), f"{node.value:.6g}", bar, faint(node._remark())))
        return html_page("", html_table(("entry", "type", "value>", "", ""), rows))


def _bar(value: float, low: float, high: float, width: int = 120) -> str:
    """A bar from zero to a value, in the colour of the text; hollow for negative values."""
    if not math.isfinite(value) or high == low:
        return ""
    zero, end = ((v - low) / (high - low) * (width - 2) + 1 for v in (0.0, value))
    fill = "none" if value < 0 else "currentColor"
    return (
        f'<svg width="{width}" height="10" style="max-width:none" role="img">'
        f'<rect x="{min(zero, end):.1f}" y="1" width="{abs(end - zero):.1f}" '
        f'height="8" fill="{fill}" stroke="currentColor" opacity="0.6"></rect></svg>'
    )


def loss_tree(component: Any, batch: Any, mode: Mode | None = None) -> LossNode:
    """The tree of all losses with their values: the entries of `losses` at every level, reduced as in the sum.

    Args:
        component: a `State`, or a system or model with its arrays.
        batch: a batch or raw data.
        mode: a `Mode`; None is the mode that is bound to the component, or else `Eval()`.

    Returns:
        The root, whose `value` is the loss. It prints as a tree; `children` is a dict of nodes.

    Raises:
        MissingArraysError: if the component has no arrays yet.

    >>> system = fm.Classifier(fm.models.Flatten(), fm.CrossEntropy() + 0.1 * fm.L2())
    >>> print(fm.loss_tree(system, (jnp.zeros((4, 2)), jnp.array([0, 1, 0, 1]))))
    loss              Classifier    0.693147
    ├─ cross_entropy  CrossEntropy  0.693147  mean over 4 examples
    └─ l2             L2                   0  0.1 * L2()
    """
    key = None
    if isinstance(component, State):
        component, key = component.system, component.key
    else:
        require_arrays(component, "loss_tree")
    batch = checked_batch(as_batch(component, batch))
    mode = mode or bound_mode(component) or Eval(key)
    return _node("loss", bind(component, mode), batch)


def _node(name: str, part: Any, batch: Any, entries: Mapping[str, Any] | None = None) -> LossNode:
    """The node of a component; `entries` are its losses, if they are known."""
    system, kind = _unwrap(part, batch)
    summed = isinstance(system, System) and sums_its_losses(part, batch)
    if not summed and not _has_entries(system, batch):
        return _entry(name, loss(part, batch), kind, "", batch)
    entries = dict(losses(part, batch) if entries is None else entries)  # type: ignore[arg-type]
    total = example_mean(reduce_losses(part, entries, batch) if summed else loss(part, batch), batch)
    inside, batch_inside = _through(system, batch, entries)
    found, terms = named_parts(inside, Model, System), _terms(inside)
    children = {}
    for key, entry in entries.items():
        inner = found.get(key)
        own = batch_inside if inner is None else part_batch(inner, key, batch_inside)
        if isinstance(inner, System) and isinstance(entry, Mapping):
            children[key] = _node(key, inner, own, entry)
        else:
            of_part = "" if inner is None else _unwrap(inner, own)[1], ""
            children[key] = _entry(key, entry, *terms.get(key, of_part), own)
    method = reduce_losses.method(part, entries, batch) if summed else loss.method(part, batch)
    note = "" if method.hints[0] in (System, Defence) else f"by {method} at {place(method.location, method.module)}"
    return LossNode(name, kind, float(total), None, children, note)


def _has_entries(system: Any, batch: Any) -> bool:
    """Whether a system with its own `loss` also has its own `losses`."""
    return isinstance(system, System) and losses.has(system, batch) and losses.method(system, batch).hints[0] is not System


def _through(system: Any, batch: Any, entries: Mapping[str, Any]) -> tuple[Any, Any]:
    """The system that has the entries as fields, and its batch: a wrapper may return the entries of its part."""
    while isinstance(system, Wrapper) and not set(entries) & set(named_parts(system)):
        system, batch = system.__part__, inner(batch)
    return system, batch


def _entry(name: str, entry: Any, kind: str, note: str, batch: Any) -> LossNode:
    if isinstance(entry, Mapping):
        children = {key: _entry(key, inner, "", "", batch) for key, inner in entry.items()}
        return LossNode(name, kind, sum(child.value for child in children.values()), None, children)
    examples = jnp.shape(entry)[0] if jnp.ndim(entry) == 1 else None
    return LossNode(name, kind, float(example_mean(entry, batch, f"the loss {name!r}")), examples, note=note)


def _terms(system: Any) -> dict[str, tuple[str, str]]:
    """For a system with an objective, the type and the formula with weight of each term."""
    objective = getattr(system, "objective", None)
    if not isinstance(objective, Objective):
        return {}
    found = {}
    for name, term in objective.by_name().items():
        kind = type(term.objective if isinstance(term, Scaled | Scheduled) else term).__name__
        found[name] = kind, "" if repr(term) == f"{kind}()" else repr(term)
    return found


def _unwrap(part: Any, batch: Any) -> tuple[Any, str]:
    """The part to which wrappers without their own `losses` pass the call, and the types on the way."""
    kinds = [type(part).__name__]
    while isinstance(part, Wrapper) and not _has_own_losses(part, batch):
        part = part.__part__
        kinds.append(type(part).__name__)
    return part, "(".join(kinds) + ")" * (len(kinds) - 1)


def _has_own_losses(wrapper: Wrapper, batch: Any) -> bool:
    if not losses.has(wrapper, batch):
        return False
    hint = losses.method(wrapper, batch).hints[0]
    return any(issubclass(member, Wrapper) for member in typing.get_args(hint) or (hint,))
