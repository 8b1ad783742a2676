"""The warning signs that the model shows: what in it keeps attacks from their work."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fulmen.core.batch import inputs, with_inputs
from fulmen.core.leaves import components
from fulmen.core.mode import Train
from fulmen.core.verbs import examine, predictions
from fulmen.dispatching.registry import dispatch
from fulmen.robust.report.attack_evaluation import seen
from fulmen.robust.report.attack_signs import some
from fulmen.robust.report.warning_sign import OK, SUSPICIOUS, UNCHECKED, WRONG, Finding, Sign

__all__ = ["Batches", "Jumps", "Modes", "Probabilities", "Randomness"]


class Randomness(Sign):
    """The model does not draw at random, or the attacks look at several draws.

    Two passes over the same inputs with other random keys.
    """


class Probabilities(Sign):
    """The outputs are logits, not probabilities."""


class Modes(Sign):
    """No part of the model is in its training mode."""


class Batches(Sign):
    """An example's outputs do not depend on the others in its batch."""


class Jumps(Sign):
    """Nothing that computes the outputs hides its slope, and there are no loops.

    It looks at the traced program: rounding, signs, numbers made integers and `stop_gradient`, on the way from the input to
    the outputs, and loops, which may optimise something at test time. An optimisation that is written out it does not see.
    """


@dispatch
def examine(sign: Randomness, evaluation, report):
    rows = some(np.ones(len(report), bool), evaluation.sample)
    one, other = evaluation.look(rows, draw=0), evaluation.look(rows, draw=1)
    if np.array_equal(one, other, equal_nan=True):
        return Finding(OK, "Two passes with other random keys give the same outputs.")
    changed, apart = int((one.argmax(1) != other.argmax(1)).sum()), float(np.abs(one - other).max())
    text = f"Two passes with other random keys differ by up to {apart:.3g}, and of {len(rows)} classes {changed} change."
    if all(attack.samples is not None for attack in evaluation.attacks):
        return Finding(OK, f"{text} The attacks look at the mean of several draws (samples=).")
    return Finding(SUSPICIOUS, f"{text} Attack the mean over draws, samples=20, and the class that most of them give.")


@dispatch
def examine(sign: Probabilities, evaluation, report):
    outputs = evaluation.outputs
    low, sums = float(outputs.min()), outputs.sum(1, dtype=np.float64)
    if low < 0 or not np.abs(sums - 1).max() < 1e-3:
        return Finding(OK, f"Outputs go from {low:.3g} to {outputs.max():.3g}, and rows do not all add up to 1.")
    return Finding(
        WRONG,
        "No output is below 0, and every row adds up to 1: these are probabilities, behind which gradients vanish. Let the "
        "model return logits, what jax.nn.softmax is applied to; CrossEntropy expects them too.",
    )


@dispatch
def examine(sign: Modes, evaluation, report):
    found = [
        path or type(part).__name__
        for path, part in components(evaluation.system)
        if isinstance(getattr(part, "mode", None), Train)
    ]
    if not found:
        return Finding(OK, "The system is in Eval mode: an attack moves no running statistics, and Dropout is off.")
    which = ", ".join(found[:3]) + ("…" if len(found) > 3 else "")
    return Finding(
        WRONG,
        f"{len(found)} parts are bound to a Train mode ({which}): BatchNorm takes the statistics of the batch, and Dropout drops. "
        "Give the state, or fm.bind(system, fm.Eval()).",
    )


@dispatch
def examine(sign: Batches, evaluation, report):
    rows = some(np.ones(len(report), bool), min(16, evaluation.batch_size))
    together = evaluation.look(rows)
    if len(rows) < 2 or not np.array_equal(together, evaluation.look(rows, draw=1), equal_nan=True):
        why = "there is one example" if len(rows) < 2 else "the model draws at random"
        return Finding(UNCHECKED, f"Outputs were not compared between batches, since {why}.")
    alone = np.concatenate([evaluation.look(row) for row in rows[:4, None]])
    apart = float(np.abs(alone - together[:4]).max(initial=0) / (np.abs(alone).max(initial=0) + 1e-12))
    text = f"Alone and in a batch of {len(rows)}, outputs differ by {apart:.2g} of the largest."
    if apart <= 1e-2:
        return Finding(OK, text)
    return Finding(WRONG, f"{text} What comes out for an example depends on the others: BatchNorm over the batch, perhaps.")


@dispatch
def examine(sign: Jumps, evaluation, report):
    batch, key = evaluation.batch(np.arange(1)), evaluation.key

    def outputs(x: Any) -> Any:
        (prediction,) = predictions(seen(evaluation.system, key), with_inputs(batch, x)).values()
        return prediction.outputs

    program = jax.make_jaxpr(outputs)(inputs(batch))
    found = on_the_way(program, [True] * len(program.invars))[0]
    flat = sorted(found & FLAT.keys())
    if flat:
        text = f"On the way from the input to the outputs there is {', '.join(FLAT[name] for name in flat)}"
        return Finding(
            SUSPICIOUS, f"{text}, with a slope of 0 unless it was given another: attack a smooth stand-in for it."
        )
    loops = sorted(found & {"while", "scan"})
    if loops:
        text = f"The model has loops ({', '.join(loops)}); whether one optimises something at test time is not seen from outside."
        return Finding(UNCHECKED, f"{text} If so, attack through its steps, or without them.")
    return Finding(OK, "No rounding, no stopped gradient and no loop is on the way from the input to the outputs.")


FLAT = {
    "round": "rounding",
    "floor": "rounding down",
    "ceil": "rounding up",
    "sign": "a sign",
    "stop_gradient": "a stopped gradient",
    "to integers": "a conversion to integers",
}


def on_the_way(program: Any, depends: list[bool]) -> tuple[set[str], list[bool]]:
    """The operations of a program that depend on some of its inputs, and which of its results do."""
    from jax.extend.core import jaxprs_in_params  # which imports much

    found: set[str] = set()
    known = {var for var, is_dependent in zip(program.invars, depends, strict=True) if is_dependent}
    for equation in program.eqns:
        into = [not hasattr(var, "val") and var in known for var in equation.invars]
        if not any(into):
            continue
        name, inner = equation.primitive.name, jaxprs_in_params(equation.params)
        if name == "convert_element_type" and _rounds(equation):
            name = "to integers"
        found.add(name)
        out = [True] * len(equation.outvars)
        for body in inner:
            same = len(body.invars) == len(into) and name not in ("scan", "while", "cond")
            below, results = on_the_way(body, into if same else [True] * len(body.invars))
            found |= below
            out = results if same and len(results) == len(out) else out
        known.update(var for var, is_dependent in zip(equation.outvars, out, strict=True) if is_dependent)
    return found, [not hasattr(var, "val") and var in known for var in program.outvars]


def _rounds(equation: Any) -> bool:
    old, new = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    return jax.numpy.issubdtype(old, np.floating) and jax.numpy.issubdtype(new, np.integer)
