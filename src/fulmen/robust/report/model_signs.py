"""The warning signs that concern the model: properties that make attacks fail without making it robust."""

from typing import Any

import jax
import numpy as np

from fulmen.core import Train, components, inputs, with_inputs
from fulmen.core.verbs import examine, predictions
from fulmen.dispatching.registry import dispatch
from fulmen.robust.report.attack_evaluation import in_eval_mode
from fulmen.robust.report.attack_signs import spread
from fulmen.robust.report.robustness_report import OK, SUSPICIOUS, UNCHECKED, WRONG, Finding, Sign


class Randomness(Sign):
    """A random model should be attacked in the mean over several draws.

    Two passes over the same inputs use different random keys.
    """


class Probabilities(Sign):
    """The outputs should be logits, not probabilities."""


class Modes(Sign):
    """No part of the model should be in training mode."""


class Batches(Sign):
    """An example's outputs should not depend on the other examples in its batch."""


class Jumps(Sign):
    """The model should have no loops and no operations whose gradient is 0.

    The traced program is searched, on the path from the input to the outputs, for rounding, signs, conversions to integers and
    `stop_gradient`, and for loops, which may be an optimization at test time. An unrolled optimization is not recognised.
    """


@dispatch
def examine(sign: Randomness, evaluation, report):
    rows = spread(np.ones(len(report), bool), evaluation.sample)
    one, other = evaluation.predict(rows, draw=0), evaluation.predict(rows, draw=1)
    if np.array_equal(one, other, equal_nan=True):
        return Finding(OK, "Two passes with different random keys give the same outputs.")
    changed, difference = int((one.argmax(1) != other.argmax(1)).sum()), float(np.abs(one - other).max())
    classes = f"{changed} of {len(rows)} predicted classes change"
    text = f"Two passes with different random keys differ by up to {difference:.3g}, and {classes}."
    if all(attack.samples is not None for attack in evaluation.attacks):
        return Finding(OK, f"{text} The attacks use the mean of several draws (samples=).")
    return Finding(SUSPICIOUS, f"{text} Attack the mean over several draws, such as samples=20.")


@dispatch
def examine(sign: Probabilities, evaluation, report):
    outputs = evaluation.outputs
    low, sums = float(outputs.min()), outputs.sum(1, dtype=np.float64)
    if low < 0 or not np.abs(sums - 1).max() < 1e-3:
        return Finding(OK, f"Outputs range from {low:.3g} to {outputs.max():.3g}, and not all rows add up to 1.")
    return Finding(
        WRONG,
        "No output is below 0, and every row adds up to 1: these are probabilities, whose gradients vanish. Make the model "
        "return logits, the input of jax.nn.softmax; CrossEntropy needs logits too.",
    )


@dispatch
def examine(sign: Modes, evaluation, report):
    found = [
        path or type(part).__name__
        for path, part in components(evaluation.system)
        if isinstance(getattr(part, "mode", None), Train)
    ]
    if not found:
        return Finding(OK, "The system is in Eval mode: running statistics are fixed, and Dropout is off.")
    which = ", ".join(found[:3]) + ("…" if len(found) > 3 else "")
    return Finding(
        WRONG,
        f"{len(found)} parts are bound to a Train mode ({which}): BatchNorm uses the batch's statistics, and Dropout is on. Pass "
        "the state, or fm.bind(system, fm.Eval()).",
    )


@dispatch
def examine(sign: Batches, evaluation, report):
    rows = spread(np.ones(len(report), bool), min(16, evaluation.batch_size))
    together = evaluation.predict(rows)
    if len(rows) < 2:
        return Finding(UNCHECKED, "There is only one example.")
    if not np.array_equal(together, evaluation.predict(rows, draw=1), equal_nan=True):
        return Finding(UNCHECKED, "The model draws at random, so outputs in different batches cannot be compared.")
    alone = np.concatenate([evaluation.predict(row) for row in rows[:4, None]])
    difference = float(np.abs(alone - together[:4]).max(initial=0) / (np.abs(alone).max(initial=0) + 1e-12))
    text = f"Between an example alone and in a batch of {len(rows)}, the relative difference of outputs is {difference:.2g}."
    if difference <= 1e-2:
        return Finding(OK, text)
    return Finding(WRONG, f"{text} It depends on the other examples, perhaps by BatchNorm in training mode.")


@dispatch
def examine(sign: Jumps, evaluation, report):
    batch, key = evaluation.batch(np.arange(1)), evaluation.key

    def outputs(x: Any) -> Any:
        (prediction,) = predictions(in_eval_mode(evaluation.system, key), with_inputs(batch, x)).values()
        return prediction.outputs

    program = jax.make_jaxpr(outputs)(inputs(batch))
    found = dependent_operations(program, [True] * len(program.invars))[0]
    flat = sorted(found & FLAT.keys())
    if flat:
        text = f"The path from the input to the outputs has {', '.join(FLAT[name] for name in flat)}, whose gradient is 0"
        return Finding(SUSPICIOUS, f"{text} unless a custom one is defined: attack a smooth approximation of it.")
    loops = sorted(found & {"while", "scan"})
    if loops:
        return Finding(
            UNCHECKED,
            f"The model has loops ({', '.join(loops)}), which may be an optimization at test time. If so, attack through its "
            "steps, or without it.",
        )
    return Finding(OK, "The path from the input to the outputs has no rounding, no stopped gradient and no loop.")


FLAT = {
    "round": "rounding",
    "floor": "rounding down",
    "ceil": "rounding up",
    "sign": "a sign",
    "stop_gradient": "a stopped gradient",
    "to integers": "a conversion to integers",
}


def dependent_operations(program: Any, depends: list[bool]) -> tuple[set[str], list[bool]]:
    """The names of a program's operations that depend on some of its inputs, and which of its results do."""
    from jax.extend.core import jaxprs_in_params  # a slow import

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
            below, results = dependent_operations(body, into if same else [True] * len(body.invars))
            found |= below
            out = results if same and len(results) == len(out) else out
        known.update(var for var, is_dependent in zip(equation.outvars, out, strict=True) if is_dependent)
    return found, [not hasattr(var, "val") and var in known for var in program.outvars]


def _rounds(equation: Any) -> bool:
    old, new = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    return jax.numpy.issubdtype(old, np.floating) and jax.numpy.issubdtype(new, np.integer)
