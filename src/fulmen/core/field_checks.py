"""What `setup` and `check` refuse in a component: unclear fields, unfit values, shared parameters, undispatched methods."""

import functools
import inspect
from typing import Any

import jax

from fulmen.core import verbs as contracts
from fulmen.core.component import Component, is_part
from fulmen.core.fields import HYPER, STATIC, UNCLEAR, kinds
from fulmen.core.leaves import BUFFER, CONTAINERS, PARAMETER, components, drawn, is_array, leaves
from fulmen.core.limits import check_limits
from fulmen.core.paths import by_path, join_path
from fulmen.core.state import State
from fulmen.core.tree import Tree, items, short, with_article
from fulmen.dispatching.compiled_code import generation
from fulmen.dispatching.lazy_libraries import hint
from fulmen.dispatching.registry import verbs

# Verbs that take states and data first: a component's method of such a name is unrelated to the verb.
_OF_RUNS = ("batches", "eval_step", "evaluate", "fit", "on", "plot", "predict", "setup", "steps", "train_step")


def require_dispatched(component: Any) -> None:
    """Raise for a method in the body of the component's class that has a verb's name: the verb would not call it."""
    if isinstance(component, Component):
        _require_dispatched(type(component), generation())


@functools.lru_cache(maxsize=1024)
def _require_dispatched(cls: type, generation: int) -> None:
    known = {v.__name__: v for v in verbs() if v.__name__ not in _OF_RUNS and getattr(contracts, v.__name__, None) is v}
    for owner in cls.__mro__:
        for name in (name for name, value in vars(owner).items() if name in known and inspect.isfunction(value)):
            firsts = (k for m in known[name].methods if m.hints for k in m.members[0])
            if not any(issubclass(k, owner) for k in firsts):  # else the verb's method may call it
                argument = owner.__name__.lower().strip("_")
                raise TypeError(
                    f"{owner.__name__}.{name} is in the body of the class, where the verb `{name}` does not find it. Write it "
                    f"below the class, with @dispatch above it: def {name}({argument}: {owner.__name__}, …): …"
                )


def check_fields(component: Any, everything: list[tuple[str, Any]] | None = None) -> None:
    """Raise for fields of unclear kind, values that do not fit the kind, and parameters at two paths."""
    everything = components(component) if everything is None else everything
    for path, part in everything:
        if not isinstance(part, Component):
            _check_foreign(part, path)
            continue
        values = part.__dict__
        for name, kind in kinds(type(part)).items():
            value = values[name]
            if kind == UNCLEAR:
                raise TypeError(
                    f"{type(part).__name__}.{name} ({join_path(path, name)}): its annotation does not determine the kind of field. "
                    "Annotate an array as `jax.Array`, a component by its class, a setting as `int`, `bool`, `str` or "
                    "`Callable`, a number that may change as `float`; or declare it by `= fm.static()` or `= fm.hyper()`."
                )
            if kind == STATIC:
                _check_static(value, path, name)
            elif name != "mode" and value is not None and not is_array(value):
                _check_data(value, join_path(path, name), part, name)
    _check_shared(everything)
    check_shared_arrays(component)


def _check_foreign(module: Any, where: str) -> None:
    name = f"{type(module).__name__}{f' at {where!r}' if where else ''}"
    if jax.tree_util.all_leaves([module]):
        raise TypeError(f"{name} must be a pytree, got a class that was made with pytree=False; its arrays cannot be found.")
    for path, leaf in by_path(module):
        if not is_array(leaf):
            _check_static(leaf, where, path)


def _check_static(value: Any, path: str, name: str) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{join_path(path, name)} is static and must be hashable, got {with_article(type(value))}. Give a tuple of plain values."
        ) from None
    if isinstance(value, Tree) and jax.tree.leaves(value):
        raise TypeError(
            f"{join_path(path, name)} is static and must not hold data, got {with_article(type(value))}; annotate the field by its class."
        )


def _check_data(value: Any, where: str, owner: Any, field: str) -> None:
    if value is None or is_part(value):
        return  # its fields are checked separately
    if isinstance(value, State):
        raise TypeError(f"{where} must be a component, got a State; write state.system.")
    if isinstance(value, (Tree, *CONTAINERS)):  # other libraries' trees may have leaves of any kind
        for name, inner in items(value)[0]:
            _check_data(inner, join_path(where, name), owner, field)
    elif isinstance(value, bool) and kinds(type(owner))[field] != HYPER:
        write = f"; write use_{field}={value}" if f"use_{field}" in kinds(type(owner)) else ""
        raise TypeError(f"{where} must be a number, an array or a component, got {value}{write}.")
    elif jax.tree_util.all_leaves([value]) and not (is_array(value) or isinstance(value, int | float | complex)):
        if isinstance(value, type) and issubclass(value, Tree):
            raise TypeError(f"{where} must be an instance, got the class {value.__name__}; write {value.__name__}(…).")
        check_limits(owner, field)
        annotation = type(owner).__dataclass_fields__[field].type
        written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", annotation)
        raise TypeError(
            f"{where} must be a number, an array or a component, got {short(value)}; its field is annotated {written}. "
            f"{hint(type(value))}".strip()
        )


def _check_shared(everything: list[tuple[str, Any]]) -> None:
    """Raise if an object with parameters is at two paths: a pytree would make it two objects, trained separately."""
    paths: dict[int, str] = {}
    for path, part in everything:
        first = paths.setdefault(id(part), path)
        if first != path and any(leaf.role in (PARAMETER, BUFFER) for leaf in drawn(part)):
            raise ValueError(
                f"the same {type(part).__name__} is at {first!r} and at {path!r}; as a pytree it would become two. Write "
                "jax.tree.map(jnp.copy, part) for a copy, or keep it in one field and use that field twice in `forward` or `losses`."
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
                f"the same array is at {arrays[id(leaf.value)]!r} and at {leaf.path!r}, and would be trained as two arrays. "
                "Copy it, or keep it in one field and use that field twice."
            )
