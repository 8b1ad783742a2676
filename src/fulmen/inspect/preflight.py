"""`check`: all that can be found out before a long run, on one small batch."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import inspect
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.compose.example_means import total_loss
from fulmen.compose.game import players
from fulmen.compose.part_defaults import augmented
from fulmen.core import verbs as contracts
from fulmen.core.component import Game, fold_name, unbind
from fulmen.core.leaves import BUFFER, PARAMETER, check_fields, components, leaves
from fulmen.core.mode import Eval, Plan, Train
from fulmen.core.state import State
from fulmen.core.verbs import as_batch, augment, bind, init, setup, update, validate
from fulmen.data.arrays import count
from fulmen.data.iterables import describe_data
from fulmen.data.source import Source
from fulmen.dispatching.registry import AmbiguousMethodError, MissingMethodError, ambiguities, verbs
from fulmen.inspect.text import Picture, html_page, html_table, place, render_table
from fulmen.optimizers import MissingOptimizerError, groups
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.gradients import differentiate
from fulmen.train.setup import check_component
from fulmen.train.step_logs import observe

__all__ = ["Finding", "Report", "check"]

OK, WARNING, ERROR = "ok", "warning", "error"
_SHOWN = 5  # paths in a finding
_LONG_RUN = 1_000_000  # steps, for schedules of a run whose length was not said
_NUDGE = 0.01


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        level: `"ok"`, `"warning"` (the run goes through, and may not do what is meant) or `"error"` (it would fail).
        what: what was looked at and found.
        where: a path in the component, or a file and line.
        advice: what to do.
    """

    level: str
    what: str
    where: str = ""
    advice: str = ""


class Report(Picture):
    """What `check` found; prints as a table.

    Attributes:
        name: of the component's type.
        findings: a `Finding` each.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.findings: list[Finding] = []
        self._stops = 0  # of what was looked at, also where the same was found before

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        """The findings that would end a run."""
        return [f for f in self.findings if f.level == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that a run goes through with."""
        return [f for f in self.findings if f.level == WARNING]

    def _title(self) -> str:
        counts = [
            f"{len(some)} {word}{'s' * (len(some) > 1)}"
            for some, word in ((self.errors, ERROR), (self.warnings, WARNING))
            if some
        ]
        return f"{self.name}: {', '.join(counts) or 'nothing stands in the way of a run'}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [(f.level, f.what, f.where, f.advice) for f in self.findings]

    def _text(self) -> str:
        return f"{self._title()}\n{render_table(_COLUMNS, self._cells())}"

    def _repr_html_(self) -> str:
        def cell(text: str) -> str:
            return f'<span style="white-space:pre-wrap">{html.escape(text)}</span>'

        return html_page(html.escape(self._title()), html_table(_COLUMNS, [[*map(cell, row)] for row in self._cells()]))

    def _add(self, level: str, what: str, where: str = "", advice: str = "") -> None:
        self.findings.append(Finding(level, what, where, advice))

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """What raises in here is a finding."""
        try:
            yield
        except Exception as error:
            self._stops += 1
            first, _, rest = str(error).strip().partition("\n")
            name = "" if isinstance(error, MissingMethodError | AmbiguousMethodError) else f"{type(error).__name__}: "
            said = f"{name}{first}"
            if not any(known.what.endswith(said) for known in self.errors):
                self._add(ERROR, f"{what}: {said}", _where(error), rest.strip("\n"))


_COLUMNS = ("", "what", "where", "what to do")


def check(
    component: Any,
    data: Any,
    *,
    optimizer: Any = None,
    lr: Any = None,
    seed: int | None = 0,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> Report:
    """Look at everything that can go wrong in a long run: a few seconds, on one batch of the data. Raises nothing.

    Data and fields; a method for every call, and none ambiguous; shapes; a loss that is one finite number; a gradient that
    reaches every parameter; a game's entries that depend on their players; buffers that move; a step that keeps structure,
    shapes and types; evaluation.

    Args:
        component: a component, drawn or not, or a `State`.
        data: as for `fit`; arrays in memory are all looked at, and of other sources the first batch.
        optimizer, lr, seed, epochs, steps, batch_size, **options: as for `setup`. Without an optimizer anywhere, a warning
            is given and the rest is looked at with plain gradient descent.

    Returns:
        A report that prints as a table: `ok`, `findings`.
    """
    if isinstance(component, State):
        optimizer = component.optimizer if optimizer is None else optimizer
        component = component.system
    report = Report(type(component).__name__)
    with report._step("data"):
        source = Source.with_first(data)
        plan = source.plan(usual=batch_size, epochs=epochs, steps=steps, seed=seed)
        raw = source.first(plan)
        data = source.data if source.in_memory else raw
        which = "" if source.in_memory else f" in the first batch of {describe_data(source.data)}"
        report._add(OK, f"data: {count(data):,} examples{which}, finite, of types that jax takes")
    with report._step("fields"):
        check_component(component)  # as it was given: its parts are other objects once it is unbound
        component = unbind(component)
    if not report.ok:
        return report
    key = jax.random.key(0 if seed is None else seed)
    with report._step("arrays"):
        component = init(component, fold_name(key, "init"))
        check_fields(component)
        trained = sum(np.size(leaf.value) for leaf in leaves(component) if leaf.role == PARAMETER)
        report._add(OK, f"component: {trained:,} parameters drawn")
    if not report.ok:
        return report
    with report._step("data for this component"):
        validate(component, as_batch(component, data))
    _check_tracing(report, component, raw, key)
    _check_ambiguities(report, component)
    if report.ok:
        length = _LONG_RUN if epochs is None and steps is None else plan.total_steps
        options = {**options, "lr": lr, "seed": seed, "batch_size": count(raw), "steps": length}
        state = _check_step(report, component, raw, optimizer, options)
        if state is not None:
            _check_numbers(report, state, raw)
    return report


def _check_tracing(report: Report, component: Any, raw: Any, key: Any) -> None:
    """Every method that a step and an evaluation call, with shapes alone."""
    before = report._stops

    def train(raw: Any) -> Any:
        mode = Train(key)
        batch = augmented(component, as_batch(component, raw), mode.at("augment"))
        return total_loss(bind(component, mode), batch)

    def evaluate(raw: Any) -> Any:
        return observe(component, as_batch(component, raw), Eval(key))

    for what, function in (("the loss in training", train), ("evaluation", evaluate)):
        with report._step(what):
            jax.eval_shape(function, raw)
    if report._stops == before:
        report._add(OK, "methods: there is one for every call in training and evaluation, and the loss is one number")


def _check_ambiguities(report: Report, component: Any) -> None:
    """Pairs of methods that would clash for the types in the tree, also where this run does not call them."""
    kinds = {type(part) for _, part in components(component)}
    clashes = 0
    for verb in verbs():
        for a, b, types in ambiguities(verb):
            if types and any(issubclass(kind, types[0]) for kind in kinds):
                clashes += 1
                signature = ", ".join(kind.__name__ for kind in types)
                where = ", ".join(place(m.location, m.module) for m in (a, b))
                what = f"dispatch: {a} and {b} both fit {verb.__name__}({signature}), and neither is more specific"
                report._add(WARNING, what, where, f"write {verb.__name__}({signature})")
    if not clashes:
        report._add(OK, "dispatch: no two methods clash for these types")
    for verb in (getattr(contracts, name) for name in contracts.__all__):
        for method in verb.methods:
            if method.written[:1] == (inspect.Parameter.empty,):
                where = place(method.location, method.module)
                what = f"dispatch: {method} stands for every type that has no method of its own"
                report._add(WARNING, what, where, "annotate its first argument, with `object` where that is meant")


def _check_step(report: Report, component: Any, raw: Any, optimizer: Any, options: dict[str, Any]) -> State | None:
    if optimizer is None:
        try:
            groups(component, None, Plan(total_steps=_LONG_RUN))
        except MissingOptimizerError as error:
            advice = "give optimizer= and lr= here as to `fit`, or write `configure_optimizers`"
            what = f"optimizer: no optimizer for {error.path!r}; plain gradient descent was used here"
            report._add(WARNING, what, "", advice)
            optimizer, options = (
                optax.sgd(1e-3),
                {k: options[k] for k in ("seed", "batch_size", "steps")},
            )
        except Exception:
            with report._step("optimizer"):
                raise
            return None
    with report._step("a step"):
        said: list[warnings.WarningMessage] = []
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                state = setup(component, raw, optimizer=optimizer, **options)
        finally:  # where it raises, too
            for one in said:
                if one.category is UserWarning:
                    report._add(WARNING, str(one.message))
                else:
                    warnings.warn(one.message, stacklevel=3)
        report._add(OK, "a step: keeps structure, shapes and types")
        for n, names in update_schedule(state).names.items():
            report._add(OK, f"rates: moves in the last of every {n} steps", _some(names))
        return state
    return None


# What only numbers show


def _check_numbers(report: Report, state: State, raw: Any) -> None:
    """The loss, the gradient and the buffers on one batch."""
    with report._step("a step on one batch"):
        value, gradients, buffers = jax.device_get(jax.jit(_probe)(state, raw))
        order = [leaf.path for leaf in leaves(state.system)]  # jit sorts dicts
        _check_loss(report, value)
        _check_gradients(report, state, {path: gradients[path] for path in order if path in gradients})
        _check_buffers(report, {path: buffers[path] for path in order if path in buffers})


def _probe(state: State, raw: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The loss; of each parameter, whether a gradient reaches it and is finite; of each buffer, whether a step moves it."""
    component, mode = state.system, Train(state.key, state.step)
    given = as_batch(component, raw)
    batch = augment(component, given, mode.at("augment"))
    value, first, _, _ = differentiate(component, batch, mode)
    # A layer that begins at zero lets no gradient through at first: it is asked again a little further down.
    structure = jax.tree.structure(component)
    slopes = structure.flatten_up_to(first)
    moved = [
        v if g is None else v - jnp.asarray(_NUDGE, g.dtype) * g
        for v, g in zip(jax.tree.leaves(component), slopes, strict=True)
    ]
    _, second, _, _ = differentiate(structure.unflatten(moved), batch, mode)
    gradients = {}
    for a, b in zip(leaves(first), leaves(second), strict=True):
        gradients[a.path] = ((a.value != 0).any() | (b.value != 0).any(), jnp.isfinite(a.value).all())
    after, _ = update(component, state, given, mode)
    buffers: dict[str, Any] = {}
    for old, new in zip(leaves(component), leaves(after.system), strict=True):
        if old.role == BUFFER:
            buffers[old.path] = buffers.get(old.path, False) | (old.value != new.value).any()
    return value, gradients, buffers


def _check_loss(report: Report, value: Any) -> None:
    if np.isfinite(value):
        report._add(OK, f"loss: {float(value):.6g} on the first batch")
    else:
        advice = "look for logarithms of 0, divisions by 0 and overflow; fm.loss_tree(system, batch) shows which entry it is"
        report._add(ERROR, f"loss: {float(value)} on the first batch", "", advice)


def _check_gradients(report: Report, state: State, gradients: dict[str, Any]) -> None:
    known = [leaf.path for leaf in leaves(state.system)]
    trained = {known[i] for group in groups(state.system, state.optimizer, state.plan) for i in group.members}
    wild = [path for path, (_, finite) in gradients.items() if not finite]
    if wild:
        report._add(
            ERROR, f"gradient: not finite at {len(wild)} parameters", _some(wild), "look for square roots and norms at 0"
        )
    still = [path for path, (reached, _) in gradients.items() if path in trained and not reached]
    for game, player, path, names in _players(state.system, trained):
        if names and names <= {*still}:
            still = [name for name in still if name not in names]
            advice = f"give `losses` of {game} an entry {player!r} that depends on them: no other entry moves them"
            report._add(ERROR, f"game: no entry of `losses` moves the parameters of {player!r}", path, advice)
    if still:
        advice = (
            "use the part in `loss`, outside of stop_gradient; if it shall stay as it is: `fm.frozen`, or `fm.Frozen(part)`. "
            "Slopes may cancel, too, as those of a critic's last bias do"
        )
        report._add(
            WARNING, f"gradient: exactly 0 for {len(still)} of {len(trained)} parameter arrays", _some(still), advice
        )
    elif not wild and report.ok:
        report._add(OK, f"gradient: reaches all {len(trained)} parameter arrays")


def _players(component: Any, trained: set[str]) -> Iterator[tuple[str, str, str, set[str]]]:
    """Of every game in the tree: its type, a player, the player's path and parameters."""
    for path, part in components(component):
        for player in players(part) if isinstance(part, Game) else ():
            full = f"{path}.{player}" if path else player
            inside = {name for name in trained if name == full or name.startswith((f"{full}.", f"{full}["))}
            yield type(part).__name__, player, full, inside


def _check_buffers(report: Report, buffers: dict[str, Any]) -> None:
    still = [path for path, moved in buffers.items() if not moved]
    if still:
        advice = "does the loss depend on what `fm.record` returns? What must move regardless belongs in `after_update`"
        report._add(WARNING, f"buffers: {len(still)} of {len(buffers)} did not move in a step", _some(still), advice)
    elif buffers:
        report._add(OK, f"buffers: all {len(buffers)} move in a step")


def _some(paths: Iterable[str]) -> str:
    paths = [*paths]
    return "\n".join([*paths[:_SHOWN], *([f"and {len(paths) - _SHOWN} more"] if len(paths) > _SHOWN else [])])


def _where(error: BaseException) -> str:
    """The innermost line of the user's own code that an error came through."""
    libraries = [PurePath(__file__).parent.parent, PurePath(contextlib.__file__).parent]  # this one, and Python's
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = PurePath(frame.filename)
        packaged = {"site-packages", "dist-packages"} & {*file.parts} or str(file).startswith("<frozen")
        if not packaged and not any(folder in file.parents for folder in libraries):
            return place(f"{file}:{frame.lineno}", "__main__")
    return ""
