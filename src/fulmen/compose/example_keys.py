"""Random keys per example, so that the randomness of an example does not depend on the rest of its batch."""

from typing import Any

import jax

from fulmen.core import index, require_key


def example_keys(component: Any, batch: Any, name: str) -> jax.Array:
    """`(n,)` random keys, from each example's `index`, or from its position in the batch if it has none.

    The key of the component's mode is used, with `name` folded in; without a mode it raises a ValueError.
    """
    key = require_key(None if component.mode is None else component.mode.at(name).example_key, component)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index(batch))
