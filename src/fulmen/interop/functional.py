"""`functional`: a model that is a pair of functions, as in Haiku, stax and Hugging Face's Flax models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Buffer, Mode, Model, Train, record, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.interop.signatures import KEYS, flags, key_for, parameters_of


class Functional(Model):
    """A model that is a pair of functions; `fm.functional` makes it.

    Args:
        init: `init(key, *like)` gives the parameters; the parameters and the state, if `apply` has a parameter `state`.
        apply: `apply(parameters, *inputs)`.
        like: the shapes and types of an example of the inputs.
        parameters: any tree of arrays; drawn by `init`.
        state: a `Buffer` of any tree of arrays, or None; drawn by `init`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    like: tuple[Any, ...] = static(default=())
    parameters: dict[str, jax.Array] | None = None
    state: Buffer | None = None


def functional(init: Callable[..., Any], apply: Callable[..., Any], *like: Any, parameters: Any = None) -> Functional:
    """A model that is a pair of functions: `(init, apply)`.

    The first argument of `apply` is the parameters. Its other arguments are chosen by their names: `state` (then `apply`
    returns `(outputs, state)`); `key`, `rng`, `rng_key` or `dropout_rng`: the mode's random key, None in evaluation; `train`,
    `training`, `is_training`, `deterministic`, `use_running_average` or `inference`: whether the mode is training; all others:
    inputs. `fm.functional(*hk.transform_with_state(f), x[:1])` is a Haiku model.

    Args:
        init: `init(key, *like)` gives the parameters, or `(parameters, state)`.
        apply: `apply(parameters, *inputs)` gives the outputs for a batch.
        *like: an example of the inputs, batch axis first: arrays, of which only shapes and types are kept, or
            `jax.ShapeDtypeStruct`s. None if `init` takes only a key.
        parameters: the parameters, such as pretrained ones; None to draw them by `init`.

    >>> def draw(key): return {"w": jax.random.normal(key, (4, 3))}
    >>> def apply(parameters, x): return x @ parameters["w"]
    >>> model = fm.init(fm.functional(draw, apply), jax.random.key(0))
    >>> fm.forward(model, jnp.ones((5, 4))).shape
    (5, 3)
    """
    return Functional(init, apply, shapes_of(like), parameters)


def shapes_of(like: Any) -> tuple[Any, ...]:
    """Shapes and types in place of arrays: unlike arrays, they can be static."""
    return tuple(
        v if isinstance(v, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in like
    )


def zeros(like: tuple[Any, ...]) -> list[jax.Array]:
    """Inputs of given shapes and types."""
    return [jnp.zeros(v.shape, v.dtype) for v in like]


@dispatch
def validate(model: Functional):
    if not parameters_of(model.apply):
        raise TypeError("functional: apply must take the parameters and the inputs, got a function without parameters.")


@dispatch
def init(model: Functional, key):
    if model.parameters is not None and not _stateful(model):
        return model
    drawn = model.init(key, *zeros(model.like))
    if not _stateful(model):
        return remake(model, {"parameters": drawn})
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(
            f"functional: init must return (parameters, state), since `apply` has a parameter `state`, got {type(drawn).__name__}."
        )
    parameters, state = drawn
    return remake(model, {"parameters": parameters, "state": Buffer(state)})


def _stateful(model: Functional) -> bool:
    return "state" in parameters_of(model.apply)


@dispatch
def forward(model: Functional, *inputs, mode):
    arguments, keywords = _arguments(model, inputs, mode)
    result = model.apply(*arguments, **keywords)
    if model.state is None:
        return result
    outputs, state = result
    return record(outputs, model.state, state) if isinstance(mode, Train) else outputs


def _arguments(model: Functional, inputs: tuple[Any, ...], mode: Mode) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments of `apply`. Positional ones end at the first parameter without a value."""
    values, waiting = flags(model.apply, mode), list(inputs)
    positional: list[Any] = [model.parameters]
    keywords, ended = {}, False
    _, *others = parameters_of(model.apply).items()
    for name, parameter in others:
        if parameter.kind is parameter.KEYWORD_ONLY:
            if name in KEYS:
                keywords[name] = key_for(parameter, mode)
            elif name in values:
                keywords[name] = values[name]
        elif ended or parameter.kind is parameter.VAR_KEYWORD:
            continue
        elif name == "state" and model.state is not None:
            positional.append(model.state.value)
        elif name in KEYS:
            positional.append(mode.key)
        elif name in values:
            positional.append(values[name])
        elif waiting and parameter.kind is not parameter.VAR_POSITIONAL:
            positional.append(waiting.pop(0))
        else:
            ended = True
    return [*positional, *waiting], keywords
