"""`Tree`: a frozen dataclass that is a pytree; annotations determine the kinds of its fields."""

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, dataclass_transform

import jax

from fulmen.core.construction import SignatureOfFields, completed_init, generated_init
from fulmen.core.fields import STATIC, hyper, kinds, known_kinds, note_scope, static
from fulmen.core.pickling import Fields
from fulmen.dispatching import hooks
from fulmen.dispatching.redefinition import define

_layouts: dict[type, tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]] = {}


# To a type checker it is not frozen, so that a custom `__init__` may assign fields.
@dataclass_transform(eq_default=False, field_specifiers=(static, hyper, dataclasses.field))
class Tree:
    """The base of all data types. Every subclass is a frozen dataclass and a pytree.

    Unflattening does not run `__init__` or `__post_init__`, since JAX unflattens trees with other objects as leaves.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __signature__ = SignatureOfFields()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        custom = vars(cls).get("__init__")
        # `frozen=True` and a generated `__init__` would compile three functions for each class.
        dataclasses.dataclass(init=False, eq=False, repr=False)(cls)
        cls.__init__ = completed_init(cls, custom) if custom else generated_init(cls)
        cls.__dataclass_fields__ = Fields(cls, cls.__dataclass_fields__)
        note_scope(cls)
        jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, _unflatten(cls), _flatten)
        define(cls, _by_statement(cls))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field that has no value yet, in a custom `__init__` or a `__post_init__`; later it is an error."""
        if name in self.__dict__ or name not in type(self).__dataclass_fields__:
            raise dataclasses.FrozenInstanceError(_immutable(self, name, value))
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete {type(self).__name__}.{name}, a tree is immutable.")

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.repr]
        return f"{type(self).__name__}({', '.join(f'{f.name}={short(getattr(self, f.name, None))}' for f in fields)})"


jax.tree_util.register_pytree_node(Tree, lambda tree: ((), None), lambda _, children: Tree())  # for fields annotated `Tree`


def _by_statement(cls: type) -> bool:
    """Whether a class statement makes the class, rather than a call of `type`: only then its body is in the running code."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name in ("__init_subclass__", "__new__"):
        frame = frame.f_back
    return any(isinstance(code, types.CodeType) and code.co_name == cls.__name__ for code in frame.f_code.co_consts)


def _immutable(tree: Tree, name: str, value: Any) -> str:
    cls, fields = type(tree).__name__, type(tree).__dataclass_fields__
    if name in fields:
        return f"cannot assign to {cls}.{name}, a tree is immutable: make a changed copy, fm.replace(tree, {{{name!r}: …}})."
    declare = f"{cls} has no field {name!r}: declare it in the class, as in `{name}: {annotation(value)}`"
    if not tree.__dict__.keys() >= fields.keys():  # an `__init__` is running, after which every field has a value
        return f"{declare}."
    return (
        f"cannot assign to {cls}.{name}, a tree is immutable. A value that changes in training is an fm.Buffer, which "
        f"fm.record(y, buffer, new) changes. {declare}, to set it in `__init__` or `__post_init__`."
    )


# As a pytree


def data_fields(cls: type) -> tuple[str, ...]:
    """The names of the fields that are not static, in the order of `jax.tree.leaves`."""
    return _layout(cls)[0]


def _layout(cls: type) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Any, ...]]:
    if cls in _layouts:
        return _layouts[cls]
    found = kinds(cls)
    data = tuple(name for name, kind in found.items() if kind != STATIC)
    layout = data, tuple(n for n, k in found.items() if k == STATIC), tuple(jax.tree_util.GetAttrKey(n) for n in data)
    if cls in known_kinds:
        _layouts[cls] = layout
    return layout


def _flatten(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
    data, fixed, _ = _layout(type(tree))
    values = tree.__dict__
    return [values[name] for name in data], tuple([values[name] for name in fixed])


def _flatten_with_keys(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
    children, aux = _flatten(tree)
    return list(zip(_layout(type(tree))[2], children, strict=True)), aux


def _unflatten(cls: type) -> Callable[[Any, Any], Any]:
    def unflatten(aux: Any, children: Any) -> Any:
        data, fixed, _ = _layout(cls)
        tree = object.__new__(cls)
        tree.__dict__.update(zip(data, children, strict=True))
        tree.__dict__.update(zip(fixed, aux, strict=True))
        return tree

    return unflatten


def remake(tree: Any, changes: Mapping[str, Any]) -> Any:
    """The tree with some fields changed; `__init__` does not run."""
    fresh = object.__new__(type(tree))
    fresh.__dict__.update(tree.__dict__)
    fresh.__dict__.update(changes)
    return fresh


# By path


def children(tree: Any) -> Iterator[tuple[str, Any]]:
    """The names and values directly inside: fields of a `Tree`, static ones too, or items of another pytree."""
    if hasattr(tree, "__replace_field__"):
        yield from tree.__fields__()
    elif isinstance(tree, Tree):
        # `mode` of a component is not listed
        yield from ((f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.repr or f.name != "mode")
    else:
        yield from items(tree)[0]


def items(node: Any) -> tuple[list[tuple[str, Any]], Any]:
    """One level of a pytree in JAX's order: names and values, and the structure. A leaf has no items."""
    found, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda value: value is not node)
    if found and not found[0][0]:
        return [], structure
    return [(jax.tree_util.keystr(path, simple=True), value) for path, value in found], structure


def _enter(inside: Mapping[str, Any], path: str) -> str | None:
    """The name that a path begins with. Keys of dictionaries may contain dots."""
    return max((name for name in inside if path == name or path.startswith(f"{name}.")), key=len, default=None)


def get(tree: Any, path: str) -> Any:
    """The value at a path such as `"model.layers.0.weight"`.

    Raises:
        KeyError: for an unknown path, with the names that exist.
    """
    rest, above = path, type(tree).__name__
    while rest:
        inside = dict(children(tree))
        name = _enter(inside, rest)
        if name is None:
            raise KeyError(f"no {rest!r} in {above}, which has: {', '.join(inside) or 'no fields'} (the path is {path!r})")
        tree, rest = inside[name], rest[len(name) + 1 :]
        above = path[: len(path) - len(rest)].rstrip(".")
    return tree


def replace(tree: Any, changes: Mapping[str, Any] | None = None, /, **fields: Any) -> Any:
    """The tree with the values at some paths changed.

    Args:
        tree: a component, a state, or a list, tuple or dict of them.
        changes: from paths (`"model.layers.0.weight"`) to new values.
        **fields: the same for fields of the tree itself.

    Raises:
        KeyError: for an unknown path, with the names that exist.

    >>> import fulmen as fm
    >>> fm.replace(fm.CrossEntropy(smoothing=0.1), smoothing=0.2).smoothing
    0.2
    """
    for path, value in {**(changes or {}), **fields}.items():
        get(tree, path)
        tree = _replaced(tree, path, value)
    return tree


def _replaced(tree: Any, path: str, value: Any) -> Any:
    if not path:
        return value
    inside = dict(children(tree))
    name: Any = _enter(inside, path)
    inner = _replaced(inside[name], path[len(name) + 1 :], value)
    if hasattr(tree, "__replace_field__"):
        return tree.__replace_field__(name, inner)
    if isinstance(tree, Tree):
        return remake(tree, {name: inner})
    return items(tree)[1].unflatten([inner if key == name else item for key, item in inside.items()])


# In short form


def annotation(value: Any) -> str:
    """The annotation of a field for a value, as a user writes it."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return "jax.Array"
    kind = type(value)
    if isinstance(value, list | tuple | dict) and value:
        inside = annotation(next(iter(value.values() if isinstance(value, dict) else value)))
        return {list: f"list[{inside}]", tuple: f"tuple[{inside}, ...]"}.get(kind, f"dict[str, {inside}]")
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return "Callable"
    return "jax.Array | None" if value is None else hooks.spelled(kind) or kind.__name__


def with_article(kind: type) -> str:
    """The name of a class with its article, as in "an Attack"."""
    name = kind.__name__
    return f"{'an' if name[0] in 'AEIOUaeio' and not name.startswith('Uni') else 'a'} {name}"


def short(value: Any) -> str:
    """A value in short form: arrays by type and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).replace('float', 'f').replace('uint', 'u').replace('int', 'i')}{list(value.shape)}"
    if isinstance(value, Tree):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {short(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        inside = ", ".join(map(short, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if value is not None and not jax.tree_util.all_leaves([value]):
        return f"{type(value).__name__}(…)"  # another library's, which may print its arrays
    return repr(value)
