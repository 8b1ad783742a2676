"""How functions of other libraries are called in a mode: by the names of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fulmen.core.mode import Mode, Train

__all__ = ["FLAGS", "KEYS", "flags", "key_for", "parameters_of"]

FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""Parameters that say what a call is for, with their values in training."""

KEYS = ("key", "rng", "rng_key", "dropout_rng")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def flags(function: Callable[..., Any], mode: Mode) -> dict[str, bool]:
    """What a function's parameters that say what a call is for are in a mode."""
    training = isinstance(mode, Train)
    return {name: FLAGS[name] == training for name in parameters_of(function) if name in FLAGS}


def key_for(parameter: inspect.Parameter, mode: Mode) -> Any:
    """A mode's key for a parameter. Where the mode has none, a parameter without a default gets a fixed key."""
    if mode.root is None and parameter.default is parameter.empty:
        return jax.random.key(0)
    return mode.key
