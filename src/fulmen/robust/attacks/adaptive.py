"""Parts of adaptive evaluations: `BPDA`, a gradient for an operation without one, and `Through`, an attack on another system."""

from collections.abc import Callable
from typing import Any

import jax

from fulmen.core import Component, Model, State, is_part, still
from fulmen.core.verbs import forward, perturb, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.chain import Function
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.ensemble import fields_around, most_passes


class BPDA(Model):
    """A function with the gradient of another one: "backward pass differentiable approximation".

    Its outputs are exactly those of `function`. Put it in the place of an operation that hides the gradient, and attack that
    model. Athalye, Carlini and Wagner 2018, arXiv:1802.00420.

    Args:
        function: the operation, such as `jnp.round`: a function of an array, or a model.
        surrogate: a differentiable approximation, likewise; None is the identity ("straight-through").

    >>> layer = fm.attacks.BPDA(jnp.round)
    >>> y, pull_back = jax.vjp(layer, jnp.array([0.7]))
    >>> print(y, pull_back(jnp.ones(1))[0])
    [1.] [1.]
    """

    function: Component
    surrogate: Component

    def __init__(self, function: Callable[..., Any], surrogate: Callable[..., Any] = lambda x: x) -> None:
        self.function, self.surrogate = _as_part(function), _as_part(surrogate)


def _as_part(function: Any) -> Any:
    return function if is_part(function) else Function(function)


@dispatch
def forward(layer: BPDA, x):
    return _with_gradient_of(layer.function, layer.surrogate, x)


@jax.custom_jvp
def _with_gradient_of(function: Any, surrogate: Any, x: Any) -> Any:
    return forward(function, x)


@_with_gradient_of.defjvp
def _surrogate_tangent(primals: Any, tangents: Any) -> Any:
    function, surrogate, x = primals
    y = forward(function, x)
    near, change = jax.jvp(forward, (surrogate, x), tangents[1:])
    if near.shape != y.shape:
        raise ValueError(f"BPDA.surrogate must return the shape of the function, {y.shape}, got {near.shape}.")
    return y, change.astype(y.dtype)


class Through(Attack):
    """An attack on a surrogate, whose points are judged on the attacked system: transfer, or a model with `BPDA` in it.

    All points are in the attack's region, also if the attack searches for the nearest ones at any distance.

    Args:
        surrogate: the system to attack, or a state. It takes the same batches.
        attack: the attack.

    >>> plain, masked = (fm.Classifier(fm.models.MLP(4, 8, 3)) for _ in range(2))
    >>> attack = fm.attacks.Through(plain, fm.PGD(fm.LinfBall(0.1), step_size=0.02, steps=10))

    `fm.robustness(masked, data, (region, attack))` evaluates `masked` by it too.
    """

    surrogate: Component = None  # type: ignore[assignment]  # `__init__` requires both
    attack: Attack = None  # type: ignore[assignment]

    def __init__(self, surrogate: Any, attack: Attack) -> None:
        fields = fields_around(Through, attack)
        surrogate = surrogate.system if isinstance(surrogate, State) else surrogate
        if not is_part(surrogate):
            raise TypeError(f"Through.surrogate must be a system or a state, got {surrogate!r}.")
        self.__dict__.update(fields, surrogate=surrogate)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.surrogate).__name__}(…), {self.attack!r})"

    @property
    def passes(self) -> int:
        return most_passes(self.attack)


@dispatch
def perturb(attack: Through, system, batch, key):
    return perturb(attack.attack, still(attack.surrogate), batch, key, inside=True, checked=True)


@dispatch
def validate(attack: Through, system, batch):
    validate(attack)
    validate(attack.surrogate, batch)
    validate(attack.attack, attack.surrogate, batch)
