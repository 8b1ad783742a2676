"""The phases of a run, as types: `run_epoch` dispatches on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from fulmen.core.mode import Plan
from fulmen.core.verbs import run_epoch
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import evaluation_weights
from fulmen.train.evaluation import evaluate_source


class Phase:
    """A kind of epoch."""


@dataclasses.dataclass(frozen=True)
class Training(Phase):
    """Epochs in which each batch is a training step."""


@dataclasses.dataclass(frozen=True)
class Validation(Phase):
    """An evaluation of all examples, once.

    Args:
        data: the validation data; None for a subclass with a method that needs none.
    """

    data: Any = None


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """The batches of an evaluation, in order: an iterable.

    Attributes:
        source: the data.
        plan: the plan of one pass over it.
    """

    source: Source
    plan: Plan

    def __iter__(self) -> Iterator[Any]:
        return self.source.read(self.plan, 0)


@dispatch
def run_epoch(phase: Training, state, source, run):
    loop = run.loop
    if state is not loop.handed:
        loop.take(state)
    loop.run_epoch(iter(source))
    return loop.hand_out(), loop.epoch_logs()


@dispatch
def run_epoch(phase: Validation, state, source, run):
    weights, devices = evaluation_weights(state), state.devices
    return state, evaluate_source(weights, state.key, source.source, source.plan, owner=state.structure, devices=devices)


_of_training = run_epoch.method(Training(), None, None, None)


def trains_in_place(phase: Phase, run: Any) -> bool:
    """Whether the phase is the library's training, which may reuse the memory of the state that it is given."""
    return run_epoch.method(phase, None, None, run) is _of_training
