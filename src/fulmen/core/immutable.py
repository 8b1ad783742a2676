"""`Immutable`: a frozen dataclass that is not a pytree, such as a row of a table."""

import dataclasses
from typing import Any, ClassVar, dataclass_transform

from fulmen.core.construction import SignatureOfFields, generated_init


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Immutable:
    """Every subclass is a frozen dataclass. `@dataclass(frozen=True)` would compile six functions for each, at every import.

    Args:
        eq: whether two objects are equal where their fields are; without it, as where fields are arrays, only the same object is.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    __signature__ = SignatureOfFields()

    def __init_subclass__(cls, eq: bool = True, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(init=False, eq=False, repr=False)(cls)
        if "__init__" not in vars(cls):
            cls.__init__ = generated_init(cls)  # type: ignore[method-assign]
        if not eq:
            cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to {type(self).__name__}.{name}, it is immutable.")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete {type(self).__name__}.{name}, it is immutable.")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self))
