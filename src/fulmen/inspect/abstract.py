"""Components with shapes in place of arrays that are not drawn yet."""

from typing import Any

import jax

from fulmen.core import is_array
from fulmen.core.verbs import init


def described(component: Any) -> tuple[Any, bool]:
    """The component with shapes in place of arrays that are not drawn yet, and whether it has all arrays."""
    if not init.has(component, None):
        return component, True
    known: dict[str, Any] = {}

    def draw(key: Any) -> dict[int, Any]:
        known["flat"], known["structure"] = jax.tree_util.tree_flatten_with_path(init(component, key))
        return {i: leaf for i, (_, leaf) in enumerate(known["flat"]) if is_array(leaf)}

    drawn = jax.eval_shape(draw, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    here = dict(jax.tree_util.tree_flatten_with_path(component)[0])
    # Arrays from `init` are tracers here, which are replaced by their shapes; other leaves are kept.
    filled = [here.get(path, drawn.get(i, leaf)) for i, (path, leaf) in enumerate(known["flat"])]
    complete = all(path in here for i, (path, _) in enumerate(known["flat"]) if i in drawn)
    return known["structure"].unflatten(filled), complete
