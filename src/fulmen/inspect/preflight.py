"""`check`: finds problems before a long run, on one small batch."""

import inspect
import warnings
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core import Eval, Plan, State, Train, fold_name, unbind
from fulmen.core import verbs as contracts
from fulmen.core.field_checks import check_fields
from fulmen.core.leaves import PARAMETER, components, leaves
from fulmen.core.verbs import as_batch, init, setup, validate
from fulmen.data.arrays import count
from fulmen.data.iterables import describe_data
from fulmen.data.source import Source
from fulmen.dispatching.find_ambiguities import ambiguities
from fulmen.dispatching.location import place
from fulmen.dispatching.registry import verbs
from fulmen.inspect.findings import OK, WARNING, Report
from fulmen.inspect.gradient_check import check_numbers
from fulmen.inspect.repeated_draws import repeated_draws
from fulmen.inspect.text import shortened
from fulmen.optimizers import MissingOptimizerError, groups
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.setup import check_component
from fulmen.train.step import training_loss
from fulmen.train.step_logs import observe

_LONG_RUN = 1_000_000  # steps of schedules, if the length of the run is unknown


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
    """Check a run before it starts: a few seconds, on one batch of the data. Problems are reported, not raised.

    Checks the data and the fields; that every call has a method, and none is ambiguous; shapes; that the loss is one finite
    number; that a gradient reaches every parameter; that each entry of a game depends on its player; that buffers change;
    that a step keeps structure, shapes and types; and evaluation.

    Args:
        component: a component with or without arrays, or a `State`.
        data: as for `fit`. Arrays in memory are checked completely, of other sources the first batch.
        optimizer, lr, seed, epochs, steps, batch_size, **options: as for `setup`. Without any optimizer, a warning is
            reported, and the other checks use plain gradient descent.

    Returns:
        A report that prints as a list; `ok` and `findings` are its data.
    """
    if isinstance(component, State):
        optimizer = component.optimizer if optimizer is None else optimizer
        component = component.system
    report = Report(type(component).__name__)
    with report.attempt("data"):
        source = Source.with_first(data)
        plan = source.plan(usual=batch_size, epochs=epochs, steps=steps, seed=seed)
        raw = source.first(plan)
        data = source.data if source.in_memory else raw
        which = "" if source.in_memory else f" in the first batch of {describe_data(source.data)}"
        report.add(OK, f"data: {count(data):,} examples{which}, finite, of types that JAX accepts")
    with report.attempt("fields"):
        check_component(component)  # before `unbind`, which copies parts that are shared
        component = unbind(component)
    if not report.ok:
        return report
    key = jax.random.key(0 if seed is None else seed)
    with report.attempt("arrays"):
        component = init(component, fold_name(key, "init"))
        check_fields(component)
        trained = sum(np.size(leaf.value) for leaf in leaves(component) if leaf.role == PARAMETER)
        report.add(OK, f"component: {trained:,} parameters drawn")
    if not report.ok:
        return report
    with report.attempt("data for this component"):
        validate(component, as_batch(component, data))
    _check_tracing(report, component, raw, key)
    _check_ambiguities(report, component)
    _check_annotations(report)
    if report.ok:
        length = _LONG_RUN if epochs is None and steps is None else plan.total_steps
        options = {**options, "lr": lr, "seed": seed, "batch_size": count(raw), "steps": length}
        state = _check_step(report, component, raw, optimizer, options)
        if state is not None:
            check_numbers(report, state, raw)
    return report


def _check_tracing(report: Report, component: Any, raw: Any, key: Any) -> None:
    """Every method that a step and an evaluation call, traced with shapes."""
    train = lambda raw: training_loss(component, raw, Train(key))
    evaluate = lambda raw: observe(component, as_batch(component, raw), Eval(key))
    for what, function in (("the loss in training", train), ("evaluation", evaluate)):
        with report.attempt(what):
            jax.eval_shape(function, raw)
    if report.ok:
        report.add(OK, "methods: every call in training and evaluation has one, and the loss is one number")
        for path, how in repeated_draws(component, Train(key), raw).items():
            what = f"randomness: {path} draws the same random numbers {how}"
            report.add(
                WARNING, what, "", "write fm.models.fold(layer, i)(x), with another i for each use, if they should differ"
            )


def _check_ambiguities(report: Report, component: Any) -> None:
    """Pairs of methods that are ambiguous for the types in the tree, even if this run does not call them."""
    kinds = {type(part) for _, part in components(component)}
    clear = True
    for verb in verbs():
        for a, b, types in ambiguities(verb, kinds):
            clear = False
            call = f"{verb.__name__}({', '.join(kind.__name__ for kind in types)})"
            where = ", ".join(place(m.location, m.module) for m in (a, b))
            report.add(
                WARNING, f"dispatch: {a} and {b} both fit {call}, and neither is more specific", where, f"write {call}"
            )
    if clear:
        report.add(OK, "dispatch: no ambiguous methods for these types")


def _check_annotations(report: Report) -> None:
    """Methods of the library's verbs whose first argument has no annotation."""
    for verb in (v for v in verbs() if getattr(contracts, v.__name__, None) is v):
        for method in verb.methods:
            if method.written[:1] == (inspect.Parameter.empty,):
                where = place(method.location, method.module)
                what = f"dispatch: {method} applies to every type without a more specific method"
                report.add(WARNING, what, where, "annotate its first argument, with `object` if this is intended")


def _check_step(report: Report, component: Any, raw: Any, optimizer: Any, options: dict[str, Any]) -> State | None:
    with report.attempt("optimizer"):
        if optimizer is None and _lacks_optimizer(report, component):
            optimizer, options = optax.sgd(1e-3), {k: options[k] for k in ("seed", "batch_size", "steps")}
    if not report.ok:
        return None
    with report.attempt("a step"):
        caught: list[warnings.WarningMessage] = []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                state = setup(component, raw, optimizer=optimizer, **options)
        finally:  # also after an error
            for one in caught:
                if one.category is UserWarning:
                    report.add(WARNING, str(one.message))
                else:
                    warnings.warn(one.message, stacklevel=3)
        report.add(OK, "a step: keeps structure, shapes and types")
        for n, names in update_schedule(state).names.items():
            report.add(OK, f"rates: updated in the last of every {n} steps", shortened(names))
        return state
    return None


def _lacks_optimizer(report: Report, component: Any) -> bool:
    try:
        groups(component, None, Plan(total_steps=_LONG_RUN))
    except MissingOptimizerError as error:
        what = f"optimizer: no optimizer for {error.path!r}; these checks use plain gradient descent"
        report.add(WARNING, what, "", "give optimizer= and lr= here as to `fit`, or write `configure_optimizers`")
        return True
    return False
