"""The entries of a system's loss: the defaults of `loss`, `losses` and `reduce_losses`, and the entries' names in the logs."""

import functools
import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

from fulmen.compose.example_means import example_mean
from fulmen.core import Game, Model, System, Wrapper, named_parts, parts_of, remake, short, sums_losses
from fulmen.core.verbs import as_batch, loss, losses, reduce_losses, update
from fulmen.dispatching.compiled_code import generation
from fulmen.dispatching.registry import dispatch, verb

__all__: list[str] = []  # the verb is private

T = TypeVar("T")


def part_batch(part: Any, name: str, batch: Any) -> Any:
    """The batch of a part: the one that the data or `augment` gave it, or `as_batch(part, batch)`."""
    given = parts_of(batch)
    if not given:
        return as_batch(part, batch)
    if name not in given:
        raise ValueError(f"the data has batches for {', '.join(given)}, but none for {name!r}; add an entry {name!r}.")
    return given[name]


@verb
def entry_part(system, name, batch):
    """The part whose loss the entry `name` of `losses` is (None if it is no part's), and the batch of that loss.

    **Extending.** Overload it for a system whose entries do not have the names of its fields.
    """


@dispatch
def entry_part(component: object, name, batch):
    return None, batch


@dispatch
def entry_part(system: System, name, batch):
    part, given = named_parts(system, Model, System).get(name), parts_of(batch)
    if part is None or (given and name not in given):
        return part, batch
    return part, part_batch(part, name, batch)


# Defaults


@sums_losses
def _sum_of_losses(system: System, batch):
    return reduce_losses(system, entries_of(system, batch), batch)


loss.dispatch(_sum_of_losses)


def sums_its_losses(system: Any, batch: Any) -> bool:
    """Whether a system's loss is the default: its `losses`, reduced."""
    return loss.method(system, batch).function is _sum_of_losses


def _losses_of_parts(system: System, batch):
    found = named_parts(system, Model, System)
    if not found:
        raise TypeError(
            f"{type(system).__name__} has no part with a loss. Write `losses(system: {type(system).__name__}, batch)`, or give "
            "it models or systems as fields."
        )
    batches = {name: part_batch(part, name, batch) for name, part in found.items()}
    for name, part in found.items():
        if not loss.has(part, batches[name]):
            kind, given = type(system).__name__, ", mode" if isinstance(system, Game) else ""
            raise TypeError(
                f"{kind} has no method of `losses`, and its part {name!r}, a {type(part).__name__}, has no loss: write "
                f"`losses(system: {kind}, batch{given})`, which returns a dict from the names of the fields to their losses, or make "
                "the part a system, such as fm.Classifier(model)."
            )
    return {name: part_entry(part, batches[name]) for name, part in found.items()}


losses.dispatch(_losses_of_parts)


def has_losses_of_parts(system: Any, batch: Any) -> bool:
    """Whether a system's `losses` are the default: those of its parts, each on its own batch."""
    return losses.method(system, batch).function is _losses_of_parts


def part_entry(part: Any, batch: Any) -> Any:
    """The entry of a part in its system's `losses`: the part's `losses` if its loss is the default, else its loss."""
    if isinstance(part, System) and sums_its_losses(part, batch):
        return checked_entries(part, losses(part, batch))
    return loss(part, batch)


def checked_entries(system: Any, entries: Any) -> Mapping[str, Any]:
    """The entries that `losses` of a system returned; raises a TypeError unless they are a dict."""
    if not isinstance(entries, Mapping):
        raise TypeError(
            f"`losses` of {type(system).__name__} must return a dict with one entry per part of the loss, such as "
            f"dict(main=…), got {short(entries)}. Return one number, or one per example, from `loss`."
        )
    return entries


def with_entries(system: Any, batch: Any) -> Any:
    """The batch with the entries of a system that is in no wrapper attached, so that loss and logs do not both compute them."""
    return remake(batch, {"_entries": (system, batch, entries_of(system, batch))})


def entries_of(system: Any, batch: Any) -> Mapping[str, Any]:
    """The entries that `losses` of a system returns; those attached to the batch, unless it has been changed since."""
    owner, before, entries = getattr(batch, "__dict__", {}).get("_entries", (None, None, {}))
    if owner is innermost(system, batch) and _same(before, batch):
        return entries
    return checked_entries(system, losses(system, batch))


def _same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same arrays."""
    (a, before), (b, after) = map(jax.tree.flatten, (one, other))
    return before == after and all(map(operator.is_, a, b))


def reduces_losses(system: Any, batch: Any) -> bool:
    """Whether a system's loss is made of its `losses`."""
    return isinstance(system, System) and sums_losses.on(loss.method(system, batch)) and losses.has(system, batch)


def innermost(system: Any, batch: Any) -> Any:
    """The system whose `losses` are those of a wrapper, which may be in other wrappers."""
    while isinstance(system, Wrapper) and not isinstance(system, losses.method(system, batch).members[0]):
        system = system.__part__
    return system


@dispatch
def reduce_losses(system: System, losses, batch):
    if not losses:
        raise ValueError(f"`losses` of {type(system).__name__} must return at least one entry, got {{}}.")
    return added(reduced_entries(system, losses, batch, f"of {type(system).__name__}"))


def require_own_loss(wrapper: Wrapper) -> None:
    """Raise for a wrapper with a method of `losses` or `reduce_losses` and none of `loss`, which would be that of its part.

    A wrapper with a method of `update` may use them there.
    """
    _require_own_loss(type(wrapper), generation())


@functools.lru_cache(maxsize=1024)
def _require_own_loss(kind: type, generation: int) -> None:
    verbs = loss, losses, reduce_losses, update
    own = {v.__name__ for v in verbs if any(m.is_own(kind, Wrapper) for m in v.methods)}
    if own and not own & {"loss", "update"}:
        name = kind.__name__
        raise TypeError(
            f"{name} has a method of `{min(own)}` and none of `loss`, and the loss of a wrapper without its own is that of its part: "
            f"the method would not count. Write\n\n    @dispatch\n    @fm.marks.sums_losses\n    def loss(system: {name}, batch): "
            "return reduce_losses(system, losses(system, batch), batch)\n"
        )


def reduced_entries(system: Any, entries: Mapping[str, Any], batch: Any, where: str, path: str = "") -> list[jax.Array]:
    """One number for each entry of `losses`, by `reduce_losses` of its part if that is a system; errors name `path` and `where`."""
    parts = {name: entry_part(system, name, batch) for name in entries}
    return [_reduced(part, entries[name], own, where, f"{path}{name}") for name, (part, own) in parts.items()]


def added(values: list[jax.Array]) -> jax.Array:
    """The sum of numbers that may have different precisions."""
    with jax.numpy_dtype_promotion("standard"):
        return sum(values[1:], values[0])


def _reduced(part: Any, entry: Any, batch: Any, where: str, path: str) -> jax.Array:
    if not isinstance(entry, Mapping):
        return example_mean(entry, batch, f"the loss {path!r} {where}")
    if isinstance(part, System):
        return reduce_losses(part, entry, batch)
    if not entry:
        raise ValueError(f"the loss {path!r} {where} must have at least one entry, got {{}}. Leave it out, or add an entry.")
    return added(reduced_entries(None, entry, batch, where, f"{path}/"))


# Names in the logs


def logged_losses(system: Any, entries: Mapping[str, Any], batch: Any) -> dict[str, jax.Array]:
    """The entries of a system's `losses` as they are logged: one number each, under names such as `loss/part/entry`."""
    return joined({"loss": _flat_means(system, entries, batch)})


def _flat_means(system: Any, entries: Mapping[str, Any], batch: Any) -> dict[str, jax.Array]:
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        part, own = entry_part(system, name, batch)
        nested = isinstance(entry, Mapping)
        found[name] = _flat_means(part, entry, own) if nested else {"": example_mean(entry, own, f"the loss {name!r}")}
    return joined(found)


def joined(groups: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Nested entries as one dict: `name/key` for the entry `key` of `name`, and `name` for an empty key.

    >>> from fulmen.compose.loss_entries import joined
    >>> joined({"digit": {"accuracy": 1, "error": 2}, "size": {"": 3}})
    {'digit/accuracy': 1, 'digit/error': 2, 'size': 3}
    """
    return {f"{name}/{key}" if key else name: value for name, group in groups.items() for key, value in group.items()}
