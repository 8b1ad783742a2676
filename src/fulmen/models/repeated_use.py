"""`fold`: a layer that is used several times, with other random numbers in each use."""

from typing import Any

from fulmen.core import bound_mode, remake, unbind
from fulmen.core.verbs import bind


def fold(layer: Any, number: Any) -> Any:
    """The layer for one of several uses: in training it draws other random numbers in each.

    A layer's random numbers follow from the step's key and the layer's path, so that a `Dropout` that is called twice has the
    same mask twice, and in a loop the same mask in each iteration. `fold` makes them depend on a number too. Parameters and
    buffers are shared as before.

    Args:
        layer: a component.
        number: an integer, `()`, which may be traced, such as the index of a loop.

    Returns:
        The component, unchanged if no mode is bound to it.

    >>> drop = fm.bind(fm.models.Dropout(0.5), fm.Train(jax.random.key(0)))
    >>> x = jnp.ones(64)
    >>> bool((drop(x) == drop(x)).all()), bool((fm.models.fold(drop, 0)(x) == fm.models.fold(drop, 1)(x)).all())
    (True, False)
    """
    mode = bound_mode(layer)
    if mode is None:
        return layer
    folded = mode.fold(number)
    # A precision is that of the outermost model, not of its parts.
    bound = bind(unbind(layer), remake(folded, {"precision": None}))
    return bound if mode.precision is None else remake(bound, {"mode": folded})
