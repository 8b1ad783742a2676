"""The options of a run over data: its length, its batches, and quick looks; checked before the first step."""

from __future__ import annotations

from typing import Any

from fulmen.core import Plan, State, by_path, concrete, require_concrete, short
from fulmen.data.source import Source
from fulmen.devices.policies import BatchPlacement, require_divisible
from fulmen.devices.processes import require_equal, several
from fulmen.dispatching.warning import warn
from fulmen.optimizers import groups

READING = ("epochs", "steps", "batch_size", "seed", "drop_last", "limit")
"""The options that determine which batches a run reads."""


_LARGEST_RATE = 10.0


def overfitted(data: Any, overfit: Any, reading: dict[str, Any], usual: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The first `overfit` batches of the data alone, in order, and the options to read them; None: all of the data as it is."""
    if overfit is None:
        return data, reading
    source = Source.of(data)
    first = source.head(overfit, source.plan(reading.get("batch_size"), usual=usual))
    return first, {**reading, "seed": None, "drop_last": False}


def prepare(verb: str, state: State, data: Any, **reading: Any) -> tuple[Source, Plan]:
    """The checked data of a run, and the run's plan. The options are those in `READING`."""
    require_concrete(verb, "train_step(state, batch)", state, data)
    source = Source.of(data)
    if source.in_memory:
        source.validate(state.system, source.data)
    require_length(**reading)
    plan = source.plan(usual=state.plan.batch_size, **reading)
    if state.devices is not None:
        _require_equal_processes(state, source, plan)
        rows = plan.batch_size if source.examples else None
        require_divisible(state.devices, rows or 0)
        source.place = BatchPlacement(state.devices, rows)
    return source, plan


def _require_equal_processes(state: State, source: Source, plan: Plan) -> None:
    """Raise if another process would read other batches, or compute another step: one of them would wait for ever."""
    if several():
        require_equal("the run", {"examples": source.examples, "step": int(state.step), "plan": plan})
        require_equal("the policy", state.devices)
        require_equal("the state", {path: short(leaf) for path, leaf in by_path(state)})


def require_length(epochs: int | None = None, steps: int | None = None, **options: Any) -> None:
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"either `epochs` or `steps` must be given, got {got}; write epochs=10 or steps=1000.")


def warn_of_rate(lr: Any) -> None:
    """Warn of a learning rate with which nothing is trained, or nothing well."""
    rate = concrete(lr)
    if rate is not None and not rate.any():
        warn("lr is 0: nothing will be trained. To keep some parts as they are, write optimizer={path: fm.frozen, …}.")
    elif rate is not None and rate.max() > _LARGEST_RATE:
        warn(
            f"lr is {rate.max():.4g}: the loss will probably diverge. Usual rates are 1e-3 for optax.adam, and 0.1 for optax.sgd."
        )


def first_batch(state: State, epochs: int | None, plan: Plan) -> int:
    """How many batches of the data a run skips: `epochs` start with a whole epoch, `steps` where the state stopped."""
    done, each = int(state.step), plan.steps_per_epoch
    if epochs is None:
        return done
    return -(-done // each) * each if each else 0


def warn_past_plan(state: State, total: int | None) -> None:
    planned = state.plan.total_steps
    if planned is None or total is None or int(state.step) + total <= planned:
        return
    last = int(state.step) + total
    if any(
        g.built.end is not None and last > g.built.end * g.every for g in groups(state.system, state.optimizer, state.plan)
    ):
        warn(
            f"this run ends at step {last}, but the state's plan ends at {planned}: the learning rate's schedule is past its end. "
            "`fm.fit(state.system, …, optimizer=…)` starts a new schedule with the same arrays.",
        )
