"""Verbs of a system that also take its state; raw data becomes the system's batch."""

from __future__ import annotations

from typing import Any

from fulmen.core import Eval, Mode, State, checked_batch
from fulmen.core.verbs import as_batch, bind, forward, loss, losses, metrics, predictions
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import evaluation_weights


def _bound(state: State, mode: Mode) -> Any:
    """The system in a mode; an evaluation without a key uses the state's, and the weights to evaluate."""
    if not isinstance(mode, Eval):
        return bind(state.system, mode)
    return bind(evaluation_weights(state), Eval(state.key) if mode.root is None else mode)


def _accept_states(verb: Any) -> None:
    @verb.dispatch
    def of_state(state: State, batch, mode: Mode):
        return verb(_bound(state, mode), checked_batch(as_batch(state.system, batch)))


for _verb in (losses, loss, metrics, predictions):
    _accept_states(_verb)


@dispatch
def forward(state: State, *inputs, mode: Mode):
    return forward(_bound(state, mode), *inputs)
