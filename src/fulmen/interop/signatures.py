"""Which arguments a function of another library gets in a mode, by the names of its parameters."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fulmen.core import Mode, Train

_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""The names of parameters for the mode, with their values in training."""

KEYS = ("key", "rng", "rng_key", "dropout_rng")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def flags(function: Callable[..., Any], mode: Mode) -> dict[str, bool]:
    """The values of a function's parameters for the mode."""
    training = isinstance(mode, Train)
    return {name: _FLAGS[name] == training for name in parameters_of(function) if name in _FLAGS}


def key_for(parameter: inspect.Parameter, mode: Mode) -> Any:
    """The mode's key for a parameter; a fixed key if the mode has none and the parameter has no default."""
    if mode.root is None and parameter.default is parameter.empty:
        return jax.random.key(0)
    return mode.key
