"""`explain`: which methods a call chose, level by level, and where they are defined."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from fulmen.compose.raw_data import to_batch
from fulmen.core.component import Component, Frozen, Model, System, Wrapper
from fulmen.core.leaves import is_array
from fulmen.core.verbs import init, prepared
from fulmen.dispatching.registry import Method, Verb, recorded
from fulmen.inspect.abstract import described
from fulmen.inspect.text import Picture, align, faint, html_page, html_table, place, tree_prefixes

__all__ = ["Call", "Explanation", "explain"]

_BASES = (object, Component, Frozen, Model, System, Wrapper)  # a method for one of these says nothing of a type

_UNSEEN = (prepared, to_batch)  # steps of other verbs, by the type of a batch


@dataclasses.dataclass
class Call:
    """A call of a verb.

    Attributes:
        verb: its name.
        types: the names of the arguments' types.
        context: the name of the mode's type, or None.
        method: the method that was chosen; None where a wrapper handed the call to its part.
        calls: the calls that it made.
        count: how many times the same was called here.
    """

    verb: str
    types: tuple[str, ...]
    context: str | None
    method: Method | None
    calls: list[Call] = dataclasses.field(default_factory=list)
    count: int = 1

    @property
    def where(self) -> str:
        """The method's file and line."""
        return "" if self.method is None else place(self.method.location, self.method.module)

    def _same(self, other: Call) -> bool:
        return (
            (self.verb, self.types, self.context, self.count) == (other.verb, other.types, other.context, other.count)
            and self.method is other.method
            and len(self.calls) == len(other.calls)
            and all(a._same(b) for a, b in zip(self.calls, other.calls, strict=True))
        )

    def _is_plumbing(self) -> bool:
        """Whether it is there on every level, and says nothing: nobody overloaded it."""
        quiet = self.verb in ("after_update", "as_batch", "bind", "validate")
        quiet &= self.method is None or self.method.hints[0] in _BASES
        return quiet and all(call._is_plumbing() for call in self.calls)


def _all(calls: list[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        yield from _all(call.calls)


class Explanation(Picture):
    """The methods that a call chose; prints as a tree.

    Attributes:
        name: of what was called.
        calls: a `Call` for each verb that was called, with the calls that it made in turn.
        error: what ended the call early, or None.
    """

    def __init__(self, name: str, calls: list[Call], error: Exception | None = None) -> None:
        self.name, self.calls, self.error = name, calls, error

    def _lines(self) -> Iterator[tuple[str, Call]]:
        def walk(calls: list[Call], prefixes: list[tuple[str, str]], context: str | None) -> Iterator[tuple[str, Call]]:
            for call, (own, below) in zip(calls, prefixes, strict=True):
                # The mode is said where it begins and where it changes.
                shown = [*call.types, *([call.context] if call.context not in (None, context) else [])]
                times = f" × {call.count}" if call.count > 1 else ""
                yield f"{own}{call.verb}({', '.join(shown)}){times}", call
                inside = self._shown(call.calls)
                yield from walk(inside, tree_prefixes(below, len(inside)), call.context or context)

        top = self._shown(self.calls)
        yield from walk(top, [("", "")] * len(top), None)

    def _shown(self, calls: list[Call]) -> list[Call]:
        return [call for call in calls if call.verb == self.name or not call._is_plumbing()]

    def _left_out(self) -> str:
        names = {call.verb for call in _all(self.calls) if call._is_plumbing()} - {self.name}
        shown = ", ".join(sorted(names))
        return f"Not shown, where the default methods were chosen: {shown}. `.calls` has them." if shown else ""

    def _chosen(self, call: Call) -> str:
        return "handed to its part" if call.method is None else str(call.method)

    def _stopped(self) -> str:
        if self.error is None:
            return ""
        if isinstance(self.error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
            return "stopped where values are needed, since nothing is computed here: explain `train_step` or `loss` instead."
        if "PRNG key type <class 'NoneType'>" in str(self.error):
            return "stopped where something random is drawn, and the mode has no key: give one last, fm.Eval(jax.random.key(0))."
        lines = str(self.error).strip().splitlines() or [""]
        return f"stopped by {type(self.error).__name__}: {lines[0]}"

    def _text(self) -> str:
        rows = [("call", "method", "defined in"), *((line, self._chosen(c), c.where) for line, c in self._lines())]
        text = align(rows) if self.calls else f"{self.name} called no verb."
        if max(map(len, text.splitlines())) > shutil.get_terminal_size((160, 24)).columns:
            text = align([(line, where) for line, _, where in rows])
        return "\n".join(part for part in (text, self._left_out(), self._stopped()) if part)

    def _repr_html_(self) -> str:
        rows = []
        for line, call in self._lines():
            label = f'<span style="white-space:pre">{html.escape(line)}</span>'
            rows.append((label, html.escape(self._chosen(call)), faint(call.where)))
        body = html_table(("call", "method", "defined in"), rows) if rows else faint(f"{self.name} called no verb.")
        notes = [f"<div>{faint(note)}</div>" for note in (self._left_out(), self._stopped()) if note]
        return html_page("", body + "".join(notes))


def explain(verb: Callable[..., Any], *args: Any, **options: Any) -> Explanation:
    """Which methods a call would choose, nested as they call each other, each with its types, file and line.

    The call is traced with shapes in the arrays' places, so nothing is computed. A component whose arrays are not drawn
    yet is taken with the shapes that `init` would draw.

    Args:
        verb: a verb, or any function that calls verbs.
        *args: what to call it with.
        **options: its keywords.

    Returns:
        An object that prints as a tree, with `calls` as data. Where the call fails further down, it holds what was chosen
        up to there, and `error`.

    Raises:
        MissingMethodError: if the verb itself has no method for these arguments. AmbiguousMethodError: if it has two.

    >>> net = fm.models.Chain(fm.models.Flatten(), fm.models.Dense(6, 2))
    >>> [call.types for call in fm.explain(fm.forward, net, jnp.ones((1, 2, 3))).calls[0].calls]
    [('Flatten', 'array'), ('Dense', 'array')]
    """
    if verb is not init:
        args = tuple(described(arg)[0] if isinstance(arg, Component) else arg for arg in args)
    leaves, structure = jax.tree.flatten(args)
    # Numbers and what else is no array stay as they are: their types may be dispatched on.
    arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
    error: Exception | None = None

    def call(arrays: dict[int, Any]) -> int:
        verb(*structure.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)]), **options)
        return 0

    def trace() -> None:
        nonlocal error
        try:
            with _untraced_yet():
                jax.eval_shape(call, arrays)
        except Exception as raised:
            error = raised

    calls = _nest(recorded(trace))
    if error is not None and not calls:
        raise error
    return Explanation(getattr(verb, "__name__", repr(verb)), calls, error)


_numbers = itertools.count()


def _untraced_yet() -> contextlib.AbstractContextManager[Any]:
    """Where jit and remat find nothing that they traced before, and so call the verbs again. Their caches stay."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:  # then calls inside functions that were traced before are not seen
        return contextlib.nullcontext()
    return set_xla_metadata(fulmen_explain=str(next(_numbers)))


def _nest(recorded: list[tuple[int, Verb, tuple[type, ...], Any]]) -> list[Call]:
    top: list[Call] = []
    levels = [top]
    for depth, verb, (context, *types), answer in recorded:
        if verb in _UNSEEN:  # what it called counts as called by its caller
            levels[depth + 1 :] = [levels[depth]]
            continue
        mode = None if verb.context is None or context is type(None) else context.__name__
        call = Call(verb.__name__, tuple(map(_type_name, types)), mode, answer if isinstance(answer, Method) else None)
        levels[depth + 1 :] = [call.calls]
        levels[depth].append(call)
    return _merge(top)


def _merge(calls: list[Call]) -> list[Call]:
    """Equal calls at one place as one, with their number."""
    merged: list[Call] = []
    for call in calls:
        call.calls = _merge(call.calls)
        known = next((other for other in merged if dataclasses.replace(call, count=other.count)._same(other)), None)
        if known is None:
            merged.append(call)
        else:
            known.count += 1
    return merged


def _type_name(kind: type) -> str:
    arrays = (Tracer, np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)
    return "array" if issubclass(kind, arrays) else kind.__name__
