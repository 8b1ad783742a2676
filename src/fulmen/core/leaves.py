"""The leaves of a tree of components: where each one lies, and what it is for."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core import verbs as contracts
from fulmen.core.component import Buffer, Component, Frozen, Model, Parameter, is_part, named_parts
from fulmen.core.fields import HYPER, STATIC, UNCLEAR
from fulmen.core.tree import Tree, data_fields, items, kinds, short
from fulmen.core.verbs import init
from fulmen.dispatching import hooks
from fulmen.dispatching.lazy_libraries import hint, library_of
from fulmen.dispatching.registry import generation

__all__ = ["Leaf", "TracedArraysError", "components", "count_parameters", "leaves"]

PARAMETER, BUFFER, FROZEN, OTHER = "parameter", "buffer", "frozen", "hyperparameter"

# What users call, on states and data: a component's own function of such a name is nobody's method.
_OF_RUNS = ("batches", "eval_step", "evaluate", "fit", "on", "plot", "predict", "setup", "steps", "train_step")
_CONTAINERS = (list, tuple, dict)  # a pytree that is none of these, nor a `Tree`, is somebody else's model


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a tree of components.

    Attributes:
        path: such as `"model.hidden.weight"`.
        value: the array or number.
        role: `"parameter"` (trained), `"buffer"`, `"frozen"` (either of them below `Frozen`), `"hyperparameter"`, or
            `"static"`: a number or a function among the leaves of another library's module.
    """

    path: str
    value: Any
    role: str


def leaves(component: Any) -> list[Leaf]:
    """All leaves in the order of `jax.tree.leaves` on the unbound component, each with its path and role.

    Parameters are the inexact arrays in the array fields of a `Model` or a foreign model, and what lies in a
    `Parameter`; not what lies in a `Buffer`, in a field that is `hyper()`, or below `Frozen`. All other data is a
    hyperparameter.
    """
    return list(_walk(component, "", OTHER, _Below()))


def count_parameters(component: Any) -> int:
    """How many numbers are trained.

    >>> import jax, fulmen as fm
    >>> fm.count_parameters(fm.init(fm.models.Dense(3, 2), jax.random.key(0)))
    8
    """
    return sum(np.size(leaf.value) for leaf in leaves(component) if leaf.role == PARAMETER)


class _Below(NamedTuple):
    """What holds for all that lies below some place."""

    frozen: bool = False
    hyper: bool = False


def _walk(value: Any, path: str, role: str, below: _Below) -> Iterator[Leaf]:
    """`role` is that of the arrays that lie here."""
    if hasattr(type(value), "__stands_for__"):
        value = value.plain
    library = library_of(type(value))
    if library is not None:
        leaves_here = jax.tree_util.tree_flatten_with_path(value)[0]
        for (keys, leaf), own in zip(leaves_here, library.roles(value), strict=True):
            yield _leaf(_join(path, jax.tree_util.keystr(keys, simple=True, separator=".")), leaf, own, below)
    elif isinstance(value, Tree):
        below = below._replace(frozen=below.frozen or isinstance(value, Frozen))
        if isinstance(value, Component):
            role = PARAMETER if isinstance(value, Model) else OTHER
        elif isinstance(value, Parameter | Buffer):
            for keys, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
                place = jax.tree_util.keystr(keys[1:], simple=True, separator=".")  # without its `.value`
                role = BUFFER if isinstance(value, Buffer) else PARAMETER
                yield _leaf(_join(path, place) if place else path, leaf, role, below)
            return
        for name in data_fields(type(value)):
            if name != "mode" or not isinstance(value, Component):
                hyper = below.hyper or kinds(type(value))[name] == HYPER
                yield from _walk(getattr(value, name), _join(path, name), role, below._replace(hyper=hyper))
    elif value is not None and jax.tree_util.all_leaves([value]):
        yield _leaf(path, value, role, below)
    else:
        role = role if value is None or isinstance(value, _CONTAINERS) else PARAMETER
        for name, inner in items(value)[0]:
            yield from _walk(inner, _join(path, name), role, below)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _leaf(path: str, value: Any, role: str, below: _Below) -> Leaf:
    if role == PARAMETER and (below.hyper or not is_array(value) or not jnp.issubdtype(value.dtype, jnp.inexact)):
        role = OTHER
    return Leaf(path, value, FROZEN if below.frozen and role in (PARAMETER, BUFFER) else role)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of any library, or stands for one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def missing(component: Any) -> list[str]:
    """The paths of the arrays that `init` would draw."""
    here = {leaf.path for leaf in leaves(component)}
    return [leaf.path for leaf in drawn(component) if leaf.path not in here]


def drawn(component: Any) -> list[Leaf]:
    """The leaves as they will be after `init`, with shapes in the place of arrays."""
    found: list[Leaf] = []

    def draw(key: Any) -> None:
        found.extend(leaves(init(component, key)))

    jax.eval_shape(draw, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    return found


class MissingArraysError(ValueError):
    """A component whose arrays are not drawn yet was given where they are needed."""


def require_arrays(component: Any, verb: str) -> None:
    """Raise if the component is a description still."""
    text = _missing_arrays(component, verb)
    if text:
        raise MissingArraysError(text)


class TracedArraysError(TypeError):
    """Raised where a verb that loops over data on the host is called under `jax.jit`, `grad` or `vmap`."""


def require_concrete(verb: str, instead: str, *trees: Any) -> None:
    """Raise for arrays that are being traced, in a verb that loops over data on the host.

    Args:
        verb: its name.
        instead: what to call under a transformation.
        *trees: components, states and data; the elements of lists and iterators are not checked.
    """
    leaves = jax.tree.leaves(trees, is_leaf=lambda value: isinstance(value, list | Iterator))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TracedArraysError(
            f"{verb} loops over data on the host, so it cannot be called under jax.jit, grad or vmap. Call it outside, or call "
            f"fm.{instead} there."
        )


def _missing_arrays(component: Any, verb: str) -> str:
    absent = missing(component)
    if not absent:
        return ""
    return (
        f"{verb} needs a component whose arrays are there; this {type(component).__name__} has no {absent[0]!r}"
        f"{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} yet. "
        "Give it the state that `fm.setup` or `fm.fit` returned, or draw them: fm.init(component, key)."
    )


def _advice(error: Exception, component: Any, verb: str) -> str:
    """What to note on an error that JAX or NumPy may have raised because of arrays that are not drawn yet."""
    if isinstance(error, MissingArraysError) or not isinstance(component, Component):
        return ""
    try:
        return _missing_arrays(component, verb)
    except Exception:  # what keeps its arrays from being drawn is another matter
        return ""


hooks.advice = _advice


def require_dispatched(component: Any) -> None:
    """Raise for a function in the body of the component's class that is called as a verb, which would not see it."""
    if isinstance(component, Component):
        _require_dispatched(type(component), generation())


@functools.lru_cache(maxsize=1024)
def _require_dispatched(cls: type, generation: int) -> None:
    known = {name: getattr(contracts, name) for name in contracts.__all__ if name not in _OF_RUNS}
    for owner in cls.__mro__:
        for name in (name for name, value in vars(owner).items() if name in known and inspect.isfunction(value)):
            firsts = (k for m in known[name].methods if m.hints for k in m.members[0])
            if not any(issubclass(k, owner) for k in firsts):  # else its method may well call the function
                argument = owner.__name__.lower().strip("_")
                raise TypeError(
                    f"{owner.__name__}.{name} is written inside the class, where the verb `{name}` does not see it. Write it "
                    f"outside, with @dispatch above it: def {name}({argument}: {owner.__name__}, …): …"
                )


def check_fields(component: Any) -> None:
    """Raise on fields whose kind is unclear, values that do not fit the kind, and parameters at two paths."""
    everything = components(component)
    for path, part in everything:
        if not isinstance(part, Component):
            _check_foreign(part, path)
            continue
        for name, kind in kinds(type(part)).items():
            value = getattr(part, name)
            if kind == UNCLEAR:
                raise TypeError(
                    f"{type(part).__name__}.{name} ({_join(path, name)}): its annotation does not say what the field is. "
                    "Annotate an array as `jax.Array`, a component by its class, a setting as `int`, `bool`, `str` or "
                    "`Callable`, a number that may change as `float`; or say it: `= fm.static()`, `= fm.hyper()`."
                )
            if kind == STATIC:
                _check_static(value, path, name)
            elif name != "mode" and value is not None and not is_array(value):
                _check_data(value, _join(path, name), type(part), name)
    _check_shared(everything)
    check_shared_arrays(component)


def _check_foreign(module: Any, where: str) -> None:
    name = f"{type(module).__name__}{f' at {where!r}' if where else ''}"
    if jax.tree_util.all_leaves([module]):
        raise TypeError(f"{name} is no pytree, so its arrays cannot be found: its class was made with pytree=False.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(module)[0]:
        if not is_array(leaf):
            _check_static(leaf, where, jax.tree_util.keystr(path, simple=True, separator="."))


def _check_static(value: Any, path: str, name: str) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{_join(path, name)} is static, and a {type(value).__name__} cannot be compared by jit. Give a tuple of plain values."
        ) from None
    if isinstance(value, Tree) and jax.tree.leaves(value):
        raise TypeError(
            f"{_join(path, name)} is static, and a {type(value).__name__} came, which holds data: annotate the field by its class."
        )


def _check_data(value: Any, where: str, cls: type, field: str) -> None:
    if value is None or is_part(value):
        return  # its fields are checked by themselves
    if isinstance(value, (Tree, *_CONTAINERS)):  # somebody else's model may have leaves of any kind
        for name, inner in items(value)[0]:
            _check_data(inner, _join(where, name), cls, field)
    elif jax.tree_util.all_leaves([value]) and not (is_array(value) or isinstance(value, int | float | complex)):
        if isinstance(value, type) and issubclass(value, Tree):
            raise TypeError(f"{where} must be an instance, got the class {value.__name__}; write {value.__name__}(…).")
        annotation = cls.__dataclass_fields__[field].type  # type: ignore[attr-defined]
        said = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", annotation)
        raise TypeError(
            f"{where} is data, and {short(value)} came: a number, an array or a component was expected; its field is annotated "
            f"{said}. {hint(type(value))}".strip()
        )


def _check_shared(everything: list[tuple[str, Any]]) -> None:
    """As a pytree, one object at two paths becomes two objects, which would be trained apart."""
    places: dict[int, str] = {}
    for path, part in everything:
        first = places.setdefault(id(part), path)
        if first != path and _owns(part):
            raise ValueError(
                f"the same {type(part).__name__} is at {first!r} and at {path!r}; as a pytree it would become two. Make two "
                "of them, or keep it in one field and use that field twice in `forward` or `losses`."
            )


def check_shared_arrays(component: Any) -> None:
    """Raise if a parameter is at two paths."""
    values = [id(value) for value in jax.tree.leaves(component) if is_array(value)]
    if len(set(values)) == len(values):
        return
    arrays: dict[int, str] = {}
    for leaf in leaves(component):
        if leaf.role == PARAMETER and arrays.setdefault(id(leaf.value), leaf.path) != leaf.path:
            raise ValueError(
                f"the same array is at {arrays[id(leaf.value)]!r} and at {leaf.path!r}, and would be trained as two. "
                "Copy it, or keep it in one field and use that field twice."
            )


def _owns(part: Any) -> bool:
    return any(leaf.role in (PARAMETER, BUFFER) for leaf in drawn(part))


def components(component: Any) -> list[tuple[str, Any]]:
    """Every component in the tree with its path, the root first."""
    found: list[tuple[str, Any]] = []

    def add(part: Any, path: str) -> None:
        found.append((path, part))
        if isinstance(part, Component):
            for name, inner in named_parts(part).items():
                add(inner, _join(path, name))

    if is_part(component):
        add(component, "")
    return found
