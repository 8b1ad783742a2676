"""Layouts: the sharding of each array of a component or a state, by `partition`."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from fulmen.compose.vectorized import members_of
from fulmen.core.component import Component, named_parts
from fulmen.core.leaves import described, leaves
from fulmen.core.paths import covers, join_path
from fulmen.core.stacking import is_own
from fulmen.core.state import State
from fulmen.core.tree import get
from fulmen.core.verbs import partition
from fulmen.devices.policies import Axes, Policy


class _Rules:
    """What the methods of `partition` say about the arrays, or shapes, of an unbound component.

    Attributes:
        of_arrays: the axes of arrays by path.
        of_parts: the leading axes of all arrays in a part by its path.
    """

    def __init__(self, component: Any, policy: Policy) -> None:
        self.policy = policy
        self.of_arrays: dict[str, Axes] = {}
        self.of_parts: dict[str, Axes] = {}
        self._paths = [leaf.path for leaf in leaves(component)]
        self._visit(component, "")

    def _visit(self, part: Any, path: str) -> None:
        leading: dict[str, Axes] = {}
        for name, axes in partition(part, self.policy).items():
            where = join_path(path, name)
            if where in self._paths:
                self.of_arrays.setdefault(where, axes)  # the rule of an outer part wins
            elif any(covers(where, one) for one in self._paths):
                leading[name] = self.of_parts[where] = axes
            else:
                _require_field(part, name)
        for name, inner in named_parts(part).items() if isinstance(part, Component) else ():
            n = sum(len(axes) for above, axes in leading.items() if covers(above, name))
            self._visit(_without_axes(inner, n), join_path(path, name))

    def axes(self, path: str, shape: tuple[int, ...]) -> Axes:
        """The mesh axis for each axis of an array."""
        if not shape:
            return ()
        outer = tuple(axis for part, axes in self.of_parts.items() if covers(part, path) for axis in axes)
        inner = self.of_arrays.get(path)
        if inner is None:
            taken = set(_flat(outer))
            inner = self.policy.default(shape[len(outer) :])
            inner = tuple(None if taken & set(_flat((axis,))) else axis for axis in inner)
        return self._checked(path, (*outer, *inner), shape)

    def _checked(self, path: str, axes: Axes, shape: tuple[int, ...]) -> Axes:
        who, sizes = f"partition under {type(self.policy).__name__}: {path}", self.policy.mesh.shape
        if len(axes) > len(shape):
            raise ValueError(f"{who} has {len(shape)} axes, {shape}, but got {len(axes)} mesh axes: {axes}.")
        used = _flat(axes)
        unknown = [axis for axis in used if axis not in sizes]
        if unknown:
            raise ValueError(f"{who} is split over {unknown[0]!r}, but the mesh has {', '.join(map(repr, sizes))}.")
        if len(set(used)) < len(used):
            raise ValueError(f"{who} must be split over each mesh axis at most once, got {axes}.")
        for length, axis in zip(shape, axes, strict=False):
            n = math.prod(sizes[name] for name in _flat((axis,)))
            if length % n:
                raise ValueError(
                    f"{who} has an axis of size {length}, which {axis!r} of size {n} does not divide; return None for that axis, "
                    "or choose a size that is a multiple."
                )
        return axes


def _flat(axes: Axes) -> list[Any]:
    return [name for axis in axes if axis is not None for name in (axis if isinstance(axis, tuple) else (axis,))]


def _require_field(part: Any, name: str) -> None:
    """Raise unless a path exists, with a value or None."""
    try:
        get(part, name)
    except KeyError as error:
        raise ValueError(
            f"partition({type(part).__name__}, …) names an array that does not exist: {error.args[0]}."
        ) from None


def _without_axes(part: Any, n: int) -> Any:
    """The part with shapes that lack the first `n` axes."""
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[n:], v.dtype) if n and is_own(v) else v, part)


def layouts_of(component: Any, policy: Policy) -> list[NamedSharding]:
    """The layout of each leaf of an unbound component, in the order of `jax.tree.leaves`."""
    rules = _Rules(component, policy)
    return [policy.layout(*rules.axes(leaf.path, np.shape(leaf.value))) for leaf in leaves(component)]


def layouts(component: Any, policy: Policy) -> dict[str, NamedSharding]:
    """The layout of each leaf of a component by path. `fm.explain(fm.devices.layouts, component, policy)` shows the methods.

    Args:
        component: a component; without arrays, those that `init` would draw are laid out.
        policy: such as `fm.FSDP(mesh)`.

    Returns:
        A dict from paths to `jax.sharding.NamedSharding`s.

    Raises:
        ValueError: for a method of `partition` whose result does not fit the arrays or the mesh.

    >>> tuple(fm.devices.layouts(fm.models.Dense(4, 2), fm.TensorParallel(fm.mesh(data=1)))["weight"].spec)
    (None, 'model')
    """
    component, _ = described(component)
    return dict(zip((leaf.path for leaf in leaves(component)), layouts_of(component, policy), strict=True))


# States


class _Laid:
    """The shape and the layout of an array, as a leaf of a tree."""

    def __init__(self, shape: tuple[int, ...], layout: NamedSharding) -> None:
        self.shape_of, self.layout = shape, layout


def state_layouts(state: State) -> list[NamedSharding]:
    """The layout of each of a state's `arrays` under its policy.

    Optimizer states are laid out as their parameters, which are found by structure: a part of the optimizer's state that has
    the structure of the system, as the moments of Adam have, holds arrays for each parameter.
    """
    policy, (flat, structure) = state.devices, jax.tree.flatten(state.system)
    found = layouts_of(state.system, policy)
    laid = structure.unflatten([_Laid(np.shape(v), layout) for v, layout in zip(flat, found, strict=True)])
    member = next(iter(members_of(laid, laid)), laid)  # each member of a population has its own optimizer state
    rest = policy.layout()
    every = [*found, *_following(member, state.optimizer_state, rest), *(rest for _ in jax.tree.leaves(state.optimizer))]
    fixed = {place for place, _ in state.structure.fixed}
    return [layout for i, layout in enumerate(every) if i not in fixed]


def _following(system: Any, optimizer_state: Any, rest: NamedSharding) -> list[NamedSharding]:
    """The layout of each leaf of an optimizer's state, which has arrays, None or trees in place of the system's leaves, `_Laid`.

    `rest` is the layout of arrays that have another shape than their parameter, or belong to none.
    """
    structure, parameters = jax.tree.structure(system), jax.tree.leaves(system)
    found: list[NamedSharding] = []
    for node in jax.tree.leaves(optimizer_state, is_leaf=lambda node: type(node) is type(system)):
        try:
            parts = structure.flatten_up_to(node) if type(node) is type(system) else None
        except ValueError:
            parts = None
        if parts is None:
            found += [rest for _ in jax.tree.leaves(node)]
            continue
        for parameter, part in zip(parameters, parts, strict=True):
            same = (np.shape(v) == parameter.shape_of for v in jax.tree.leaves(part))
            found += [parameter.layout if it_is else rest for it_is in same]
    return found
