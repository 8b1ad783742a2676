"""Layers that draw the same random numbers several times in one call of a model, such as a `Dropout` in a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fulmen.core import Component, Model, Train, bound_mode, components, named_parts
from fulmen.core.verbs import bind, forward
from fulmen.dispatching.compiled_code import recorded
from fulmen.train.step import training_loss


def repeated_draws(component: Any, mode: Train, raw: Any) -> dict[str, str]:
    """The paths of the layers that draw the same numbers several times in one call of `forward` in training, and how.

    Layers that are called in separate calls, such as a defence's on clean and on attacked inputs, are meant to be compared.
    """
    bound = bind(component, mode)
    outermost = {_number(model): model for model in _outermost_models(bound)}
    given: dict[Any, Any] = {}

    def returned(verb: Any, method: Any, args: tuple[Any, ...], result: Any) -> None:
        if verb is forward and isinstance(bound_mode(args[0]), Train) and (number := _number(args[0])) in outermost:
            given[number] = jax.tree.map(lambda v: jax.ShapeDtypeStruct(np.shape(v), jax.numpy.result_type(v)), args[1:])

    # A function that was traced before calls nothing.
    recorded(lambda: jax.eval_shape(lambda raw: training_loss(component, raw, mode), raw), returned)
    layers = {_number(part): path for path, part in components(bound) if isinstance(part, Component)}
    found: dict[str, str] = {}
    for number, inputs in given.items():
        calls: Counter[Any] = Counter()
        programs: list[Any] = []

        def count(verb: Any, method: Any, args: tuple[Any, ...], result: Any, calls: Any = calls) -> None:
            calls[_number(args[0]) if verb is forward else None] += 1

        trace = jax.make_jaxpr(lambda *inputs, model=outermost[number]: forward(model, *inputs))
        recorded(lambda: programs.append(trace(*inputs)), count)  # noqa: B023
        for salt, in_loop in _draws(programs[0].jaxpr, set(), False):
            if salt in layers and (in_loop or calls[salt] > 1):
                found[layers[salt]] = "in each iteration of a loop" if in_loop else f"in {calls[salt]} calls"
    return found


def _number(part: Any) -> int | None:
    """The number that is folded into the key for a layer's calls of `forward`; None if it is not known."""
    mode = bound_mode(part)
    salt = None if mode is None else mode.within("forward").folded
    return int(salt) if isinstance(salt, np.ndarray | np.generic) else None


def _outermost_models(part: Any) -> Iterator[Any]:
    if isinstance(part, Model):
        yield part
    elif isinstance(part, Component):
        for inner in named_parts(part).values():
            yield from _outermost_models(inner)


_LOOPS = {"scan": "num_consts", "while": "body_nconsts"}


def _draws(jaxpr: Any, varying: set[Any], in_loop: bool) -> Iterator[tuple[int, bool]]:
    """The known numbers that are folded into keys, and whether a loop folds the same into the same key in each iteration.

    `varying` are the variables that differ between the iterations of the loop around the program.
    """
    from jax.extend.core import Literal, jaxprs_in_params  # a slow import

    varying = set(varying)
    for equation in jaxpr.eqns:
        changes = [not isinstance(v, Literal) and v in varying for v in equation.invars]
        name = equation.primitive.name
        if name == "random_fold_in" and isinstance(equation.invars[1], Literal):
            yield int(equation.invars[1].val), in_loop and not changes[0]
        for inner in jaxprs_in_params(equation.params):
            if name in _LOOPS:
                start = equation.params[_LOOPS[name]]
                inside = [i >= start for i in range(len(inner.invars))]
            else:  # a call has the same inputs, a `cond` one more
                inside = changes[len(changes) - len(inner.invars) :] if len(inner.invars) <= len(changes) else []
            own = {v for v, differs in zip(inner.invars, inside, strict=False) if differs}
            yield from _draws(inner, own, in_loop or name in _LOOPS)
        if any(changes):
            varying.update(equation.outvars)
