"""`Game`: each entry of its losses is differentiated for the player of that name alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.compose.losses import named
from fulmen.core.component import Game, is_part, parts, still
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.mode import Train
from fulmen.core.tree import items, remake
from fulmen.core.verbs import losses

__all__ = ["owner", "players"]


def players(game: Game) -> dict[str, Any]:
    """The players of a game by path: its fields, and of a list, tuple or dict of components each one (`"critics.0"`)."""
    found: dict[str, Any] = {}
    for field, value in parts(game).items():
        inside = _inside(value)
        found |= {f"{field}.{name}": player for name, player in inside.items()} if inside else {field: value}
    return found


def _inside(value: Any) -> dict[str, Any]:
    """The components in a field that holds several."""
    inside = dict(items(value)[0]) if isinstance(value, list | tuple | dict) else {}
    return inside if any(is_part(player) for player in inside.values()) else {}


@losses.around(Game)
def _each_for_its_player(call, game, batch):
    """Every entry with all but its player under `stop_gradient`, wherever the losses of a game are asked for."""
    fields = list(parts(game))
    first = _by_player(game, call(_only(game, fields[0]), batch))
    if isinstance(game.mode, Train):
        _require_every_player(game, first)
    return {
        name: entry
        if owner(game, name) == fields[0]
        else _by_player(game, call(_only(game, owner(game, name)), batch))[name]
        for name, entry in first.items()
    }


def owner(game: Game, name: str) -> str:
    """Whose an entry of a game's losses is: a player, or a field of several that share it."""
    return name if name in players(game) else name.partition(".")[0]


def _only(game: Any, player: str) -> Any:
    """The game with nothing differentiated through what is not this player."""
    field, _, name = player.partition(".")
    changes = {other: still(value) for other, value in parts(game).items() if other != field}
    if name:
        inside, structure = items(getattr(game, field))
        changes[field] = structure.unflatten([value if key == name else still(value) for key, value in inside])
    return remake(game, changes)


def _by_player(game: Game, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by player: what is a dict or list by the players in a field becomes an entry of each."""
    fields, found = parts(game), {}
    for name, entry in named(game, entries).items():
        field, _, player = name.partition(".")
        if field not in fields:
            raise ValueError(
                f"`losses` of {type(game).__name__} has an entry {name!r}; in a Game each entry belongs to a player, and the "
                f"fields are: {', '.join(fields)}."
            )
        inside = _inside(fields[field])
        own = _apart(entry) if inside and not player else {}
        if not own.keys() & inside.keys():
            own = {player: entry}
        unknown = [key for key in own if key and inside and key not in inside]
        if unknown:
            raise ValueError(
                f"`losses` of {type(game).__name__} has an entry {f'{field}.{unknown[0]}'!r}, and the players in {field!r} are: "
                f"{', '.join(inside)}."
            )
        for key, value in own.items():
            path = f"{field}.{key}" if key else field
            if path in found:
                raise ValueError(f"`losses` of {type(game).__name__} has two entries for {path!r}; one was expected.")
            found[path] = value
    return found


def _apart(entry: Any) -> dict[str, Any]:
    if isinstance(entry, list | tuple):
        return {str(i): value for i, value in enumerate(entry)}
    return {str(key): value for key, value in entry.items()} if isinstance(entry, Mapping) else {}


def _require_every_player(game: Game, moved: Mapping[str, Any]) -> None:
    """Raise for a player that no entry would train."""
    owners = {owner(game, name) for name in moved}
    for name, player in players(game).items():
        if not owners & {name, name.partition(".")[0]} and any(leaf.role == PARAMETER for leaf in leaves(player)):
            raise ValueError(
                f"`losses` of {type(game).__name__} has no entry {name!r}, so nothing trains that player: give it one. What is "
                f"to stay as it is stands in fm.Frozen(…), or has an entry of 0.0."
            )
