"""`Linen`: a Flax Linen module with its variables."""

from collections.abc import Callable
from typing import Any

import jax

from fulmen.core import Buffer, Model, Train, record, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.interop.functional import shapes_of, zeros
from fulmen.interop.signatures import flags


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
        self.__dict__.update(module=module, like=shapes_of(like), mode=None, **parts)

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
