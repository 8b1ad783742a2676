"""`Game`: each entry of its losses is differentiated with respect to one player only, the one of its name."""

from collections.abc import Iterable, Mapping
from typing import Any

from fulmen.compose.loss_entries import checked_entries
from fulmen.core import Game, Train, is_part, items, parts, remake, still
from fulmen.core.leaves import PARAMETER, leaves
from fulmen.core.verbs import losses


def players(game: Game) -> dict[str, Any]:
    """The players of a game by path: its fields, and each component in a list, tuple or dict (`"critics.0"`)."""
    found: dict[str, Any] = {}
    for field, value in parts(game).items():
        inside = _players_in(value)
        found |= {f"{field}.{name}": player for name, player in inside.items()} if inside else {field: value}
    return found


def _players_in(value: Any) -> dict[str, Any]:
    """The components in a field that is a list, tuple or dict of them."""
    inside = dict(items(value)[0]) if isinstance(value, list | tuple | dict) else {}
    return inside if any(is_part(player) for player in inside.values()) else {}


@losses.around(Game)
def _losses_by_player(call, game, batch):
    """Every entry, with `stop_gradient` on everything but its player."""
    fields = list(parts(game))
    first = _by_player(game, call(_fixing_others(game, fields[0]), batch))
    if isinstance(game.mode, Train):
        _require_every_player(game, first)
    return {
        name: entry
        if owner(game, name) == fields[0]
        else _by_player(game, call(_fixing_others(game, owner(game, name)), batch))[name]
        for name, entry in first.items()
    }


def owner(game: Game, name: str) -> str:
    """The player that an entry of a game's losses belongs to, or the field whose players share the entry."""
    return name if name in players(game) else name.partition(".")[0]


def _fixing_others(game: Any, player: str) -> Any:
    """The game with `stop_gradient` on everything but a player."""
    field, _, name = player.partition(".")
    changes = {other: still(value) for other, value in parts(game).items() if other != field}
    if name:
        inside, structure = items(getattr(game, field))
        changes[field] = structure.unflatten([value if key == name else still(value) for key, value in inside])
    return remake(game, changes)


def _by_player(game: Game, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by player: a dict or list with an item for each player in a field becomes one entry per player."""
    fields, known, found, who = parts(game), players(game), {}, f"`losses` of {type(game).__name__}"
    for name, entry in checked_entries(game, entries).items():
        each = {f"{name}.{key}": value for key, value in _items(entry)}
        for path, value in (each if each.keys() & known.keys() else {name: entry}).items():
            field = path.partition(".")[0]
            if field not in fields:
                raise ValueError(f"{who} must have entries named after the fields, {', '.join(fields)}, got {path!r}.")
            if path not in (*known, field) and field not in known:
                raise ValueError(f"{who} has an entry {path!r}, but the players are: {', '.join(known)}.")
            if path in found:
                raise ValueError(f"{who} has two entries for {path!r}; leave one out.")
            found[path] = value
    return found


def _items(entry: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(entry, list | tuple):
        return enumerate(entry)
    return entry.items() if isinstance(entry, Mapping) else ()


def _require_every_player(game: Game, entries: Mapping[str, Any]) -> None:
    """Raise for a player with parameters that no entry would train."""
    owners = {owner(game, name) for name in entries}
    for name, player in players(game).items():
        if not owners & {name, name.partition(".")[0]} and any(leaf.role == PARAMETER for leaf in leaves(player)):
            raise ValueError(
                f"`losses` of {type(game).__name__} has no entry {name!r}, so nothing trains that player; add one. For a player "
                f"that is not trained, return 0.0 as its entry, or wrap it in fm.Frozen(…)."
            )
