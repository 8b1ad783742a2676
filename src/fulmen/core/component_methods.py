"""The verbs' methods for all components: how a mode is bound, arrays are drawn, and parts are updated after a step."""

from typing import Any

import jax
import numpy as np

from fulmen.core.component import Component, Frozen, fold_name, is_foreign, map_components, map_parts, named_parts
from fulmen.core.mode import Eval, Mode
from fulmen.core.tree import remake, short
from fulmen.core.verbs import after_update, bind, channels_first, init, validate
from fulmen.dispatching.registry import dispatch


@dispatch
def bind(component: object, mode):
    return component


@dispatch
def bind(component: Component, mode):
    own = mode.over(component.mode)
    return _with_modes(component, own, own)


def _with_modes(component: Component, own: Mode, of_parts: Mode) -> Component:
    """The component with its mode, and with its parts' modes made of another one by their paths."""

    def bind_part(part: Any, path: str) -> Any:
        mode = of_parts
        for name in path.split("."):
            mode = mode.at(name)
        return bind(part, mode)

    return remake(map_parts(bind_part, component), {"mode": own})


@dispatch
def bind(frozen: Frozen, mode):
    own = mode.over(frozen.mode)
    return _with_modes(frozen, own, own if isinstance(own, Eval) else remake(Eval(own.root, own.batch), {"salt": own.salt}))


def unbind(component: Any) -> Any:
    """The tree without modes, which is what is stored and differentiated."""

    def strip(part: Any, path: str) -> Any:
        if hasattr(type(part), "__stands_for__"):
            return part.plain
        if is_foreign(part):
            return part
        return remake(map_parts(strip, part), {"mode": None})

    return map_components(strip, component)


@dispatch
def init(component: Component, key):
    return map_parts(lambda part, path: init(part, fold_name(key, path)), component)


@init.around(Component)
def _keep_arrays(call, component, key):
    """Keep the arrays that the component has, whatever the method draws."""
    if isinstance(key, int | np.integer):
        raise TypeError(f"key must be a random key, got the number {key}; write init(component, jax.random.key({key})).")
    fresh = call(component, key)
    if not isinstance(fresh, Component):
        raise TypeError(
            f"init must return the component with its arrays, got {short(fresh)} for a {type(component).__name__}; write "
            "return fm.replace(component, weight=…)."
        )
    kept = {path: leaf for path, leaf in jax.tree_util.tree_flatten_with_path(component)[0] if hasattr(leaf, "dtype")}
    if not kept:
        return fresh
    drawn, structure = jax.tree_util.tree_flatten_with_path(fresh)
    return structure.unflatten([kept.get(path, leaf) for path, leaf in drawn])


@dispatch
def after_update(component: Component, batch, mode):
    return map_parts(lambda part, path: after_update(part, batch, mode.at(path)), component)


@dispatch
def after_update(frozen: Frozen, batch, mode):
    return frozen


@dispatch
def validate(component: object):
    return None


@dispatch
def channels_first(model: object):
    return False


@dispatch
def channels_first(model: Component):
    return any(map(channels_first, named_parts(model).values()))
