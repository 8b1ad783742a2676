"""`explain`: the methods that a call chooses, as a tree of calls; and a verb's methods as a table."""

from __future__ import annotations

import dataclasses
import html
import inspect
import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from fulmen.core import Component, Frozen, Model, System, Wrapper
from fulmen.core.leaves import TracedArraysError, described, is_array
from fulmen.core.verbs import fit, init
from fulmen.dispatching import hooks
from fulmen.dispatching.compiled_code import recorded
from fulmen.dispatching.location import place
from fulmen.dispatching.methods import Method
from fulmen.dispatching.registry import Verb, is_public
from fulmen.inspect.run_explanation import RunExplanation, explain_run
from fulmen.inspect.text import Picture, align, faint, first_line, html_code, html_page, html_table, tree_prefixes

_BASES = (object, Component, Frozen, Model, System, Wrapper)
_QUIET = ("after_update", "as_batch", "bind", "validate")  # called at every level; printed only where a user extends them
_COLUMNS = ("call", "method", "defined in")
_NEEDS_VALUES = (TracedArraysError, jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


@dataclasses.dataclass
class Call:
    """A call of a verb.

    Attributes:
        verb: the verb's name.
        types: the names of the arguments' types.
        context: the name of the mode's type, or None.
        method: the chosen method; None where a wrapper passes the call to its part.
        calls: the calls that the method makes.
        count: how often the same call is made here.
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

    @property
    def _chosen(self) -> str:
        return "handed to its part" if self.method is None else str(self.method)

    def _is_default(self) -> bool:
        """Whether this and all calls below choose the default method of a verb that is called at every level."""
        default = self.method is None or self.method.hints[0] in _BASES
        return self.verb in _QUIET and default and all(call._is_default() for call in self.calls)


def _all(calls: list[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        yield from _all(call.calls)


class Explanation(Picture):
    """The methods that a call chooses; prints as a tree.

    Attributes:
        name: the name of the verb or function.
        calls: a `Call` for each verb that is called, with the calls that it makes in turn.
        error: the error that ended the call early, or None.
    """

    def __init__(self, name: str, calls: list[Call], error: Exception | None = None) -> None:
        self.name, self.calls, self.error = name, calls, error

    def _lines(self) -> Iterator[tuple[str, Call]]:
        def below(calls: list[Call], prefix: str, context: str | None, root: bool = False) -> Iterator[tuple[str, Call]]:
            calls = [call for call in calls if call.verb == self.name or not call._is_default()]
            prefixes = [("", "")] * len(calls) if root else tree_prefixes(prefix, len(calls))
            for call, (own, inner) in zip(calls, prefixes, strict=True):
                # The mode is printed only where it changes.
                arguments = [*call.types, *([call.context] if call.context not in (None, context) else [])]
                times = f" × {call.count}" if call.count > 1 else ""
                yield f"{own}{call.verb}({', '.join(arguments)}){times}", call
                yield from below(call.calls, inner, call.context or context)

        return below(self.calls, "", None, root=True)

    def _notes(self) -> list[str]:
        hidden = sorted({call.verb for call in _all(self.calls) if call._is_default()} - {self.name})
        text = f"Not shown, where the default methods were chosen: {', '.join(hidden)}. `.calls` has them."
        notes = [text] if hidden else []
        if isinstance(self.error, _NEEDS_VALUES):
            notes.append(
                "stopped where values are needed, since `explain` computes nothing: explain `train_step` or `loss`."
            )
        elif self.error is not None:
            first_line = str(self.error).strip().partition("\n")[0]
            notes.append(f"stopped by {type(self.error).__name__}: {first_line}")
        return notes

    def _text(self) -> str:
        rows = [_COLUMNS, *((line, call._chosen, call.where) for line, call in self._lines())]
        text = align(rows) if self.calls else f"{self.name} called no verb."
        if max(map(len, text.splitlines())) > shutil.get_terminal_size((160, 24)).columns:
            text = align([(line, where) for line, _, where in rows])
        return "\n".join([text, *self._notes()])

    def _repr_html_(self) -> str:
        rows = [(html_code(line), html.escape(call._chosen), faint(call.where)) for line, call in self._lines()]
        body = html_table(_COLUMNS, rows) if rows else faint(f"{self.name} called no verb.")
        return html_page("", body + "".join(f"<div>{faint(note)}</div>" for note in self._notes()))


def explain(verb: Callable[..., Any], *args: Any, **options: Any) -> Explanation | RunExplanation:
    """The methods that a call chooses, nested as they call each other, each with its types, file and line.

    The call is traced with shapes in place of the arrays, so nothing is computed. A component without arrays gets the shapes
    that `init` would draw. Private verbs are left out; the calls that they make belong to their caller.

    For `fm.fit`, it is what runs at which event: `fm.explain(fm.fit, system, data, callbacks=[…])`.

    Args:
        verb: a verb, or any function that calls verbs.
        *args: its arguments.
        **options: its keyword arguments.

    Returns:
        An object that prints as a tree; `calls` is the tree as data. Where the call fails below the first verb, the tree
        ends there and `error` is the error.

    Raises:
        MissingMethodError: if the verb itself has no method for these arguments.
        AmbiguousMethodError: if it has two.

    >>> net = fm.models.Chain(fm.models.Flatten(), fm.models.Dense(6, 2))
    >>> [call.types for call in fm.explain(fm.forward, net, jnp.ones((1, 2, 3))).calls[0].calls]
    [('Flatten', 'array'), ('Dense', 'array')]
    """
    if verb is fit:
        return explain_run(*args, **options)
    if verb is not init:
        args = tuple(described(arg)[0] if isinstance(arg, Component) else arg for arg in args)
    leaves, structure = jax.tree.flatten(args)
    # Numbers and other leaves keep their types: methods may dispatch on them.
    arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
    error: Exception | None = None

    def call(arrays: dict[int, Any]) -> int:
        verb(*structure.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)]), **options)
        return 0

    def trace() -> None:
        nonlocal error
        from jax.experimental.xla_metadata import set_xla_metadata  # its value is part of the key of JAX's trace caches

        try:  # jit and remat trace their functions again; their caches are kept
            with set_xla_metadata(fulmen_explain=str(next(_numbers))):
                jax.eval_shape(call, arrays)
        except Exception as raised:
            error = raised

    calls = _nest(recorded(trace), verb)
    if error is not None and not calls:
        raise error
    return Explanation(getattr(verb, "__name__", repr(verb)), calls, error)


_numbers = itertools.count()


def _nest(recorded: list[tuple[int, Verb, tuple[type, ...], Any]], root: Any) -> list[Call]:
    top: list[Call] = []
    levels = [top]
    for depth, verb, (context, *types), answer in recorded:
        if verb is not root and not is_public(verb):
            levels[depth + 1 :] = [levels[depth]]
            continue
        mode = None if verb.context is None or context is type(None) else context.__name__
        call = Call(verb.__name__, tuple(map(_type_name, types)), mode, answer if isinstance(answer, Method) else None)
        levels[depth + 1 :] = [call.calls]
        levels[depth].append(call)
    return _merge(top)


def _merge(calls: list[Call]) -> list[Call]:
    """The calls with equal ones merged and counted."""
    merged: list[Call] = []
    for call in calls:
        call.calls = _merge(call.calls)
        known = next((other for other in merged if dataclasses.replace(call, count=other.count) == other), None)
        if known is None:
            merged.append(call)
        else:
            known.count += 1
    return merged


def _type_name(kind: type) -> str:
    arrays = (Tracer, np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)
    return "array" if issubclass(kind, arrays) else kind.__name__


def methods_table(verb: Any) -> str:
    """HTML with a verb's contract and the signature, location and first docstring line of each method."""
    rows = []
    for method in verb.methods:
        where = faint(place(method.location, method.module))
        rows.append((html.escape(str(method)), where, html.escape(first_line(method.function))))
    title = f"{html.escape(verb.__name__)}{html.escape(str(inspect.signature(verb.contract)))}"
    contract = f'<div style="padding-bottom:0.5em">{html.escape(first_line(verb.contract))}</div>'
    table = html_table(("method", "defined in", "description"), rows) if rows else faint("no methods yet")
    return html_page(title, contract + table)


hooks.verb_html = methods_table
