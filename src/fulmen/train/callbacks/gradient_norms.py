"""`GradientNorms`: logs the norms of the gradients at an interval."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.part_defaults import augmented
from fulmen.compose.vectorized import over_states
from fulmen.core import Last, State, Structure, Train, covers, per_structure
from fulmen.core.leaves import PARAMETER, branches, leaves
from fulmen.core.verbs import as_batch, due, on, restore_run_state, run_state
from fulmen.dispatching.registry import dispatch
from fulmen.train.accumulate import plain
from fulmen.train.events import Due, EpochEnd, FitStart
from fulmen.train.every_interval import Every
from fulmen.train.gradients import differentiate


class GradientNorms:
    """A callback that logs the Euclidean norms of the gradients: `gradient_norm`, and `gradient_norm/…` for each part of the model.

    At the interval it computes the gradient of the newest batch once more, with the updated parameters, in a separate program; other
    steps cost nothing. The logs of an epoch have the newest norms. The parts are those at the highest level at which several have
    parameters. Of a population, the norms are the members' mean, with `…/std` and `…/members`.

    Args:
        every: the interval, such as `fm.Every(steps=100)`.

    >>> data = jnp.ones((8, 4)), jnp.zeros(8, int)
    >>> system = fm.Classifier(fm.models.MLP(4, 8, 3))
    >>> options = dict(optimizer=optax.sgd, lr=0.1, steps=4, callbacks=[fm.GradientNorms()], progress=False)
    >>> [name for name in fm.fit(system, data, **options)[1] if "norm" in name]
    ['gradient_norm', 'gradient_norm/model.layers.0', 'gradient_norm/model.layers.2']
    """

    def __init__(self, every: Every = Every(steps=100)) -> None:
        self.every = every
        self.newest: dict[str, Any] = {}

    def measure(self, run: Any) -> None:
        """Compute the norms for the newest batch."""
        state = run.arrays()
        norms = jax.device_get(_norms(state.structure, state.arrays, state.raw_key, state.step, run.batch))
        self.newest = {name: plain(value) for name, value in norms.items()}


@dispatch
def due(callback: GradientNorms):
    return callback.every


@dispatch
def on(event: FitStart, callback: GradientNorms, run):
    if not run.done:  # the run is not resumed
        callback.newest = {}


@dispatch
def on(event: Due, callback: GradientNorms, run):
    if event.by != "epochs":  # the logs of the epoch are complete
        callback.measure(run)
        run.logs.update(callback.newest)


@dispatch
def on(event: EpochEnd, callback: GradientNorms, run):
    if run.batch is not None and (not callback.newest or callback.every.at_epoch(run.epoch + 1)):
        callback.measure(run)
    run.logs.update(callback.newest)


@dispatch
def run_state(callback: GradientNorms):
    return {name: np.asarray(value).tolist() for name, value in callback.newest.items()}


@dispatch
def restore_run_state(callback: GradientNorms, saved):
    callback.newest = {name: plain(np.asarray(value)) for name, value in saved.items()}


@per_structure()
def _norms(structure: Structure, arrays: list[Any], raw_key: Any, step: Any, raw: Any) -> dict[str, Any]:
    state = State.of(arrays, raw_key, step, structure)
    mode = Train(jax.random.fold_in(state.key, state.step), state.step)
    batch = augmented(state.system, as_batch(state.system, raw), mode.at("augment"))
    _, norms = over_states(state.system, state, _member_norms, batch, mode)
    return {key: value for name, norm in norms.items() for key, value in norm.logged(name).items()}


def _member_norms(state: State, batch: Any, mode: Train) -> tuple[State, dict[str, Any]]:
    system = state.system
    _, gradients, _, _ = differentiate(system, batch, mode)
    squares = {leaf.path: jnp.square(jnp.abs(leaf.value)).astype(jnp.float32).sum() for leaf in leaves(gradients)}
    parts = branches(system, lambda leaf: leaf.role == PARAMETER)
    inside = {part: [v for path, v in squares.items() if covers(part, path)] for part in parts}
    norms = {"gradient_norm": [*squares.values()], **{f"gradient_norm/{part}": v for part, v in inside.items()}}
    return state, {name: Last(jnp.sqrt(sum(values, jnp.zeros(())))) for name, values in norms.items()}
