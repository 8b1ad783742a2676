"""The leaves of a tree of components: where each one lies, and what it is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.component import Buffer, Component, Frozen, Model, Parameter, named_parts
from fulmen.tree import CHILD, HYPER, STATIC, UNCLEAR, Tree, kinds
from fulmen.verbs import init

__all__ = ["Leaf", "count_parameters", "leaves"]

PARAMETER, BUFFER, FROZEN, OTHER = "parameter", "buffer", "frozen", "hyperparameter"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a tree of components.

    Attributes:
        path: such as `"model.hidden.weight"`.
        value: the array or number.
        role: `"parameter"` (trained), `"buffer"`, `"frozen"` (a parameter below `Frozen`) or `"hyperparameter"`.
    """

    path: str
    value: Any
    role: str


def leaves(component: Any) -> list[Leaf]:
    """All leaves in the order of `jax.tree.leaves`, each with its path and role.

    Parameters are the inexact arrays in the array fields of a `Model` or a foreign model, and what lies in a
    `Parameter`; not what lies in a `Buffer` or below `Frozen`. All other data is a hyperparameter.
    """
    return list(_walk(component, "", OTHER))


def count_parameters(component: Any) -> int:
    """How many numbers are trained.

    >>> import jax, fulmen as fm
    >>> fm.count_parameters(fm.init(fm.models.Dense(3, 2), jax.random.key(0)))
    8
    """
    return sum(np.size(leaf.value) for leaf in leaves(component) if leaf.role == PARAMETER)


def _walk(value: Any, path: str, role: str) -> Iterator[Leaf]:
    """`role` is that of the arrays that lie here."""
    join = f"{path}." if path else ""
    if value is None:
        return
    if isinstance(value, Parameter | Buffer):
        inner = BUFFER if isinstance(value, Buffer) else FROZEN if role == FROZEN else PARAMETER
        for leaf in jax.tree.leaves(value.value):
            yield Leaf(path, leaf, FROZEN if role == FROZEN else inner)
    elif isinstance(value, Tree):
        below = PARAMETER if isinstance(value, Model) else OTHER
        if role == FROZEN or isinstance(value, Frozen):
            below = FROZEN
        for name, kind in kinds(type(value)).items():
            if kind != STATIC and name != "mode":
                inner = getattr(value, name)
                yield from _walk(inner, join + name, below if below == FROZEN or kind != HYPER else OTHER)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _walk(value[key], f"{join}{key}", role)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(item, f"{join}{i}", role)
    else:
        foreign = not jax.tree_util.all_leaves([value])
        role = FROZEN if role == FROZEN else PARAMETER if foreign else role
        for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            trained = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            yield Leaf(path + jax.tree_util.keystr(keys), leaf, role if trained or role == FROZEN else OTHER)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of any library, or stands for one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def initialise(component: Any, key: Any) -> Any:
    """`init`, and what was there stays."""
    fresh = init(component, key)
    here = dict(jax.tree_util.tree_flatten_with_path(component)[0])
    drawn, structure = jax.tree_util.tree_flatten_with_path(fresh)
    return structure.unflatten([here.get(path, leaf) for path, leaf in drawn])


def missing(component: Any) -> list[str]:
    """The paths of the arrays that `init` would draw."""
    drawn = jax.eval_shape(init, component, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    here = {leaf.path for leaf in leaves(component)}
    return [leaf.path for leaf in leaves(drawn) if leaf.path not in here]


def require_arrays(component: Any, verb: str) -> None:
    """Raise if the component is a description still."""
    absent = missing(component)
    if absent:
        raise ValueError(
            f"{verb} needs a component whose arrays are there; this {type(component).__name__} has no {absent[0]!r}"
            f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} yet. "
            "Give it the state that `fm.setup` or `fm.fit` returned, or draw them: fm.init(component, key)."
        )


def check_fields(component: Any) -> None:
    """Raise on fields whose kind is unclear, static fields that cannot be compared, and parameters at two paths."""
    for path, part in components(component):
        where = f"{path}." if path else ""
        for name, kind in kinds(type(part)).items():
            value = getattr(part, name)
            if kind == UNCLEAR:
                raise TypeError(
                    f"{type(part).__name__}.{name} ({where}{name}): its annotation does not say what the field is. "
                    "Annotate an array as `jax.Array`, a component by its class, a setting as `int`, `bool`, `str` or "
                    "`Callable`, a number that may change as `float`; or say it: `= fm.static()`, `= fm.hyper()`."
                )
            if kind == STATIC:
                try:
                    hash(value)
                except TypeError:
                    raise TypeError(
                        f"{where}{name} is static, and a {type(value).__name__} cannot be compared by jit. "
                        "Give a tuple of plain values."
                    ) from None
            if kind in (CHILD, HYPER) and name != "mode" and isinstance(value, str | bytes):
                raise TypeError(f"{where}{name} is data ({kind}), and {value!r} came: a number or an array was expected.")
    _check_shared(component)


def _check_shared(component: Any) -> None:
    """As a pytree, one object at two paths becomes two objects, which would be trained apart."""
    places: dict[int, str] = {}
    for path, part in components(component):
        first = places.setdefault(id(part), path)
        if first != path and _owns(part):
            raise ValueError(
                f"the same {type(part).__name__} is at {first!r} and at {path!r}; as a pytree it would become two. Make two "
                "of them, or keep it in one field and use that field twice in `forward` or `losses`."
            )
    arrays: dict[int, str] = {}
    for leaf in leaves(component):
        if leaf.role == PARAMETER and arrays.setdefault(id(leaf.value), leaf.path) != leaf.path:
            raise ValueError(
                f"the same array is at {arrays[id(leaf.value)]!r} and at {leaf.path!r}, and would be trained as two. Copy it, "
                "or keep it in one field and use that field twice."
            )


def _owns(part: Any) -> bool:
    drawn = jax.eval_shape(init, part, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    return any(leaf.role in (PARAMETER, BUFFER) for leaf in leaves(drawn))


def components(component: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every component in the tree with its path, the root first."""
    if isinstance(component, Component):
        yield path, component
        for name, part in named_parts(component).items():
            yield from components(part, f"{path}.{name}" if path else name)


