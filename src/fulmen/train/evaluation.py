"""`evaluate` and `predict`: all the data, each example once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.compose.example_means import per_example
from fulmen.compose.supervised import check_inputs
from fulmen.compose.vectorized import attacked_batch, check_attack, members_of, over_members
from fulmen.core import Component, Eval, Plan, State, fold_name, keeps_rows, outputs_for, remake, short, unbind
from fulmen.core.leaves import require_arrays, require_concrete
from fulmen.core.structure import Structure, keep, pack, per_structure
from fulmen.core.verbs import as_batch, attack_warnings, bind, evaluate, for_examples, predict, validate
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.devices.placement import on_devices, replicated
from fulmen.devices.policies import Policy, on_rows
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.optimizers import evaluation_weights
from fulmen.train.accumulate import Ledger
from fulmen.train.step_logs import observe


@dispatch
def evaluate(state: State, data, *, attack=None, batch_size=None, devices=None):
    require_concrete("evaluate", "eval_step(state, batch)", state, data)
    state, source = on_devices(state, devices), checked_source(state.system, data)
    if attack is not None and source.in_memory:
        check_attack(state.system, attack, as_batch(state.system, source.data))
    return evaluate_source(state, source, _plan(source, batch_size, evaluation_size(state)), attack)


@dispatch
def evaluate(component: Component, data, *, attack=None, batch_size=None, devices=None):
    require_concrete("evaluate", "loss(component, batch)", component, data)
    require_arrays(component, "evaluate")
    return evaluate(_untrained(component, devices), data, attack=attack, batch_size=batch_size)


def _untrained(component: Component, devices: Policy | None) -> State:
    """A component as a state without an optimizer, whose programs are kept as long as the component."""
    state = on_devices(State(unbind(component), key=0), devices)
    keep(state.structure, component)
    return state


def evaluation_size(state: State) -> int:
    """The usual batch size: that of training, unless losses and metrics are per example."""
    return 256 if per_example(state.system) else state.plan.batch_size or 32


def checked_source(component: Any, data: Any, what: str = "data") -> Source:
    """The source of evaluation data; data in memory is validated as a whole."""
    source = Source.of(data, what)
    _require_once_each(source.data)
    if source.in_memory:
        source.validate(component, source.data)
    return source


@dispatch
def validate(attack: object, system, batch):
    several = "fm.WorstOf(*attacks)" if isinstance(attack, tuple | list) else "fm.PGD(region, step_size=0.01, steps=40)"
    written = f"{attack.__name__}(…)" if isinstance(attack, type) else several
    raise TypeError(f"evaluate: attack must be an Attack, got {short(attack)}; write {written}.")


def _require_once_each(data: Any) -> None:
    if getattr(data, "repeats_examples", False):
        raise ValueError(
            "Mixed repeats examples of the smaller set, so it cannot be evaluated exactly. Evaluate on pairs (x, y), or on the "
            "unlabelled examples alone."
        )


def _plan(source: Source, batch_size: int | None, usual: int) -> Plan:
    """The plan of one pass in order, with batches no larger than the data."""
    size = usual if batch_size is None else batch_size
    return source.plan(usual=size) if source.examples else source.plan(batch_size, usual=size)


def evaluate_source(state: State, source: Source, plan: Plan, attack: Any = None) -> dict[str, Any]:
    """`evaluate` on data that `checked_source` returned, by the plan of one pass over it.

    The metrics under the attack have the prefix `robust/`.
    """
    component, devices, key = evaluation_weights(state), state.devices, fold_name(state.key, "evaluate")
    attack_key, rowwise = fold_name(key, "attack"), per_example(component)
    leaves, structure = pack(component, devices)
    keep(structure, state.structure)
    clean, robust = [], []  # the logs of each batch; none is read before the last batch is dispatched
    suspicions: tuple[str, ...] = ()
    for number, (start, n, raw) in enumerate(_padded(source, plan, lambda raw: rowwise, devices)):
        source.validate(component, raw)
        batch = on_rows(_masked_batch(component, raw, start, n, rowwise), devices)
        mode = Eval(key, np.int32(number))
        clean.append(_measure(structure, leaves, batch, mode))
        if attack is not None:
            if not source.in_memory and not start:
                check_attack(component, attack, batch)
            own = _attack_on(attack, source, start, len(batch))
            perturbed = attacked_batch(component, own, batch, attack_key)
            robust.append(_measure(structure, leaves, perturbed, mode))
            if not start and not members_of(component, component):
                suspicions = attack_warnings(own, component, batch, perturbed)
    before, after = _totals(clean), _totals(robust)
    if attack is not None:
        _warn(suspicions, before.get("loss"), after.get("loss"))
    return {**before, **{f"robust/{name}": value for name, value in after.items()}}


def _attack_on(attack: Any, source: Source, start: int, n: int) -> Any:
    """The attack for a batch of `n` rows, of which those past the end of the data are padding."""
    if source.examples in (None, n):
        return attack
    return for_examples(attack, np.minimum(np.arange(start, start + n), source.examples - 1), source.examples)


def _warn(suspicions: tuple[str, ...], before: Any, after: Any) -> None:
    """Warn about an attack that is probably wrong; Python shows each warning once."""
    if np.ndim(before) == 0 and before is not None and after < before - 1e-6 * abs(before):
        lower = f"the loss under attack is lower than without, {after:.4g} and {before:.4g}: it may have the wrong sign."
        suspicions = (*suspicions, lower)
    for text in suspicions:
        warn(f"evaluate, attack: {text}")


@dispatch
def attack_warnings(attack: object, system, batch, attacked):
    return ()


def _padded(
    source: Source, plan: Plan, may_pad: Callable[[Any], bool], devices: Policy | None
) -> Iterator[tuple[int, int, Any]]:
    """`(start, n, raw)` of every batch, in order: the index of its first example, and how many of its rows are not padding.

    A batch is padded with copies of its first row, if `may_pad(raw)`: to the size of the first one, which is rounded up so that
    the devices have equally many rows.
    """
    start, size, parts = 0, None, 1 if devices is None else devices.size("data")
    with contextlib.closing(source.read(plan, 0)) as batches:
        for raw in batches:
            n = count(raw)
            size = -(-n // parts) * parts if size is None else size
            if n < size and may_pad(raw):
                raw = jax.tree.map(lambda v, more=size - n: np.concatenate([v, np.repeat(v[:1], more, 0)]), raw)
            yield start, n, raw
            start += n


def _masked_batch(component: Any, raw: Any, start: int, n: int, rowwise: bool) -> Any:
    """The batch with the index of each example in the data, and weight 0 for padding."""
    batch = as_batch(component, raw)
    _require_once_each(batch)
    rows = np.arange(len(batch), dtype=np.int32)
    changes: dict[str, Any] = {}
    if batch.index is None:
        changes["index"] = rows + np.int32(start)
    if n < len(batch) or rowwise:
        given = np.asarray(1 if batch.weight is None else batch.weight, np.float32)
        changes["weight"] = (rows < n).astype(np.float32).reshape(-1, *[1] * (given.ndim - 1)) * given
    return remake(batch, changes)


def _totals(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics over all batches from the logs of each."""
    if not batches:
        return {}
    ledger = Ledger(batches[0])
    for logs in batches:
        leaves = jax.tree.leaves([logs[name] for name in ledger.order])
        ledger.append(np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in leaves]))
    return ledger.read()


@per_structure()
def _measure(structure: Structure, leaves: list[Any], batch: Any, mode: Eval) -> dict[str, Any]:
    return replicated(observe(structure.unpack(leaves), batch, mode), *structure.extra)


@dispatch
def predict(state: State, data, *, batch_size=None, devices=None):
    require_concrete("predict", "forward(state, x)", state, data)
    state, source, key = on_devices(state, devices), Source.of(data), fold_name(state.key, "evaluate")
    component, devices = evaluation_weights(state), state.devices
    leaves, structure = pack(component, devices)
    keep(structure, state.structure)
    found = []
    padded = _padded(source, _plan(source, batch_size, 256), lambda raw: _keeps_rows(component, raw), devices)
    for number, (_, n, raw) in enumerate(padded):
        check_inputs(component, as_batch(component, raw))
        rows = slice(n if n < count(raw) else None)
        outputs = _outputs(structure, leaves, on_rows(raw, devices), Eval(key, np.int32(number)))
        if _keeps_rows(component, raw):
            _require_rows(outputs, count(raw))
        found.append(jax.tree.map(lambda v, rows=rows: np.asarray(v)[rows], outputs))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


@dispatch
def predict(component: Component, data, *, batch_size=None, devices=None):
    require_concrete("predict", "forward(component, x)", component, data)
    require_arrays(component, "predict")
    return predict(_untrained(component, devices), data, batch_size=batch_size)


def _require_rows(outputs: Any, n: int) -> None:
    """Raise unless the outputs have one row per example."""
    shapes = [np.shape(value) for value in jax.tree.leaves(outputs)]
    if any(shape[:1] != (n,) for shape in shapes):
        raise ValueError(
            f"predict: the model must return one row per example, got shape {', '.join(map(str, shapes))} for {n} examples. The first "
            "axis of data is that of the examples: a single one needs it too, x[None]."
        )


def _keeps_rows(component: Any, data: Any) -> bool:
    """Whether row i of the data becomes example i of the batch."""
    one = (members_of(component, component) or [component])[0]
    return keeps_rows.on(as_batch.method(one, data))


@per_structure()
def _outputs(structure: Structure, leaves: list[Any], raw: Any, mode: Eval) -> Any:
    component = structure.unpack(leaves)
    outputs = over_members(component, component, _forward, as_batch(component, raw), mode, axis=1)
    return replicated(outputs, *structure.extra)


def _forward(component: Any, batch: Any, mode: Eval) -> Any:
    return outputs_for(bind(component, mode), as_batch(component, batch))
