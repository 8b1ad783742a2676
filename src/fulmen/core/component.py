"""Components: types that are pytrees and hold their parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.mode import Eval, Mode, name_hash
from fulmen.core.tree import Tree, data_fields, items, remake
from fulmen.core.verbs import after_update, bind, forward, init, show, validate
from fulmen.dispatching.lazy_libraries import library_of
from fulmen.dispatching.registry import dispatch

__all__ = ["Buffer", "Component", "Frozen", "Game", "Model", "Parameter", "System", "Wrapper", "record"]


class Component(Tree):
    """The root of models, systems, objectives, metrics and attacks: a frozen dataclass that is a pytree.

    What a field is follows from its annotation: `int`, `bool`, `str` and callables are static, `float` is a
    hyperparameter (data that is never trained), arrays and components are children, also in lists, tuples and dicts.
    `fm.static()` and `fm.hyper()` say it where the annotation does not.
    """

    mode: Mode | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        fields = cls.__dict__["__dataclass_fields__"]
        if fields["mode"] is not Component.__dict__["__dataclass_fields__"]["mode"]:
            raise TypeError(
                f"{cls.__name__}.mode: every component has a field `mode` for what it is called for; use another name."
            )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return forward(self, *inputs, **options)

    def _repr_html_(self) -> str:
        return show(self)


class Model(Component):
    """Maps inputs to outputs and owns parameters: the inexact arrays in its fields are trained.

    `model(x)` is `forward(model, x)`, the only method that a model must have.

    >>> import jax, fulmen as fm
    >>> class Scale(fm.Model):
    ...     factor: jax.Array
    >>> @fm.dispatch
    ... def forward(scale: Scale, x): return scale.factor * x
    >>> float(Scale(jax.numpy.float32(2.0))(3.0))
    6.0
    """


class System(Component):
    """Components put together for a task. Its own arrays are hyperparameters; its parts own the parameters."""


class Game(System):
    """A system whose entries in `losses` belong to its players, the fields of the same names.

    Each entry is computed with every other field's parameters under `stop_gradient`, so one ordinary gradient of the
    sum gives each player its own.

    All move in every step, from the same point. `fm.intervals` and `fm.every` say who rests when, and `fm.systems.Alternating(game)`
    lets them move one after another. A field may hold several players in a list, tuple or dict: an entry `"critics.0"`, or
    `critics=[…]` with an item for each, belongs to one of them, any other entry `critics` to all of them together. A player
    may be a system, or a game.
    """


class Wrapper(System):
    """A system around one part, its first field: what it does not define itself, it hands to that part."""

    @property
    def __part__(self) -> Any:
        return getattr(self, part_name(type(self)))


def part_name(cls: type) -> str:
    """The name of a wrapper's part."""
    names = [f.name for f in dataclasses.fields(cls) if f.name != "mode"]  # type: ignore[arg-type]
    if not names:
        raise TypeError(f"{cls.__name__} is a Wrapper without a field: the first field is the part that it is around.")
    return names[0]


class Frozen(Wrapper):
    """A part as it is: in `Eval` mode, without gradient and without optimizer state.

    Args:
        part: the component.
    """

    __example__ = "fm.Frozen(part)"

    part: Component

    @property
    def __part__(self) -> Any:
        return still(self.part)


class Parameter(Tree):
    """An array that is trained wherever it stands, as on a system. Read it by `.value`.

    Args:
        value: an inexact array of any shape.
    """

    __example__ = "fm.Parameter(array)"

    value: jax.Array


class Buffer(Tree):
    """State that is no parameter, such as running statistics. Read it by `.value`; `record` says what it becomes.

    Args:
        value: an array of any shape and type, or a tree of them. Integers are exact up to 2²⁴.
    """

    value: jax.Array
    slot: jax.Array | None = dataclasses.field(default=None, repr=False)


@jax.custom_vjp
def _tap(y: Any, slot: Any, new: Any) -> Any:
    return y


def _tap_forward(y: Any, slot: Any, new: Any) -> Any:
    return y, (new, slot[1])


def _tap_backward(residuals: Any, cotangent: Any) -> Any:
    new, count = residuals
    # The 1 is made of `new`, so that under vmap it is counted once per example.
    one = jnp.where(new.ravel()[:1].sum() == 0, 1.0, 1.0).astype(count.dtype)
    return cotangent, (new, jnp.broadcast_to(one, count.shape)), jnp.zeros_like(new)


_tap.defvjp(_tap_forward, _tap_backward)


def record(y: Any, buffer: Buffer, new: Any) -> Any:
    """Return `y`, and in a training step let the buffer become `new`.

    While a training step differentiates, the buffer's slot collects `(new, 1)` for each use; its value after the step is
    the total over the count. Anywhere else, as in an attack's inner gradients or an evaluation, this is the identity.

    Args:
        y: something that the loss will depend on: an array of floats of any shape, or a tree with one in it.
        buffer: what to change.
        new: its new value, of the buffer's shape (or a tree of them, if the buffer holds one).

    Returns:
        `y`.

    Raises:
        TypeError: if `y` has no gradient, or something else than a buffer came.
        ValueError: if the new value has another shape.

    >>> import fulmen as fm, jax.numpy as jnp
    >>> float(fm.record(jnp.float32(2.0), fm.Buffer(jnp.zeros(())), 1.0))  # no training step
    2.0
    """
    if not isinstance(buffer, Buffer):
        raise TypeError(f"record(y, buffer, new) changes a `fm.Buffer`; a {type(buffer).__name__} came.")
    if buffer.slot is None:
        return y
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(y)]
    if not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in types):
        raise TypeError(
            f"record: y has type {', '.join(map(str, types))} and so no gradient; record on floats that the loss depends on."
        )
    values, structure = jax.tree.flatten(buffer.value)
    for old, slot, value in zip(values, structure.flatten_up_to(buffer.slot), structure.flatten_up_to(new)):
        value = jnp.asarray(value)
        if value.shape != old.shape:
            raise ValueError(f"record: the buffer holds shape {old.shape}, and the new value has {value.shape}.")
        y = _tap(y, slot, jax.lax.stop_gradient(value).astype(slot[0].dtype))
    return y


# Trees of components


def still(tree: Any) -> Any:
    """The tree with nothing differentiated through its arrays."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if hasattr(v, "dtype") else v, tree)


def parts(component: Component) -> dict[str, Any]:
    """The fields that are not static, without the mode."""
    fields = () if is_foreign(component) else data_fields(type(component))
    return {name: getattr(component, name) for name in fields if name != "mode"}


def is_part(value: Any) -> bool:
    """Whether a value is a component, or a module of another library that stands for one."""
    return isinstance(value, Component) or is_foreign(value)


def is_foreign(value: Any) -> bool:
    """Whether a value is a module of another library, as in an unbound tree."""
    return library_of(type(value)) is not None


def map_components(function: Callable[[Any, str], Any], value: Any, path: str = "") -> Any:
    """Apply a function to the components in a field's value: itself, or those in lists, dicts or other trees of it."""
    if is_part(value):
        return function(value, path)
    if jax.tree_util.all_leaves([value]):
        return value
    inside, structure = items(value)
    new = [map_components(function, inner, f"{path}.{name}" if path else name) for name, inner in inside]
    return structure.unflatten(new) if any(a is not b for a, (_, b) in zip(new, inside)) else value


def map_parts(function: Callable[[Any, str], Any], component: Any) -> Any:
    """The component with a function applied to each component directly inside; `function(part, path)`."""
    changes = {n: map_components(function, v, n) for n, v in parts(component).items()}
    return remake(component, changes) if changes else component  # of another library's module there is nothing to change


def named_parts(component: Component, *kinds: type) -> dict[str, Any]:
    """The components directly inside that are of some of these kinds, by path (`"model"`, `"layers.0"`)."""
    found: dict[str, Any] = {}

    def note(part: Any, path: str) -> Any:
        if isinstance(part, kinds or (Component,)) or (is_foreign(part) and (not kinds or Model in kinds)):
            if path in found:
                raise ValueError(f"{type(component).__name__} has two parts called {path!r}: give one of them another name.")
            found[path] = part
        return part

    for name, value in parts(component).items():
        if isinstance(value, Component):
            note(value, name)
        elif value is not None and not hasattr(value, "dtype"):
            map_components(note, value, name)
    return found


def fold_name(key: Any, name: str) -> Any:
    """A key that belongs to a name."""
    return jax.random.fold_in(key, np.uint32(name_hash(name)))


# Methods of all components


@dispatch
def bind(component: object, mode):
    return component


@dispatch
def bind(component: Component, mode):
    own = mode.over(component.mode)
    inside = map_parts(lambda part, path: bind(part, _below(own, path)), component)
    return remake(inside, {"mode": own})


def _below(mode: Mode, path: str) -> Mode:
    for name in path.split("."):
        mode = mode.at(name)
    return mode


@dispatch
def bind(frozen: Frozen, mode):
    own = mode.over(frozen.mode)
    below = own if isinstance(own, Eval) else remake(Eval(own.root), {"salt": own.salt})
    inside = map_parts(lambda part, path: bind(part, _below(below, path)), frozen)
    return remake(inside, {"mode": own})


def unbind(component: Any) -> Any:
    """The tree without modes, as it is stored and differentiated."""

    def strip(part: Any, path: str) -> Any:
        if hasattr(type(part), "__stands_for__"):
            return part.plain
        if is_foreign(part):
            return part
        return remake(map_parts(strip, part), {"mode": None})

    return map_components(strip, component)


@dispatch
def init(component: Component, key):
    return map_parts(lambda part, path: init(part, fold_name(key, path)), component)


@init.around(Component)
def _keep_what_is_there(call, component, key):
    """Arrays that are there stay, whatever the method draws."""
    if isinstance(key, int | np.integer):
        raise TypeError(f"init: a random key was expected, and the number {key} came: jax.random.key({key}).")
    fresh = call(component, key)
    here = {path: leaf for path, leaf in jax.tree_util.tree_flatten_with_path(component)[0] if hasattr(leaf, "dtype")}
    if not here:
        return fresh
    drawn, structure = jax.tree_util.tree_flatten_with_path(fresh)
    return structure.unflatten([here.get(path, leaf) for path, leaf in drawn])


@dispatch
def after_update(component: Component, batch, mode):
    return map_parts(lambda part, path: after_update(part, batch, mode.at(path)), component)


@dispatch
def after_update(frozen: Frozen, batch, mode):
    return frozen


@dispatch
def validate(component: object):
    return None
