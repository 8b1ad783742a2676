"""The leaves of a tree of components, with their paths and roles."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.component import Buffer, Component, Frozen, Model, Parameter, is_part, named_parts
from fulmen.core.fields import HYPER, kinds
from fulmen.core.immutable import Immutable
from fulmen.core.paths import by_path, join_path
from fulmen.core.tree import Tree, data_fields, items
from fulmen.core.verbs import init
from fulmen.dispatching.lazy_libraries import library_of

PARAMETER, BUFFER, FROZEN, OTHER = "parameter", "buffer", "frozen", "hyperparameter"

CONTAINERS = (list, tuple, dict)
"""Any other pytree that is not a `Tree` is a model of another library."""


class Leaf(Immutable):
    """A leaf of a tree of components.

    Attributes:
        path: such as `"model.hidden.weight"`.
        value: the array or number.
        role: `"parameter"` (trained), `"buffer"`, `"frozen"` (either of them below `Frozen`), `"hyperparameter"`, or
            `"static"`, a number or a function in another library's module.
    """

    path: str
    value: Any
    role: str


def leaves(component: Any) -> list[Leaf]:
    """All leaves in the order of `jax.tree.leaves` on the unbound component, each with its path and role; of a state, its system's.

    Parameters are the inexact arrays in the fields of a `Model` or of another library's model, and those in a `Parameter`,
    unless they are in a `Buffer`, in a field declared `hyper()`, or below `Frozen`. All other data is a hyperparameter.
    """
    component = component.system if hasattr(component, "__replace_field__") else component  # of a `State`
    return list(_walk(component, "", OTHER, _Below()))


def count_parameters(component: Any) -> int:
    """The number of trained numbers.

    >>> import jax, fulmen as fm
    >>> fm.count_parameters(fm.init(fm.models.Dense(3, 2), jax.random.key(0)))
    8
    """
    return sum(np.size(leaf.value) for leaf in leaves(component) if leaf.role == PARAMETER)


def branches(component: Any, counts: Callable[[Leaf], bool], above: str = "") -> dict[str, Any]:
    """The parts, by their paths, at the highest level at which several have leaves that count; none if there is no such level."""
    named = named_parts(component).items() if isinstance(component, Component) else ()
    found = {join_path(above, name): part for name, part in named if any(map(counts, leaves(part)))}
    if len(found) == 1:
        ((path, part),) = found.items()
        return branches(part, counts, path)
    return found


class _Below(NamedTuple):
    """Properties of everything below a node."""

    frozen: bool = False
    hyper: bool = False


def _walk(value: Any, path: str, role: str, below: _Below) -> Iterator[Leaf]:
    """`role` is the role of arrays directly in the value."""
    if hasattr(type(value), "__stands_for__"):
        value = value.plain
    library = library_of(type(value))
    if library is not None:
        for (name, leaf), own in zip(by_path(value), library.roles(value), strict=True):
            yield _leaf(join_path(path, name), leaf, own, below)
    elif isinstance(value, Tree):
        below = below._replace(frozen=below.frozen or isinstance(value, Frozen))
        if isinstance(value, Component):
            role = PARAMETER if isinstance(value, Model) else OTHER
        elif isinstance(value, Parameter | Buffer):
            for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
                inside = jax.tree_util.keystr(keys[1:], simple=True, separator=".")  # without `.value`
                role = BUFFER if isinstance(value, Buffer) else PARAMETER
                yield _leaf(join_path(path, inside), leaf, role, below)
            return
        for name in data_fields(type(value)):
            if name != "mode" or not isinstance(value, Component):
                hyper = below.hyper or kinds(type(value))[name] == HYPER
                yield from _walk(getattr(value, name), join_path(path, name), role, below._replace(hyper=hyper))
    elif value is not None and jax.tree_util.all_leaves([value]):
        yield _leaf(path, value, role, below)
    else:
        role = role if value is None or isinstance(value, CONTAINERS) else PARAMETER
        for name, inner in items(value)[0]:
            yield from _walk(inner, join_path(path, name), role, below)


def _leaf(path: str, value: Any, role: str, below: _Below) -> Leaf:
    if role == PARAMETER and (below.hyper or not is_array(value) or not jnp.issubdtype(value.dtype, jnp.inexact)):
        role = OTHER
    return Leaf(path, value, FROZEN if below.frozen and role in (PARAMETER, BUFFER) else role)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of any library, or describes one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def missing(component: Any) -> list[str]:
    """The paths of the arrays that `init` would draw."""
    here = {leaf.path for leaf in leaves(component)}
    return [leaf.path for leaf in drawn(component) if leaf.path not in here]


def described(component: Any) -> tuple[Any, bool]:
    """The component with shapes in place of arrays that are not drawn yet, and whether it has all arrays."""
    if not init.has(component, None):
        return component, True
    known: dict[str, Any] = {}

    def draw(key: Any) -> dict[int, Any]:
        known["flat"], known["structure"] = jax.tree_util.tree_flatten_with_path(init(component, key))
        return {i: leaf for i, (_, leaf) in enumerate(known["flat"]) if is_array(leaf)}

    drawn = jax.eval_shape(draw, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    here = dict(jax.tree_util.tree_flatten_with_path(component)[0])
    # Arrays from `init` are tracers here, which are replaced by their shapes; other leaves are kept.
    filled = [here.get(path, drawn.get(i, leaf)) for i, (path, leaf) in enumerate(known["flat"])]
    complete = all(path in here for i, (path, _) in enumerate(known["flat"]) if i in drawn)
    return known["structure"].unflatten(filled), complete


def drawn(component: Any) -> list[Leaf]:
    """The leaves after `init`, with shapes in place of arrays that are not drawn yet."""
    return leaves(described(component)[0])


class MissingArraysError(ValueError):
    """A component has no arrays yet where they are needed."""


def require_arrays(component: Any, verb: str) -> None:
    """Raise if arrays of the component are not drawn yet."""
    if text := missing_arrays(component, verb):
        raise MissingArraysError(text)


class TracedArraysError(TypeError):
    """Raised where a verb that loops over data on the host is called under `jax.jit`, `grad` or `vmap`."""


def require_concrete(verb: str, instead: str, *trees: Any) -> None:
    """Raise for arrays that are being traced, in a verb that loops over data on the host; `instead` is what to call.

    The elements of lists and iterators are not checked.
    """
    leaves = jax.tree.leaves(trees, is_leaf=lambda value: isinstance(value, list | Iterator))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TracedArraysError(
            f"{verb} loops over data on the host, so it cannot be called under jax.jit, grad or vmap. Call it outside, or call "
            f"fm.{instead} there."
        )


def missing_arrays(component: Any, verb: str) -> str:
    """What is wrong with a component whose arrays are not drawn yet; empty if it has them all."""
    absent = missing(component)
    if not absent:
        return ""
    return (
        f"{verb} needs a component with its arrays; this {type(component).__name__} has no {absent[0]!r}"
        f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} yet. "
        "Give it the state that `fm.setup` or `fm.fit` returned, or draw them: fm.init(component, key)."
    )


def components(component: Any) -> list[tuple[str, Any]]:
    """Every component in the tree with its path, the root first."""
    found: list[tuple[str, Any]] = []

    def add(part: Any, path: str) -> None:
        found.append((path, part))
        if isinstance(part, Component):
            for name, inner in named_parts(part).items():
                add(inner, join_path(path, name))

    if is_part(component):
        add(component, "")
    return found


def parameter_paths(part: Any) -> list[str]:
    """The paths of all parameters in a part, and of the parts that contain them."""
    found: dict[str, None] = {}
    for leaf in leaves(part):
        if leaf.role == PARAMETER:
            names = leaf.path.split(".")
            found.update((".".join(names[: i + 1]), None) for i in range(len(names)))
    return list(found)
