"""Models of other libraries as pairs of functions: `functional`, and `Linen` for Flax Linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Buffer, Mode, Model, Train, record, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.interop.foreign import KEYS, flags, key_for, parameters_of


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


class Linen(Model):
    """A Flax Linen module with its variables, since the module itself holds no arrays.

    The collection `params` is trained; all others, such as `batch_stats`, are state, which changes only in training steps.
    Random streams of any name are made from the mode's key. Parameters of the module's `__call__` named `train`, `training`,
    `is_training`, `deterministic`, `use_running_average` or `inference` are set by the mode.

    Args:
        module: the Linen module.
        *like: an example of its inputs, batch axis first: arrays, of which only shapes and types are kept, or
            `jax.ShapeDtypeStruct`s.
        variables: the variables, such as pretrained ones; None to draw them by `init`.

    >>> from flax import linen as nn
    >>> model = fm.init(fm.Linen(nn.Dense(3), jnp.zeros((1, 4))), jax.random.key(0))
    >>> fm.forward(model, jnp.ones((5, 4))).shape
    (5, 3)
    """

    module: Callable[..., Any]
    like: tuple[Any, ...] = static(default=())
    params: dict[str, jax.Array] | None = None
    state: Buffer | None = None

    def __init__(self, module: Any, *like: Any, variables: Any = None) -> None:
        parts = {"params": None, "state": None} if variables is None else _parts(variables)
        self.module, self.like = module, shapes_of(like)
        self.params, self.state = parts["params"], parts["state"]

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for Linen: `module.apply(variables, x)`."""
        return {"params": self.params, **_collections(self)}


def _collections(model: Linen) -> dict[str, Any]:
    value: Any = {} if model.state is None else model.state.value
    return value


def _parts(variables: Any) -> dict[str, Any]:
    state: Any = {name: value for name, value in variables.items() if name not in ("params", "intermediates")}
    return {"params": variables.get("params", {}), "state": Buffer(state) if state else None}


@dispatch
def validate(model: Linen):
    if not all(hasattr(model.module, name) for name in ("init", "apply")):
        raise TypeError(f"Linen.module must be a module of flax.linen, got {model.module!r}.")
    if model.params is None and not model.like:
        raise ValueError(
            f"Linen({type(model.module).__name__}) needs an example of its inputs to draw its variables: fm.Linen(module, x[:1])."
        )


@dispatch
def init(model: Linen, key):
    if model.params is not None:
        return model
    # With evaluation's flags, nothing is random, and BatchNorm's statistics keep their initial values.
    off = {name: not value for name, value in flags(model.module.__call__, Train(key)).items()}
    return remake(model, _parts(model.module.init(key, *zeros(model.like), **off)))


@dispatch
def forward(model: Linen, *inputs, mode):
    options: dict[str, Any] = flags(model.module.__call__, mode)
    key = mode.key
    rngs = None if key is None else {"params": key}  # Linen makes streams of other names from this one
    if model.state is None or not isinstance(mode, Train):
        return model.module.apply(model.variables, *inputs, rngs=rngs, **options)
    before = _collections(model)
    outputs, changed = model.module.apply(model.variables, *inputs, rngs=rngs, mutable=list(before), **options)
    return record(outputs, model.state, {**before, **changed})
