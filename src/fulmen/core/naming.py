"""Names under which objectives and metrics are logged, and how they print."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jax.core import Tracer

from fulmen.core.component import Component
from fulmen.core.construction import default_of
from fulmen.core.fields import static
from fulmen.core.tree import remake, short


class Named(Component):
    """A component that is logged under a name: by default that of its class, as `mean_absolute_error`."""

    compound: ClassVar[bool] = False  # whether a method call on its printed form needs brackets

    name: str = static(default="", kw_only=True, repr=False)

    def named(self, name: str) -> Self:
        """The same component under another name.

        Args:
            name: a key of the logs.

        >>> fm.MSE().named("reconstruction")
        MSE().named('reconstruction')
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a string such as 'reconstruction', got {name!r}.")
        return remake(self, {"name": name})

    @property
    def default_name(self) -> str:
        """The name if none was given."""
        return snake_case(type(self).__name__)

    def __repr__(self) -> str:
        text = f"({self.expression()})" if self.name and self.compound else self.expression()
        return f"{text}.named({self.name!r})" if self.name else text

    def expression(self) -> str:
        """Its printed form without the name."""
        return briefly(self)


def briefly(component: Component) -> str:
    """The printed form of a component, without fields that have their defaults."""
    given = [f for f in dataclasses.fields(component) if f.repr and not _at_default(f, getattr(component, f.name))]
    return f"{type(component).__name__}({', '.join(f'{f.name}={number(getattr(component, f.name))}' for f in given)})"


def snake_case(name: str) -> str:
    """A class's name as a key.

    >>> from fulmen.core.naming import snake_case
    >>> [snake_case(name) for name in ("CrossEntropy", "L2", "MSE", "KLDivergence")]
    ['cross_entropy', 'l2', 'mse', 'kl_divergence']
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def numbered(items: Iterable[Any]) -> dict[str, Any]:
    """Named components by name, in order; further ones of the same name are numbered: `mse`, `mse_2`."""
    found: dict[str, Any] = {}
    for item in items:
        name = first = item.name or item.default_name
        i = 1
        while name in found:
            i += 1
            name = f"{first}_{i}"
        found[name] = item
    return found


def concrete(value: Any) -> np.ndarray | None:
    """The value as a NumPy array; None for tracers and anything but a number or an array."""
    if isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return None
    return np.asarray(value) if isinstance(value, int | float | np.generic | np.ndarray | jax.Array) else None


def number(value: Any) -> str:
    """A value as it is written in code, also if it is a number on a device."""
    array = None if isinstance(value, bool) else concrete(value)
    if array is None or array.shape or array.dtype.kind not in "iuf":
        return short(value)
    text = repr(float(str(array[()])))  # the fewest digits for its precision
    return text.removesuffix(".0")


def _at_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = default_of(field)
    return value is default or (default is not dataclasses.MISSING and number(value) == number(default))
