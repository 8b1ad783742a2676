"""The data of one `train_step` or `eval_step`, checked on the host at little cost."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fulmen.core.batch_checks import checked_batch
from fulmen.core.state import State
from fulmen.core.verbs import as_batch, validate

# The largest number of axes that labels or weights on the host have, by type. Other types go through `checked_batch`.
_AXES = {np.dtype(name): 2 for name in ("int8", "int16", "int32", "int64")}
_AXES |= {np.dtype(name): 1 for name in ("float16", "float32")}
_AXES |= {np.dtype(name): -1 for name in ("bool", "uint8", "uint16", "uint32", "uint64")}  # never negative


def checked_step_data(state: State, raw: Any) -> Any:
    """The data of a step, or an error: compiled code cannot refuse a negative label or weight, so the host checks them.

    Args:
        state: the state that is trained or evaluated.
        raw: the data of one batch.

    Raises:
        TypeError, ValueError: as `checked_batch` and the system's `validate` do.
    """
    for leaf in raw if type(raw) is tuple else jax.tree.leaves(raw):
        known = leaf.dtype in _AXES if type(leaf) is np.ndarray else isinstance(leaf, jax.Array)
        if not known or _has_negative(leaf):
            return _validated(state, raw)
    return raw


def _validated(state: State, raw: Any) -> Any:
    # `validate` traces the model, so it is called once for arrays that it accepts with negative numbers.
    raw, accepted = checked_batch(raw), state.structure.programs.setdefault("accepted with negative numbers", set())
    negative = {i for i, leaf in enumerate(jax.tree.leaves(raw)) if _has_negative(leaf)}
    if not negative <= accepted:
        validate(state.system, checked_batch(as_batch(state.system, raw)))
        accepted |= negative
    return raw


def _has_negative(leaf: Any) -> bool:
    """Whether an array on the host has a negative number or NaN, and as many axes as labels or weights may have."""
    if type(leaf) is not np.ndarray or leaf.ndim > _AXES.get(leaf.dtype, 1) or not leaf.size:
        return False
    return not leaf.flat[leaf.argmin()] >= 0  # a third of the time of `min`; finds NaN too
