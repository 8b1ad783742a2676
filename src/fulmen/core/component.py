"""Components: types that are pytrees and hold their parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.mode import Mode, name_hash
from fulmen.core.paths import join_path
from fulmen.core.tree import Tree, data_fields, items, remake, with_article
from fulmen.core.verbs import forward, show
from fulmen.dispatching.lazy_libraries import library_of


class Component(Tree):
    """The base of models, systems, objectives, metrics and attacks: a frozen dataclass that is a pytree.

    Annotations determine the kinds of fields: `int`, `bool`, `str` and callables are static, `float` is a hyperparameter
    (data that is never trained), arrays and components are children, also in lists, tuples and dicts. `fm.static()` and
    `fm.hyper()` declare the kind explicitly.
    """

    __example__ = "fm.models.MLP(64, 10), or fm.models.Function(f) for a function"

    mode: Mode | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        fields = cls.__dict__["__dataclass_fields__"]
        _require_annotations(cls, fields)
        if fields["mode"] is not Component.__dict__["__dataclass_fields__"]["mode"]:
            raise TypeError(
                f"{cls.__name__}.mode: 'mode' is reserved, it holds the component's Train or Eval mode; rename the field."
            )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return forward(self, *inputs, **options)

    def _repr_html_(self) -> str:
        return show(self)


def _require_annotations(cls: type, fields: Any) -> None:
    """Raise for a component in the body of a class that is not the default of a field."""
    for name, value in vars(cls).items():
        if isinstance(value, Component) and (name not in fields or fields[name].default is not value):
            raise TypeError(
                f"{cls.__name__}.{name} must have an annotation to be a field: write `{name}: {type(value).__name__} = …`."
            )


class Model(Component):
    """A function from inputs to outputs with parameters: the inexact arrays in its fields are trained.

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
    """Components combined for a task. Its arrays are hyperparameters; the parameters are in its parts."""


class Game(System):
    """A system whose entries in `losses` belong to its players, the fields of the same names.

    Each entry is computed with the parameters of all other fields under `stop_gradient`, so the gradient of the sum is each
    player's gradient of its entry.

    All players are updated in every step, simultaneously. `fm.intervals` and `fm.optimizers.every` update players less often, and
    `fm.systems.Alternating(game)` updates them one after another. A field may hold several players in a list, tuple or dict:
    an entry `"critics.0"`, or an item of `critics=[…]`, belongs to one of them, any other entry `critics` to all of them. A
    player may be a system or a game.
    """


class Wrapper(System):
    """A system around one part, its first field: verbs without a method for the wrapper delegate to the part."""

    @property
    def __part__(self) -> Any:
        return first_field(self)


def part_name(cls: type) -> str:
    """The name of a wrapper's part."""
    names = [f.name for f in dataclasses.fields(cls) if f.name != "mode"]  # type: ignore[arg-type]
    if not names:
        raise TypeError(f"{cls.__name__} is a Wrapper and must have a field: the first field is the wrapped part.")
    return names[0]


def first_field(wrapper: Any) -> Any:
    """A wrapper's part, also where the wrapper delegates to another component, such as an average of the part."""
    return getattr(wrapper, part_name(type(wrapper)))


def unwrapped(component: Any) -> Any:
    """The component inside all wrappers."""
    while isinstance(component, Wrapper):
        component = first_field(component)
    return component


class Frozen(Wrapper):
    """A part that is not trained: in `Eval` mode, without gradient and without optimizer state.

    Args:
        part: the component.
    """

    __example__ = "fm.Frozen(part)"

    part: Component

    @property
    def __part__(self) -> Any:
        return still(self.part)


class Parameter(Tree):
    """An array that is trained also in a component that is not a model. Read it as `.value`.

    Args:
        value: an inexact array of any shape.
    """

    __example__ = "fm.Parameter(array)"

    value: jax.Array


class Buffer(Tree):
    """State that is not a parameter, such as running statistics. Read it as `.value`; `record` sets its next value.

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
    # The 1 depends on `new`, so that vmap counts it once per example.
    one = jnp.where(new.ravel()[:1].sum() == 0, 1.0, 1.0).astype(count.dtype)
    return cotangent, (new, jnp.broadcast_to(one, count.shape)), jnp.zeros_like(new)


_tap.defvjp(_tap_forward, _tap_backward)


def record(y: Any, buffer: Buffer, new: Any) -> Any:
    """Return `y`, and in a training step set the buffer's next value.

    While a training step is differentiated, the buffer's slot accumulates `(new, 1)` for each use; its value after the step
    is the total divided by the count. Otherwise, as in an attack or an evaluation, this is the identity.

    Args:
        y: a value that the loss depends on: an array of floats of any shape, or a tree with one in it.
        buffer: the buffer.
        new: its new value, of the buffer's shape, or a tree of such values if the buffer holds a tree.

    Returns:
        `y`.

    Raises:
        TypeError: if `y` has no gradient, or `buffer` is not a `Buffer`.
        ValueError: if the new value has another shape.

    >>> import fulmen as fm, jax.numpy as jnp
    >>> float(fm.record(jnp.float32(2.0), fm.Buffer(jnp.zeros(())), 1.0))  # no training step
    2.0
    """
    if not isinstance(buffer, Buffer):
        raise TypeError(
            f"record: buffer must be a fm.Buffer, got {with_article(type(buffer))}; write record(y, buffer, new)."
        )
    if buffer.slot is None:
        return y
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(y)]
    if not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in types):
        raise TypeError(
            f"record: y must be floating-point numbers that the loss depends on, got {', '.join(map(str, types))}."
        )
    values, structure = jax.tree.flatten(buffer.value)
    for old, slot, value in zip(values, structure.flatten_up_to(buffer.slot), structure.flatten_up_to(new)):
        value = jnp.asarray(value)
        if value.shape != old.shape:
            raise ValueError(f"record: new must have the buffer's shape {old.shape}, got {value.shape}.")
        y = _tap(y, slot, jax.lax.stop_gradient(value).astype(slot[0].dtype))
    return y


# Trees of components


def still(tree: Any) -> Any:
    """The tree with its arrays under `stop_gradient`."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if hasattr(v, "dtype") else v, tree)


def parts(component: Component) -> dict[str, Any]:
    """The fields that are not static, without the mode."""
    fields = () if is_foreign(component) else data_fields(type(component))
    return {name: getattr(component, name) for name in fields if name != "mode"}


def is_part(value: Any) -> bool:
    """Whether a value is a component or a module of another library."""
    return isinstance(value, Component) or is_foreign(value)


def is_foreign(value: Any) -> bool:
    """Whether a value is a module of another library, as in an unbound tree."""
    return library_of(type(value)) is not None


def map_components(function: Callable[[Any, str], Any], value: Any, path: str = "") -> Any:
    """Apply a function to the components in a field's value: the value itself, or those in a list, dict or other tree."""
    if is_part(value):
        return function(value, path)
    if jax.tree_util.all_leaves([value]):
        return value
    inside, structure = items(value)
    new = [map_components(function, inner, join_path(path, name)) for name, inner in inside]
    return structure.unflatten(new) if any(a is not b for a, (_, b) in zip(new, inside)) else value


def map_parts(function: Callable[[Any, str], Any], component: Any) -> Any:
    """The component with a function applied to each component directly inside; `function(part, path)`."""
    changes = {n: map_components(function, v, n) for n, v in parts(component).items()}
    return remake(component, changes) if changes else component  # another library's module has none


def named_parts(component: Component, *kinds: type) -> dict[str, Any]:
    """The components directly inside that are of these types, by path (`"model"`, `"layers.0"`)."""
    found: dict[str, Any] = {}

    def note(part: Any, path: str) -> Any:
        if isinstance(part, kinds or (Component,)) or (is_foreign(part) and (not kinds or Model in kinds)):
            if path in found:
                raise ValueError(f"{type(component).__name__} has two parts with the path {path!r}; rename one of them.")
            found[path] = part
        return part

    for name, value in parts(component).items():
        if isinstance(value, Component):
            note(value, name)
        elif value is not None and not hasattr(value, "dtype"):
            map_components(note, value, name)
    return found


def fold_name(key: Any, name: str) -> Any:
    """The key for a name."""
    return jax.random.fold_in(key, np.uint32(name_hash(name)))
