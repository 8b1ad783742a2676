"""What the fields of systems are held against."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fulmen.core.component import is_part
from fulmen.core.naming import concrete, number
from fulmen.core.tree import short

__all__ = ["require_kind", "require_number", "require_part"]


def require_kind(component: Any, name: str, kind: Any, expected: str, instead: str = "") -> None:
    """Raise unless a field is of a type, or of one of a union; `instead` says what to write."""
    if not isinstance(getattr(component, name), kind):
        raise TypeError(_other(component, name, expected, f": {instead}" if instead else "."))


def require_part(component: Any, name: str, expected: str) -> None:
    """Raise unless a field is a component, the library's or another's."""
    if not is_part(getattr(component, name)):
        raise TypeError(_other(component, name, expected, "."))


def _other(component: Any, name: str, expected: str, end: str) -> str:
    return f"{type(component).__name__}, {name}: {expected} was expected, and {short(getattr(component, name))} came{end}"


def require_number(component: Any, name: str, *, above: bool = False) -> None:
    """Raise unless a number is finite and not negative, or `above` 0; what is being traced passes."""
    value = getattr(component, name)
    seen = concrete(value)
    who, what = f"{type(component).__name__}, {name}", "above 0" if above else "of at least 0"
    if seen is None and not hasattr(value, "dtype"):
        raise TypeError(f"{who}: a number was expected, and {short(value)} came.")
    if seen is not None and not (jnp.isfinite(seen) & ((seen > 0) if above else (seen >= 0))).all():
        raise ValueError(f"{who}: a finite number {what} was expected, and {number(value)} came.")
