"""`rebuild`: a tree with the newest definitions of its classes, as after a notebook cell was run again."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fulmen.core.component import Component
from fulmen.core.construction import default_of
from fulmen.core.fields import STATIC, kinds
from fulmen.core.leaves import BUFFER, PARAMETER, drawn, leaves
from fulmen.core.paths import join_path
from fulmen.core.state import State
from fulmen.core.tree import Tree, remake, short
from fulmen.dispatching.redefinition import check_definitions, newest


def rebuild(tree: Any) -> Any:
    """The same values in the newest definitions of their classes, after a class was defined again.

    Args:
        tree: a component, a state, or a list, tuple or dict of them.

    Returns:
        The tree; new fields have their defaults.

    Raises:
        TypeError: if a field is missing, is new without a default, or is of another kind (static, hyperparameter, child).
        ValueError: if `init` would draw an array of another shape, or a state's parameters are different.
        OutdatedInstanceError: if a base class was defined again and its subclass was not.

    >>> import fulmen as fm
    >>> fm.rebuild(fm.models.Flatten())
    Flatten()
    """
    if not isinstance(tree, State):
        return _rebuilt(tree, "")
    names = ("system", "optimizer_state", "optimizer")
    fresh = tree.replace(**{name: _rebuilt(getattr(tree, name), name, name == "optimizer_state") for name in names})
    old, new = _trained(tree.system), _trained(fresh.system)
    for path in [*old, *new]:
        if old.get(path) != new.get(path):
            raise ValueError(
                f"system.{path} is {new.get(path, 'missing')} in the new definition and was {old.get(path, 'missing')}; the "
                "optimizer's state does not fit. Set the rebuilt system up again: fm.setup(fm.rebuild(state.system), data, …)."
            )
    return fresh


def _trained(system: Any) -> dict[str, str]:
    return {leaf.path: f"a {leaf.role}, {short(leaf.value)}" for leaf in leaves(system) if leaf.role in (PARAMETER, BUFFER)}


def _rebuilt(value: Any, path: str, only_parameters: bool = False) -> Any:
    """The value with every `Tree` in it rebuilt, also inside lists and other libraries' trees.

    If `only_parameters`, new fields get None instead of arrays and numbers, as moments in an optimizer's state.
    """

    def renew(keys: Any, leaf: Any) -> Any:
        inside = jax.tree_util.keystr(keys, simple=True, separator=".")
        if isinstance(leaf, type):
            return newest(leaf)
        return _renewed(leaf, join_path(path, inside), only_parameters) if isinstance(leaf, Tree) else leaf

    return jax.tree_util.tree_map_with_path(renew, value, is_leaf=lambda node: isinstance(node, Tree))


def _renewed(old: Tree, path: str, only_parameters: bool) -> Any:
    cls = newest(type(old))
    check_definitions([cls])
    values = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}  # type: ignore[arg-type]
    values = {name: _rebuilt(value, join_path(path, name), only_parameters) for name, value in values.items()}
    if cls is type(old):
        return remake(old, values)
    _require_same_fields(type(old), cls, path)
    for field in dataclasses.fields(cls):
        if field.name not in values:
            value = default_of(field)
            empty = only_parameters and kinds(cls)[field.name] != STATIC
            values[field.name] = jax.tree.map(lambda leaf: None, value) if empty else value
    fresh = object.__new__(cls)
    fresh.__dict__.update(values)
    if isinstance(fresh, Component):
        _require_same_shapes(fresh, path)
    return fresh


def _require_same_fields(old: type, new: type, path: str) -> None:
    before, after, where = kinds(old), kinds(new), f" ({path})" if path else ""
    given = {f.name for f in dataclasses.fields(new) if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}  # type: ignore[arg-type]
    for name in {**before, **after}:
        what = f"{new.__name__}.{name}{where}"
        if name not in after:
            raise TypeError(f"{what} is not a field of the new definition. Keep the field, or make the component again.")
        if name not in before and name not in given:
            raise TypeError(f"{what} is a new field without a default. Give it one, or make the component again.")
        if before.get(name, after[name]) != after[name]:
            raise TypeError(f"{what} was {before[name]} and is {after[name]} in the new definition; both must be the same.")


def _require_same_shapes(fresh: Any, path: str) -> None:
    """Raise if `init` of the new definition would draw an array of another shape than the present one."""
    fields = [f.name for f in dataclasses.fields(fresh) if f.default is None and f.name != "mode"]
    try:
        found = drawn(remake(fresh, dict.fromkeys(fields)))
    except Exception:  # it cannot be drawn without its arrays
        return
    here = {leaf.path: np.shape(leaf.value) for leaf in leaves(fresh)}
    for leaf in found:
        if here.get(leaf.path, np.shape(leaf.value)) != np.shape(leaf.value):
            where = f"{type(fresh).__name__}.{leaf.path}{f' ({path})' if path else ''}"
            raise ValueError(
                f"{where} has shape {here[leaf.path]}, and {np.shape(leaf.value)} in the new definition. Draw it again: "
                "fm.init(component, key)."
            )
