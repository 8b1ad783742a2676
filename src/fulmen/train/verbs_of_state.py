"""Verbs of a system that also take its state; raw data becomes the system's batch."""

from __future__ import annotations

from typing import Any

from fulmen.core.border import checked_batch
from fulmen.core.mode import Eval, Mode
from fulmen.core.state import State
from fulmen.core.verbs import as_batch, bind, forward, loss, losses, metrics, predictions
from fulmen.dispatching.registry import dispatch

__all__: list[str] = []


def _bound(state: State, mode: Mode) -> Any:
    """The system in a mode; an evaluation without a key uses the state's."""
    return bind(state.system, Eval(state.key) if isinstance(mode, Eval) and mode.root is None else mode)


@dispatch
def losses(state: State, batch, mode: Mode):
    return losses(_bound(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def loss(state: State, batch, mode: Mode):
    return loss(_bound(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def metrics(state: State, batch, mode: Mode):
    return metrics(_bound(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def predictions(state: State, batch, mode: Mode):
    return predictions(_bound(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def forward(state: State, *inputs, mode: Mode):
    return forward(_bound(state, mode), *inputs)
