"""Which parameters are under which optimizer: by hand, by the methods' dicts, by path, by inheritance."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from fulmen.compose.vectorized import members_of
from fulmen.core.leaves import PARAMETER, components, leaves, parameter_paths
from fulmen.core.mode import Plan
from fulmen.core.paths import covers, join_path, matching_paths, nearest_above, similar_pattern
from fulmen.core.stacking import take
from fulmen.core.tree import children, get
from fulmen.core.verbs import configure_optimizers, intervals
from fulmen.dispatching.warning import warn
from fulmen.optimizers.optimizer import Built, FrozenMarker, build, frozen
from fulmen.optimizers.update_intervals import Every, fewer, whole
from fulmen.schedules.schedule_lengths import of_plan

__all__ = ["Group", "MissingOptimizerError", "groups", "warn_of_unreached_ends"]


class MissingOptimizerError(ValueError):
    """A parameter has no optimizer.

    Attributes:
        path: the path of the parameter.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


@dataclasses.dataclass(eq=False)
class Group:
    """Parameters under one transformation.

    Attributes:
        path: where the optimizer was given, or the pattern; empty for the root.
        built: their optimizer for the run.
        spec: the optimizer as it was given.
        members: the places of its parameters among the system's leaves.
        paths: of all leaves that rest when it does: its parameters, and what else lies where its optimizer was given.
    """

    path: str
    built: Built
    spec: Any = None
    members: list[int] = dataclasses.field(default_factory=list)
    paths: list[str] = dataclasses.field(default_factory=list)

    def select(self, tree: Any, like: Any) -> Any:
        """The tree with all but the group's leaves left out, in the structure of `like`."""
        structure = jax.tree.structure(like)
        members = set(self.members)
        values = structure.flatten_up_to(tree)
        return structure.unflatten([v if i in members else None for i, v in enumerate(values)])

    @property
    def every(self) -> int:
        """It is updated in the last of so many steps."""
        return self.built.every


def groups(system: Any, optimizer: Any, plan: Plan) -> list[Group]:
    """Which transformation each parameter is under.

    In a dict, a key is a field, a path (`"model.layers.0"`), a pattern (`"**.bias"`: `*` fits one name, `**` any number of
    them) or `""`, which is the place itself; where several fit, the longest path wins. An optimizer given by hand beats
    every method; then a dict from the parent, then a component's own method, then what it inherits. What is under one key,
    or inherits from one place, forms one group; what `intervals` names forms one of its own.

    Args:
        system: the component.
        optimizer: what was given by hand, or None.
        plan: the run ahead.

    Raises:
        MissingOptimizerError: for a parameter without an optimizer.
        ValueError: for a path at which there is nothing.
        TypeError: for something that is no optimizer.
    """
    several = members_of(system, system)
    if several:  # the leaves of every member are in the same places
        system, optimizer = several[0], take(optimizer, 0)
    found = leaves(system)
    trained = [leaf.path for leaf in found if leaf.role == PARAMETER]
    hand = _placed(system, "", optimizer, system, plan)
    for place, group in hand.items():
        if group is not _FROZEN and not any(covers(place, path) for path in trained):
            raise ValueError(f"an optimizer was given for {place!r}, where there is no parameter to train.")
    said: dict[str, Group] = {}
    for path, part in components(system):
        if path not in said and nearest_above(path, hand) is None:
            said = {**_placed(part, path, configure_optimizers(part, plan), system, plan), **said}
    named, chosen = _named(system), dict[Any, Group]()
    given = [nearest_above(leaf.path, hand) or nearest_above(leaf.path, said) for leaf in found]
    for i, (leaf, group) in enumerate(zip(found, given, strict=True)):
        if leaf.role == PARAMETER:
            if group is None:
                raise MissingOptimizerError(_nothing_for(system, leaf.path), leaf.path)
            if group is not _FROZEN:
                place, n = nearest_above(leaf.path, named) or ("", 1)
                if (group, place) not in chosen:
                    chosen[group, place] = _at(group, place, n, system, plan)
                chosen[group, place].members.append(i)
    for leaf, group in zip(found, given, strict=True):
        own = chosen.get((group, (nearest_above(leaf.path, named) or ("", 1))[0]))
        if own is not None:
            own.paths.append(leaf.path)
    return list(chosen.values())


def warn_of_unreached_ends(groups: Iterable[Group], plan: Plan) -> None:
    """Warn if a group is not updated in the run, or if the run ends before the group's schedule does."""
    for group in groups:
        total, where = fewer(plan, group.every).total_steps, f" for {group.path!r}" if group.path else ""
        if plan.total_steps is not None and group.every > plan.total_steps:
            what = f"{group.path!r} is" if group.path else "the parameters are"
            warn(f"{what} updated every {group.every} steps, and the run has {plan.total_steps}: never.")
        elif total is not None and group.built.end is not None and group.built.end > total:
            warn(
                f"the learning rate's schedule{where} is made for {group.built.end} updates, and the run has {total}. Lengths and "
                "places as floats are fractions of the run.",
            )


def _named(system: Any) -> dict[str, tuple[str, int]]:
    """The places that `intervals` names anywhere in the tree, with the place itself and every how many steps it moves."""
    found: dict[str, tuple[str, int]] = {}
    for path, part in components(system):
        for name, n in intervals(part).items():
            try:
                get(part, name)
            except KeyError:
                inside = ", ".join(name for name, _ in children(part))
                message = f"`intervals` of {_name(part, path)} names {name!r}, and it has: {inside}."
                raise ValueError(message) from None
            place = join_path(path, name)
            _, above = nearest_above(place, found) or ("", 1)
            found[place] = place, above * whole(n, f"`intervals` of {type(part).__name__}, {name}")
    return found


def _at(group: Group, place: str, n: int, system: Any, plan: Plan) -> Group:
    """The group of what lies at a place that moves every `n` steps."""
    path = place if covers(group.path, place) else group.path
    if n == 1:
        return dataclasses.replace(group, path=path, members=[], paths=[])
    return _group(Every(group.spec, n=n), path, system, plan)


_SHOWN = 6  # places in an error
_FROZEN = Group("", Built(optax.with_extra_args_support(frozen), lambda before, after: None))


def _placed(part: Any, path: str, spec: Any, system: Any, plan: Plan) -> dict[str, Group]:
    """From places in the system to their groups, by what was said about a part of it."""
    plain: dict[str, Group] = {}
    by_pattern: dict[str, tuple[str, Group]] = {}
    for key, optimizer in _flat(spec, plan).items():
        where = join_path(path, key)
        if "*" not in key:
            _require_path(part, path, key)
            plain[where] = _group(optimizer, where, system, plan)
            continue
        group = _group(optimizer, where, system, plan)
        places = parameter_paths(part)
        fits = matching_paths(key, places)
        if not fits:
            near = similar_pattern(key, places)
            hint = (
                f"did you mean {near!r}?"
                if near
                else f"there are: {', '.join(places[:_SHOWN])}{', …' * (len(places) > _SHOWN)}"
            )
            raise ValueError(f"an optimizer was given for {key!r}, which fits no parameter of {_name(part, path)}; {hint}")
        for name in fits:
            other, _ = by_pattern.setdefault(name, (key, group))
            if other != key:
                raise ValueError(
                    f"optimizers were given for {other!r} and for {key!r}, and both fit {join_path(path, name)!r}: "
                    f"give one for {name!r} by itself."
                )
    return {**{join_path(path, name): group for name, (_, group) in by_pattern.items()}, **plain}


def _flat(spec: Any, plan: Plan, path: str = "") -> dict[str, Any]:
    """What was said, by path: nested dicts as one, functions of the plan as what they give."""
    if of_plan(spec):
        spec = spec(plan)
    if not isinstance(spec, Mapping):
        return {} if spec is None else {path: spec}
    flat: dict[str, Any] = {}
    for key, inner in spec.items():
        for place, optimizer in _flat(inner, plan, join_path(path, str(key))).items():
            if place in flat:
                raise ValueError(f"two optimizers were given for {place!r}; one was expected.")
            flat[place] = optimizer
    return flat


def _group(spec: Any, path: str, system: Any, plan: Plan) -> Group:
    return _FROZEN if isinstance(spec, FrozenMarker) else Group(path, build(spec, system, plan, path), spec)


def _require_path(part: Any, path: str, key: str) -> None:
    try:
        get(part, key)
    except KeyError:
        inside = [name for name, _ in children(part)]
        near = difflib.get_close_matches(key, [*inside, *parameter_paths(part)], n=3)
        hint = f"did you mean {_either(near)}?" if near else f"it has: {', '.join(inside)}."
        what = "path" if "." in key else "field"
        message = f"an optimizer was given for {key!r}, and {_name(part, path)} has no such {what}; {hint}"
        raise ValueError(message) from None


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, dict.fromkeys(names)))


def _name(part: Any, path: str) -> str:
    return f"{type(part).__name__}{f' at {path!r}' if path else ''}"


def _nothing_for(system: Any, path: str) -> str:
    name = type(system).__name__
    return (
        f"no optimizer for {path!r}. Give one to `setup` or `fit` (`optimizer=optax.adam, lr=1e-3`; in a dict, the key '' is "
        f"for all that the others leave out), or write\n\n    @dispatch\n"
        f"    def configure_optimizers({name.lower()}: {name}): return optax.adam(1e-3)\n"
    )
