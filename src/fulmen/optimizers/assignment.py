"""Which optimizer each parameter has: by the argument `optimizer=`, by methods, by path, by inheritance."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from fulmen.compose.vectorized import members_of
from fulmen.core import Plan, take
from fulmen.core.leaves import PARAMETER, components, leaves, parameter_paths
from fulmen.core.paths import covers, join_path, matching_paths, nearest_above, similar_pattern
from fulmen.core.tree import children, get
from fulmen.core.verbs import configure_optimizers, intervals
from fulmen.dispatching.warning import warn
from fulmen.optimizers.enclosing import Every, interval, plan_of_updates
from fulmen.optimizers.optimizer import Built, FrozenMarker, build, frozen
from fulmen.schedules.schedule_lengths import is_plan_function


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
        path: the path or pattern of the optimizer; empty for the root.
        built: their optimizer for the run.
        spec: the optimizer as it was given.
        members: indices of its parameters among the system's leaves.
        paths: paths of all leaves that do not change in a step without an update of the group: its parameters, and the other
            leaves below its path.
    """

    path: str
    built: Built
    spec: Any = None
    members: list[int] = dataclasses.field(default_factory=list)
    paths: list[str] = dataclasses.field(default_factory=list)

    def select(self, tree: Any, like: Any) -> Any:
        """The tree with the group's leaves, and None for the others, in the structure of `like`."""
        structure = jax.tree.structure(like)
        members = set(self.members)
        values = structure.flatten_up_to(tree)
        return structure.unflatten([v if i in members else None for i, v in enumerate(values)])

    @property
    def every(self) -> int:
        """The group is updated in the last of every so many steps."""
        return self.built.every


def groups(system: Any, optimizer: Any, plan: Plan) -> list[Group]:
    """The parameters of a system by their optimizers.

    A key of a dict is a field, a path (`"model.layers.0"`), a pattern (`"**.bias"`: `*` matches one name, `**` any number of
    names) or `""`, all the rest. A path precedes patterns, also in what is below it; the longest matching path wins, and of several
    patterns that match a path the first. The argument `optimizer` precedes every method; then
    the dict of a parent's method, then the component's method, then that of an ancestor. The parameters of one key form one
    group; those that `intervals` names form a separate group.

    Args:
        system: the component.
        optimizer: the argument of `setup` or `fit`, or None.
        plan: the plan of the run.

    Raises:
        MissingOptimizerError: for a parameter without an optimizer.
        ValueError: for a path that does not exist.
        TypeError: for anything but an optimizer.
    """
    members = members_of(system, system)
    if members:  # all have the same structure
        system, optimizer = members[0], take(optimizer, 0)
    found = leaves(system)
    trained = [leaf.path for leaf in found if leaf.role == PARAMETER]
    by_argument = _by_path(system, "", optimizer, system, plan)
    for path, group in by_argument.items():
        if group is not _FROZEN and not any(covers(path, parameter) for parameter in trained):
            raise ValueError(f"an optimizer was given for {path!r}, where there is no parameter to train.")
    by_method: dict[str, Group] = {}
    for path, part in components(system):
        if path not in by_method and nearest_above(path, by_argument) is None:
            by_method = {**_by_path(part, path, configure_optimizers(part, plan), system, plan), **by_method}
    rarely, chosen, keys = _intervals_by_path(system), dict[Any, Group](), []
    for i, leaf in enumerate(found):
        group = nearest_above(leaf.path, by_argument) or nearest_above(leaf.path, by_method)
        path, n = nearest_above(leaf.path, rarely) or ("", 1)
        keys.append((group, path))
        if leaf.role != PARAMETER or group is _FROZEN:
            continue
        if group is None:
            raise MissingOptimizerError(_missing_optimizer(system, leaf.path, by_argument), leaf.path)
        if (group, path) not in chosen:
            chosen[group, path] = _with_interval(group, path, n, system, plan)
        chosen[group, path].members.append(i)
    for leaf, key in zip(found, keys, strict=True):
        if key in chosen:
            chosen[key].paths.append(leaf.path)
    return list(chosen.values())


def warn_of_unreached_ends(groups: Iterable[Group], plan: Plan) -> None:
    """Warn if a group is never updated in the run, or if its schedule is longer than the run."""
    for group in groups:
        total, where = plan_of_updates(plan, group.every).total_steps, f" for {group.path!r}" if group.path else ""
        if plan.total_steps is not None and group.every > plan.total_steps:
            what = f"{group.path!r} is" if group.path else "the parameters are"
            warn(f"{what} updated every {group.every} steps, but the run has only {plan.total_steps}: never.")
        elif total is not None and group.built.end is not None and group.built.end > total:
            warn(
                f"the learning rate's schedule{where} has {group.built.end} updates, but the run has only {total}. Floats as lengths "
                "and times are fractions of the run."
            )


def _intervals_by_path(system: Any) -> dict[str, tuple[str, int]]:
    """The paths that `intervals` names anywhere in the tree, each with itself and its number of steps per update."""
    found: dict[str, tuple[str, int]] = {}
    for path, part in components(system):
        for name, n in intervals(part).items():
            try:
                get(part, name)
            except KeyError:
                inside = ", ".join(name for name, _ in children(part))
                message = f"`intervals` of {_name(part, path)} names {name!r}, which does not exist; it has: {inside}."
                raise ValueError(message) from None
            named = join_path(path, name)
            _, outer = nearest_above(named, found) or ("", 1)
            found[named] = named, outer * interval(n, f"`intervals` of {type(part).__name__}: {name}")
    return found


def _with_interval(group: Group, path: str, n: int, system: Any, plan: Plan) -> Group:
    """The part of a group at a path that is updated every `n` steps."""
    path = path if covers(group.path, path) else group.path
    if n == 1:
        return dataclasses.replace(group, path=path, members=[], paths=[])
    return _group(Every(group.spec, n=n), path, system, plan)


_MOST_PATHS = 6  # in an error
_FROZEN = Group("", Built(optax.with_extra_args_support(frozen), lambda before, after: None))


def _by_path(part: Any, path: str, spec: Any, system: Any, plan: Plan) -> dict[str, Group]:
    """From paths in the system to their groups, for the optimizers of a part of it."""
    flat = _flat(spec, plan)
    named = [key for key in flat if key and "*" not in key]
    plain: dict[str, Group] = {}
    by_pattern: dict[str, Group] = {}  # by the paths that a pattern is the first to match
    for key, optimizer in flat.items():
        where = join_path(path, key)
        if "*" not in key:
            _require_path(part, path, key)
        group = _group(optimizer, where, system, plan)
        if "*" not in key:
            plain[where] = group
            continue
        matched = _matches(part, path, key)
        free = [name for name in matched if not any(covers(above, name) for above in named)]
        if not free:
            raise ValueError(
                f"an optimizer was given for {key!r}, but paths name all parameters that it matches, such as {matched[0]!r}, and paths "
                f"precede patterns; leave out {key!r}, or write '' or a pattern in place of the path."
            )
        if all(name in by_pattern for name in free):
            raise ValueError(
                f"an optimizer was given for {key!r}, but patterns before it match the same parameters, such as {free[0]!r}, and the "
                f"first pattern counts; move {key!r} to the beginning."
            )
        for name in free:
            by_pattern.setdefault(name, group)
    return {**{join_path(path, name): group for name, group in by_pattern.items()}, **plain}


def _matches(part: Any, path: str, pattern: str) -> list[str]:
    """The paths of parameters that a pattern matches, at least one."""
    paths = parameter_paths(part)
    found = matching_paths(pattern, paths)
    if not found:
        near = similar_pattern(pattern, paths)
        known = f"there are: {', '.join(paths[:_MOST_PATHS])}{', …' * (len(paths) > _MOST_PATHS)}"
        hint = f"did you mean {near!r}?" if near else known
        raise ValueError(
            f"an optimizer was given for {pattern!r}, which matches no parameter of {_name(part, path)}; {hint}"
        )
    return found


def _flat(spec: Any, plan: Plan, path: str = "") -> dict[str, Any]:
    """Optimizers by path: nested dicts are flattened, functions of the plan are called."""
    if is_plan_function(spec):
        spec = spec(plan)
    if not isinstance(spec, Mapping):
        return {} if spec is None else {path: spec}
    flat: dict[str, Any] = {}
    for key, inner in spec.items():
        for inner_path, optimizer in _flat(inner, plan, join_path(path, str(key))).items():
            if inner_path in flat:
                raise ValueError(f"two optimizers were given for {inner_path!r}; remove one.")
            flat[inner_path] = optimizer
    return flat


def _group(spec: Any, path: str, system: Any, plan: Plan) -> Group:
    return _FROZEN if isinstance(spec, FrozenMarker) else Group(path, build(spec, system, plan, path), spec)


def _require_path(part: Any, path: str, key: str) -> None:
    try:
        get(part, key)
    except KeyError:
        inside = [name for name, _ in children(part)]
        near = difflib.get_close_matches(key, [*inside, *parameter_paths(part)], n=3)
        hint = f"did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else f"it has: {', '.join(inside)}."
        what = "path" if "." in key else "field"
        message = f"an optimizer was given for {key!r}, but {_name(part, path)} has no such {what}; {hint}"
        raise ValueError(message) from None


def _name(part: Any, path: str) -> str:
    return f"{type(part).__name__}{f' at {path!r}' if path else ''}"


def _missing_optimizer(system: Any, path: str, given: Iterable[str]) -> str:
    name, given = type(system).__name__, list(given)
    if given:
        names = path.split(".")
        above = [".".join(names[: i + 1]) for i in range(len(names))]
        key = next((each for each in above if not any(covers(each, other) for other in given)), path)
        return (
            f"optimizer: no optimizer for {path!r}. Add an entry {key!r}: optax.adam to the dict of optimizers; the key '' is for all "
            f"other parameters."
        )
    return (
        f"optimizer: no optimizer for {path!r}. Write optimizer=optax.adam, lr=1e-3 in `setup` or `fit`, or write\n\n    @dispatch\n"
        f"    def configure_optimizers({name.lower()}: {name}): return optax.adam(1e-3)\n"
    )
