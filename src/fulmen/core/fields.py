"""How a field of a `Tree` is declared: what it is, and the limits of its values."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

__all__ = ["CHILD", "HYPER", "STATIC", "UNCLEAR", "Limits", "hyper", "static"]

STATIC, HYPER, CHILD, UNCLEAR = "static", "hyperparameter", "child", "unclear"


class Limits(NamedTuple):
    """The values that a field may have: `minimum` and `maximum` are allowed, `above` and `below` are not.

    They also hold where a subclass declares the field again.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    finite: bool = False  # implied by any bound


def static(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
    **options: Any,
) -> Any:
    """A field that is part of the type: never an array, compared when jit looks for a compiled program.

    Args:
        minimum, maximum: the smallest and the largest value; of a tuple, for each of its items.
        above, below: the same, but the bound itself is not allowed.
        choices: all values that are allowed.
        **options: those of `dataclasses.field`.

    `validate` checks the limits, since values may be tracers when a component is made.
    """
    return _field(STATIC, Limits(minimum, maximum, above, below, choices), options)


def hyper(
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    finite: bool = False,
    **options: Any,
) -> Any:
    """A field that is data but never trained, nor is anything in it: it may change without recompiling.

    Args:
        minimum, maximum: the smallest and the largest value; of an array, for all its elements.
        above, below: the same, but the bound itself is not allowed.
        finite: whether infinity and NaN are refused; a bound refuses them in any case.
        **options: those of `dataclasses.field`.

    `validate` checks the limits, since values may be tracers when a component is made.
    """
    return _field(HYPER, Limits(minimum, maximum, above, below, finite=finite), options)


def _field(kind: str, limits: Limits, options: dict[str, Any]) -> Any:
    declared = {"limits": limits} if limits != Limits() else {}
    return dataclasses.field(metadata={"fulmen": kind, **declared, **options.pop("metadata", {})}, **options)
