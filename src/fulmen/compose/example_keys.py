"""What each example draws for itself, so that it does not depend on the others in its batch."""

from __future__ import annotations

from typing import Any

import jax

from fulmen.core.batch import index
from fulmen.core.mode import require_key

__all__ = ["example_keys"]


def example_keys(component: Any, batch: Any, what: str) -> jax.Array:
    """`(n,)` random keys, by the examples' `index` or else by their places in the batch.

    Args:
        component: with a mode bound, by whose key it draws.
        batch: a batch of `n` examples.
        what: what is drawn, in the singular.

    Raises:
        ValueError: if the mode has no key.
    """
    key = require_key(None if component.mode is None else component.mode.at(what).example_key, component)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index(batch))
