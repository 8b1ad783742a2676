"""The warning signs that concern the model: properties that make attacks fail without making it robust."""

import numpy as np

from fulmen.core import Train, components
from fulmen.core.verbs import examine
from fulmen.dispatching.registry import dispatch
from fulmen.robust.report.attack_evaluation import traced_outputs
from fulmen.robust.report.attack_signs import spread
from fulmen.robust.report.program_search import dependent_operations, flat_operations
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

    The traced program is searched, on the path from the input to the outputs, for rounding, signs, conversions to integers,
    comparisons that are used as numbers, and `stop_gradient`, and for loops, which may be an optimization at test time. An unrolled
    optimization is not recognised. Functions with a custom gradient, such as `fm.attacks.BPDA`, are taken as they are.
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
    advice = "Attack the mean over several draws: fm.autoattack(region, samples=20), or samples= of the attack."
    return Finding(SUSPICIOUS, f"{text} {advice}")


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
    found = dependent_operations(traced_outputs(evaluation.system, evaluation.batch(np.arange(1)), evaluation.key))
    flat = flat_operations(found)
    if flat:
        text = f"The path from the input to the outputs has {flat}, whose gradient is 0"
        advice = "Put fm.attacks.BPDA(function, surrogate) in its place, and attack that model: fm.attacks.Through(surrogate, attack)."
        return Finding(SUSPICIOUS, f"{text}. {advice}")
    loops = sorted(found & {"while", "scan"})
    if loops:
        return Finding(
            UNCHECKED,
            f"The model has loops ({', '.join(loops)}), which may be an optimization at test time. If so, attack through its "
            "steps, or without it.",
        )
    return Finding(OK, "The path from the input to the outputs has no rounding, no stopped gradient and no loop.")
