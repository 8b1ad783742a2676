"""The `__init__` of a `Tree` or an `Immutable`: generated without the time to compile it, or custom, which may assign each field once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fulmen.core.suggestions import suggesting, unknown_keyword


class _Factory:
    """What a signature shows for a default that is made for each instance."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


def generated_init(cls: Any) -> Callable[..., None]:
    """An `__init__` that sets the fields of a dataclass, like the one that `dataclasses` would compile from text.

    Raises:
        TypeError: if a field without a default follows one with a default.
    """
    _check_order(cls)
    fields: _Fields | None = None  # most classes of a library are not used by a program

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        nonlocal fields
        by_position, known, required, everything, prepare = fields = fields or _fields(cls)
        given = dict(zip(by_position, args, strict=False))
        given.update(named)
        if len(given) != len(args) + len(named) or not known >= given.keys() >= required:
            raise _wrong_arguments(cls, args, named, by_position, required)
        self.__dict__.update(given)
        if prepare is not None:
            _set_defaults(self, known)
            prepare(self)
        _set_defaults(self, everything)

    __init__.__module__, __init__.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    return __init__


class _Fields(NamedTuple):
    """The names of the fields that `__init__` takes by position, takes and must get, those of all fields, and `__post_init__`."""

    by_position: list[str]
    known: set[str]
    required: set[str]
    everything: set[str]
    prepare: Callable[[Any], None] | None


def _fields(cls: Any) -> _Fields:
    everything = dataclasses.fields(cls)
    known = [f for f in everything if f.init]
    return _Fields(
        by_position=[f.name for f in known if not f.kw_only],
        known={f.name for f in known},
        required={f.name for f in known if not _has_default(f)},
        everything={f.name for f in everything},
        prepare=getattr(cls, "__post_init__", None),
    )


class SignatureOfFields:
    """The `__signature__` of a class, which is made when `inspect.signature` asks for it: by its fields or a custom `__init__`."""

    def __get__(self, instance: Any, cls: Any) -> inspect.Signature:
        if instance is not None:  # of an instance, `inspect.signature` describes `__call__`
            raise AttributeError("__signature__")
        custom = inspect.unwrap(cls.__init__)
        if custom is not cls.__init__:
            return inspect.signature(functools.partial(custom, cls))
        fields = [f for f in dataclasses.fields(cls) if f.init]
        return inspect.Signature([_parameter(f) for f in sorted(fields, key=lambda f: bool(f.kw_only))])


def completed_init(cls: Any, init: Callable[..., None]) -> Callable[..., None]:
    """A custom `__init__`, and then the defaults of the fields that it did not assign.

    Raises:
        AttributeError: when it leaves a field without a value.
    """
    everything, assign = {f.name for f in dataclasses.fields(cls)}, suggesting(init, "field")

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        assign(self, *args, **options)
        if type(self) is cls:  # else a subclass's `__init__` may assign more fields
            _set_defaults(self, everything)

    return __init__


def _set_defaults(tree: Any, names: set[str]) -> None:
    """Give the fields of these names that have no value their defaults."""
    values = tree.__dict__
    for name in names - values.keys():
        values[name] = default_of(tree.__dataclass_fields__[name])
        if values[name] is dataclasses.MISSING:
            del values[name]
            raise AttributeError(f"{type(tree).__name__}.__init__ did not set the field {name!r}.")


def default_of(field: Any) -> Any:
    """The default of a field, made if it has a factory; `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _check_order(cls: Any) -> None:
    optional = None
    for field in dataclasses.fields(cls):
        if field.init and not field.kw_only:
            if _has_default(field):
                optional = field.name
            elif optional:
                raise TypeError(
                    f"{cls.__name__}.{field.name} has no default but follows {optional}, which has one; change their order."
                )


def _parameter(field: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if field.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = field.default if field.default_factory is dataclasses.MISSING else _FACTORY
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(field.name, kind, default=default, annotation=field.type)


def _wrong_arguments(
    cls: type, args: tuple[Any, ...], named: Mapping[str, Any], by_position: list[str], required: set[str]
) -> TypeError:
    fields = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "mode"]  # type: ignore[arg-type]
    unknown = next((name for name in named if name not in (*fields, "mode")), None)
    if unknown is not None:
        return TypeError(unknown_keyword(cls.__name__, unknown, fields, {*named, *by_position[: len(args)]}))
    if len(args) > len(by_position):
        order = ", ".join(by_position) or "none"
        named_only = ", ".join(f"{name}=…" for name in fields if name not in by_position and name not in named)
        remedy = f"; write the others by name: {named_only}" if named_only else ""
        return TypeError(
            f"{cls.__name__} takes {len(by_position)} arguments by position ({order}), got {len(args)}{remedy}."
        )
    given = {*by_position[: len(args)], *named}
    missing = [name for name in fields if name in required - given]
    if missing:
        example = ", ".join(f"{name}=…" for name in missing)
        return TypeError(f"{cls.__name__} is missing {', '.join(missing)}: write {cls.__name__}({example}).")
    twice = next(name for name in by_position[: len(args)] if name in named)
    return TypeError(f"{cls.__name__} got {twice} twice, by position and by name.")
