"""`Alternating`: the players of a game are updated one after another."""

from typing import Any

import jax

from fulmen.compose.game import owner, players
from fulmen.compose.part_defaults import augmented
from fulmen.core import Game, Wrapper, covers, first_field, join_path, part_name, parts, remake, unwrapped
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.tree import with_article
from fulmen.core.verbs import bind, intervals, losses, update, validate
from fulmen.dispatching.registry import dispatch
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.step import end_step, require_standard_steps


class Alternating(Wrapper):
    """A game whose players are updated one after another, in the order of its `losses`; each sees the updates before its own.

    All updates are in one compiled step, on one batch and with the same random numbers. The logged loss of a player is the one
    that its update differentiates; the total loss and the metrics are those before the step. Each player has its own optimizer
    state. A player that is not updated in a step (`fm.optimizers.every`, `intervals`) is skipped.

    Args:
        game: the game itself. `Alternating` defines its own training step, so wrappers are around it:
            `fm.Weighted(fm.systems.Alternating(game), weights)`.

    Raises:
        TypeError: in `setup`, for a wrapper around a game.

    >>> game, data = fm.testing.tiny("game")
    >>> state = fm.setup(fm.systems.Alternating(game), data, optimizer=optax.adam, lr=1e-3)
    >>> state, logs = fm.train_step(state, data)
    """

    game: Game


@dispatch
def validate(alternating: Alternating):
    if isinstance(alternating.game, Wrapper):
        got, name = with_article(type(alternating.game)), type(alternating.game).__name__
        inside = type(unwrapped(alternating.game)).__name__
        raise TypeError(
            f"Alternating.game must be the game itself, got {got}; write {name}(fm.systems.Alternating({inside}(…)), …)."
        )


@dispatch
def intervals(alternating: Alternating):
    name = part_name(type(alternating))
    return {f"{name}.{player}": 1 for player in players(alternating.game)}


@dispatch
def update(alternating: Alternating, state, batch, mode):
    path, game = "", state.system
    while not isinstance(game, Game):
        path, game = join_path(path, part_name(type(game))), first_field(game)
    require_standard_steps(game, state, batch, mode)
    batch = augmented(alternating, batch, mode.at("augment"))
    everything, logs = leaves(state.system), {}
    for player, entries in _in_order(game, state.system, batch, mode).items():
        others = {leaf.path for leaf in everything if not covers(join_path(path, player), leaf.path)} | mode.resting
        if all(leaf.path in others or leaf.role != PARAMETER for leaf in everything):
            continue
        value, gradients, moved, found = differentiate(state.system, batch, remake(mode, {"resting": frozenset(others)}))
        state = apply_gradients(state.replace(system=moved), gradients, value=value)
        mine = tuple(f"loss/{entry}/" for entry in entries)
        logs = {**found, **logs, **{name: v for name, v in found.items() if f"{name}/".startswith(mine)}}
    if not logs:
        logs = differentiate(state.system, batch, remake(mode, {"resting": frozenset(leaf.path for leaf in everything)}))[3]
    return end_step(state, batch, mode), logs


def _in_order(game: Any, system: Any, batch: Any, mode: Any) -> dict[str, list[str]]:
    """The players with the names of their entries, in the order of `losses`, then the players without entries."""
    names: list[str] = []
    jax.eval_shape(lambda: names.extend(losses(bind(system, mode), batch)))
    found: dict[str, list[str]] = {}
    for name in names:
        if name.partition(".")[0] in parts(game):  # a wrapper around the game may add entries
            found.setdefault(owner(game, name), []).append(name)
    rest = (player for player in players(game) if not found.keys() & {player, player.partition(".")[0]})
    return {**found, **{player: [] for player in rest}}
