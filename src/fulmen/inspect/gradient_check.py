"""The checks of `check` that need values: the loss, the gradients and the buffers on one batch."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.game import players
from fulmen.core import Eval, Game, State, Train, covers, join_path
from fulmen.core.leaves import BUFFER, components, leaves
from fulmen.core.verbs import as_batch, augment, bind, predictions, update
from fulmen.inspect.findings import ERROR, OK, WARNING, Report
from fulmen.inspect.text import shortened
from fulmen.optimizers import groups
from fulmen.train.gradients import differentiate

_STEP_SIZE = 0.01
_ROUNDING = 0.01  # of half precision


def check_numbers(report: Report, state: State, raw: Any) -> None:
    """Check the loss, the gradients and the buffers on one batch."""
    with report.attempt("a step on one batch"):
        order = [leaf.path for leaf in leaves(state.system)]  # jit sorts dicts
        program = jax.jit(_numbers)
        found, moved = program(state, raw)
        # A layer that is initialised with zeros passes no gradient on, so the gradient is computed again after a small step.
        again, _ = program(moved, raw)
        (value, first, probabilities), (_, second, _) = jax.device_get((found, again))
        gradients = {path: (first[path][0] | second[path][0], first[path][1]) for path in order if path in first}
        has_buffers = any(leaf.role == BUFFER for leaf in leaves(state.system))
        buffers = jax.device_get(jax.jit(_changed_buffers)(state, raw)) if has_buffers else {}
        _check_outputs(report, [path for path, are in probabilities.items() if are])
        _check_loss(report, value)
        _check_gradients(report, state, gradients)
        _check_buffers(report, {path: buffers[path] for path in order if path in buffers})


def _numbers(state: State, raw: Any) -> tuple[Any, State]:
    """Figures of a batch, and the state after a small step of its system.

    The figures are the loss; for each parameter, whether its gradient is not 0 and is finite; for each prediction of classes, whether
    its outputs are probabilities.
    """
    component, mode = state.system, Train(state.key, state.step)
    batch = as_batch(component, raw)
    augmented = augment(component, batch, mode.at("augment"))
    value, slopes, _, _ = differentiate(component, augmented, mode)
    found = {leaf.path: ((leaf.value != 0).any(), jnp.isfinite(leaf.value).all()) for leaf in leaves(slopes)}
    flat, structure = jax.tree.flatten(component)
    pairs = zip(flat, structure.flatten_up_to(slopes), strict=True)
    moved = [v if g is None else v - jnp.asarray(_STEP_SIZE, g.dtype) * g for v, g in pairs]
    return (value, found, _are_probabilities(component, batch)), state.replace(system=structure.unflatten(moved))


def _changed_buffers(state: State, raw: Any) -> dict[str, Any]:
    """For each buffer, whether a training step changes it."""
    after, _ = update(state.system, state, as_batch(state.system, raw), Train(state.key, state.step))
    changed: dict[str, Any] = {}
    for old, new in zip(leaves(state.system), leaves(after.system), strict=True):
        if old.role == BUFFER:
            changed[old.path] = changed.get(old.path, False) | (old.value != new.value).any()
    return changed


def _are_probabilities(component: Any, batch: Any) -> dict[str, Any]:
    """For each prediction of classes, whether its outputs are probabilities."""
    y: Any = getattr(batch, "y", None)
    if np.ndim(y) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        return {}
    try:
        found = {path: each.outputs for path, each in predictions(bind(component, Eval()), batch).items()}
    except Exception:  # a system whose outputs are elsewhere, or drawn at random
        return {}
    few = {path: z for path, z in found.items() if np.ndim(z) == 2 and z.shape[1] > 1}
    return {path: (z >= 0).all() & (jnp.abs(z.sum(1) - 1) < _ROUNDING).all() for path, z in few.items()}


def _check_outputs(report: Report, probabilities: list[str]) -> None:
    for path in probabilities:
        advice = "remove the softmax from the model: objectives and metrics of classes take logits"
        report.add(WARNING, "outputs: probabilities, where logits are expected", path, advice)


def _check_loss(report: Report, value: Any) -> None:
    if np.isfinite(value):
        report.add(OK, f"loss: {float(value):.6g} on the first batch")
    else:
        advice = "look for logarithms of 0, divisions by 0 and overflow; fm.loss_tree(system, batch) shows the entry"
        report.add(ERROR, f"loss: {float(value)} on the first batch", "", advice)


def _check_gradients(report: Report, state: State, gradients: dict[str, Any]) -> None:
    paths = [leaf.path for leaf in leaves(state.system)]
    trained = {paths[i] for group in groups(state.system, state.optimizer, state.plan) for i in group.members}
    infinite = [path for path, (_, finite) in gradients.items() if not finite]
    if infinite:
        what = f"gradient: not finite at {len(infinite)} parameters"
        report.add(ERROR, what, shortened(infinite), "look for square roots and norms at 0")
    zero = [path for path, (reached, _) in gradients.items() if path in trained and not reached]
    for game, player, path, names in _players(state.system, trained):
        if names and names <= {*zero}:
            zero = [name for name in zero if name not in names]
            advice = f"give `losses` of {game} an entry {player!r} that depends on them: no other entry trains them"
            report.add(ERROR, f"game: no entry of `losses` depends on the parameters of {player!r}", path, advice)
    if zero:
        advice = (
            "use the part in `loss`, outside of stop_gradient. If it should not be trained: `fm.frozen`, or `fm.Frozen(part)`. "
            "Gradients may also cancel, such as that of the last bias of a critic"
        )
        what = f"gradient: exactly 0 for {len(zero)} of {len(trained)} parameter arrays"
        report.add(WARNING, what, shortened(zero), advice)
    elif not infinite and report.ok:
        report.add(OK, f"gradient: reaches all {len(trained)} parameter arrays")


def _players(component: Any, trained: set[str]) -> Iterator[tuple[str, str, str, set[str]]]:
    """For every game in the tree and each of its players: the game's type, the player's name, path and parameters."""
    for path, part in components(component):
        for player in players(part) if isinstance(part, Game) else ():
            full = join_path(path, player)
            yield type(part).__name__, player, full, {name for name in trained if covers(full, name)}


def _check_buffers(report: Report, buffers: dict[str, Any]) -> None:
    unchanged = [path for path, changed in buffers.items() if not changed]
    if unchanged:
        advice = "the loss must depend on the result of `fm.record`; write `after_update` for updates that do not depend on the loss"
        report.add(
            WARNING, f"buffers: {len(unchanged)} of {len(buffers)} did not change in a step", shortened(unchanged), advice
        )
    elif buffers:
        report.add(OK, f"buffers: all {len(buffers)} change in a step")
