"""Each warning sign, on a system made to trigger it."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_robustness import IDLE, REGION, STILL, WEIGHT, WIDTH, Curve, Untouched, data, evaluate, shaped

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks import Square
from fulmen.robust.report import Binarization, Finding, Sign, examine
from fulmen.robust.report.attack_evaluation import violations
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Falling, Gradients, Inside, Iterations
from fulmen.robust.report.model_signs import Batches, Jumps, Modes, Probabilities, Randomness


class Noisy(fm.Model):
    """Logits with noise, drawn from the key."""

    weight: jax.Array


@dispatch
def forward(model: Noisy, x, mode):
    return x @ model.weight + jax.random.uniform(mode.key, (len(x), 2), minval=-0.5, maxval=0.5)


def trap(x):
    """Along each coordinate a low hill that stops small steps, and behind it a cliff that one large step reaches."""
    t = x - 0.5
    return (0.1 * jnp.exp(-(((t - 0.04) / 0.01) ** 2)) + 0.5 * jax.nn.sigmoid((t - 0.09) / 0.004)).sum(1) - 1


def rounded(z):
    return jnp.round(2 * z)


MIDDLE = (np.random.default_rng(0).uniform(0.495, 0.505, (16, WIDTH)).astype(np.float32), np.zeros(16, np.int32))
SHORT = fm.PGD(REGION, step_size=0.003, steps=5, start=fm.attacks.Clean())


@pytest.mark.parametrize(
    ("sign", "system", "options", "verdict", "said"),
    [
        (
            Iterations(),
            fm.Classifier(Curve(trap)),
            dict(pairs=MIDDLE, attack=IDLE),
            "wrong",
            r"FGSM breaks 16 and PGD-40 \d;",
        ),
        (Convergence(), shaped(), dict(attack=SHORT), "wrong", r"PGD with 20 steps .* breaks [3-9] of \d+"),
        (
            Falling(),
            shaped(rounded),
            dict(attack=STILL),
            "wrong",
            r"radius 1, which contains the whole box, the accuracy is 0\.[4-9]",
        ),
        (Binarization(), shaped(), {}, "ok", r"Of 1\d adversarial examples that are known to exist, PGD finds 1\d"),
        (Binarization(), shaped(jax.lax.stop_gradient), {}, "wrong", r"PGD finds 0\. Use more steps"),
        (BlackBox(), shaped(rounded), dict(attack=STILL), "wrong", r"noise breaks [1-9]\d* and Square breaks [1-9]"),
        (BlackBox(), shaped(rounded), dict(attack=(STILL, Square(REGION, 100))), "wrong", r"Square, .* broke [2-9]"),
        (Gradients(), shaped(lambda z: 1e4 * z), dict(attack=IDLE), "wrong", r"Of 16 examples, \d+ have a gradient of 0"),
        (Jumps(), shaped(rounded), dict(attack=IDLE), "suspicious", "has rounding, whose gradient is 0"),
        (
            Randomness(),
            fm.Classifier(Noisy(jnp.asarray(WEIGHT))),
            dict(attack=IDLE),
            "suspicious",
            "[1-9] of 16 predicted classes",
        ),
        (Probabilities(), shaped(jax.nn.softmax), dict(attack=IDLE), "wrong", "return logits"),
        (
            Batches(),
            shaped(lambda z: z - z.mean(0, keepdims=True)),
            dict(attack=IDLE),
            "wrong",
            "depends on the other examples, perhaps by BatchNorm",
        ),
        (
            Modes(),
            fm.bind(shaped(), fm.Train(jax.random.key(0))),
            dict(attack=IDLE),
            "wrong",
            r"^[2-9] parts are bound to a Train mode \(Classifier, model",
        ),
        (Inside(), shaped(), dict(attack=fm.FGSM(fm.LinfBall(0.6))), "suspicious", "The region has no box"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sign) else None,
)
def test_a_sign_is_triggered(sign, system, options, verdict, said):
    (finding,) = evaluate(system, **{"attack": STILL, **options}, signs=(sign,)).findings
    assert (finding.verdict, finding.sign) == (verdict, sign.title)
    assert re.search(said, finding.text), finding.text


def test_without_a_box_the_radius_grows_until_no_example_survives():
    (finding,) = evaluate(shaped(), attack=fm.FGSM(fm.LinfBall(0.05)), signs=(Falling(),)).findings
    assert finding.verdict == "ok" and re.search(r"(\d+) times the region's, the accuracy is 0\.[0-4]", finding.text)


def test_a_custom_sign():
    class Small(Sign):
        """There are many examples."""

    @examine.dispatch
    def few(sign: Small, evaluation, report):
        return Finding("suspicious", f"There are {len(report)}.")

    seen = evaluate(shaped(), attack=IDLE, signs=(Small(),))
    assert seen.warnings == [Finding("suspicious", "There are 16.", "There are many examples")]


def jumps(function):
    """The finding about jumps, for which the program is traced and nothing runs."""
    x, y = data()
    evaluation = types.SimpleNamespace(
        system=shaped(function), key=jax.random.key(0), batch=lambda rows: fm.Labeled(x[rows], y[rows])
    )
    return examine(Jumps(), evaluation, None)


@pytest.mark.parametrize(
    ("function", "verdict", "said"),
    [
        (jax.lax.stop_gradient, "suspicious", "has a stopped gradient"),
        (lambda z: z.astype(jnp.int8).astype(z.dtype), "suspicious", "a conversion to integers"),
        (lambda z: jax.lax.fori_loop(0, 3, lambda i, z: z * 2, z), "not checked", "loops (scan)"),
    ],
)
def test_operations_without_a_gradient_are_jumps(function, verdict, said):
    finding = jumps(function)
    assert finding.verdict == verdict and said in finding.text, finding.text


def attention(z):
    return jax.nn.dot_product_attention(*[z.reshape(len(z), 1, 2, 1)] * 3).reshape(len(z), 2)


def pool(z):
    return jnp.stack([jax.nn.logsumexp(z, 1), 0.5 * z.sum(1)], 1)


@pytest.mark.parametrize("function", [jax.nn.log_softmax, jax.nn.softmax, attention, pool, jax.nn.relu6, jax.nn.gelu])
def test_maxima_that_change_no_gradient_are_not_jumps(function):
    finding = jumps(function)
    assert finding.verdict == "ok", finding.text


def thermometer(z):
    return (z[:, :, None] > jnp.linspace(-1, 1, 5)[None, None]).astype(z.dtype).sum(2)


def steps(z):
    return jnp.where(z > 0, 1.0, -1.0)


@pytest.mark.parametrize(
    ("function", "what"),
    [(thermometer, "a comparison that is used as a number"), (steps, "a choice between constants")],
)
def test_comparisons_are_jumps(function, what):
    finding = jumps(function)
    assert finding.verdict == "suspicious" and what in finding.text and "fm.attacks.BPDA" in finding.text
    finding = jumps(fm.attacks.BPDA(function))
    assert finding.verdict == "ok", finding.text


def in_bytes():
    x, y = data()
    return (255 * x).round().astype(np.float32), y


@pytest.mark.parametrize(
    ("region", "pairs", "said"),
    [
        (fm.LinfBall(8 / 255) & fm.Box(0, 255), in_bytes, r"radius is 0.03137, and the data ranges from \d+ to \d+"),
        (fm.L2Ball(0.5) & fm.Box(0, 255), in_bytes, r"radius is 0.5, and the data ranges .* in the units of the data"),
        (
            fm.LinfBall(8 / 255) & fm.Box(0, 255),
            data,
            r"The box is Box\(lo=0, hi=255\), and the data ranges .*write fm.Box\(0",
        ),
    ],
)
def test_a_region_in_other_units_than_the_data_is_suspicious(region, pairs, said):
    (finding,) = evaluate(shaped(), pairs(), Untouched(region), signs=(Inside(),)).findings
    assert finding.verdict == "suspicious" and re.search(said, finding.text), finding.text


@pytest.mark.parametrize(("outside", "found"), [(0, 0), (1e-2, 1)])
def test_the_bounds_of_a_box_may_be_rounded_to_the_type_of_the_inputs(outside, found):
    box = fm.Box(-123.68, 131.32)  # the larger bound in float32 is above the one in float64
    attacked = np.float32([[131.32 + outside]])
    assert len(violations(fm.LinfBall(8.0) & box, attacked - 1, attacked)) == found


def test_points_in_bfloat16_are_inside():
    x, y = data()
    pairs = jnp.asarray(x, jnp.bfloat16), y
    (finding,) = evaluate(shaped(dtype=jnp.bfloat16), pairs, fm.FGSM(REGION), signs=(Inside(),)).findings
    assert finding.verdict == "ok", finding.text


def test_a_patch_may_leave_examples_correct():
    patch = REGION & fm.attacks.Patch(np.array([True, False, False, False]))
    (finding,) = evaluate(shaped(), attack=fm.FGSM(patch), signs=(Falling(),)).findings
    assert finding.verdict == "not checked"


def test_a_region_is_attacked_in_the_mean_if_the_model_draws(monkeypatch):
    monkeypatch.setattr("fulmen.robust.report.attack_evaluation.SAMPLES", 2)
    noisy = fm.Classifier(Noisy(jnp.asarray(WEIGHT)))
    few = functools.partial(fm.autoattack, steps=5)
    monkeypatch.setattr("fulmen.robust.report.attack_evaluation.autoattack", few)
    report = evaluate(noisy, attack=REGION, signs=(Randomness(),))
    assert [each["name"] for each in report.attacks] == ["APGD"] and "samples=2" in report.attacks[0]["attack"]
    (finding,) = report.findings
    assert finding.verdict == "ok" and "The attacks use the mean of several draws (samples=)" in finding.text


class Rejecting(fm.Model):
    """Logits of a linear model, and a third one that is the highest near the boundary."""

    weight: jax.Array


@dispatch
def forward(model: Rejecting, x):
    z = x @ model.weight
    return jnp.concatenate([z, z.max(1, keepdims=True) + 0.1 - jnp.abs(z[:, :1] - z[:, 1:])], 1)


def test_rejecting_an_attacked_input_is_right():
    x, y = data(64, wrong=0)
    system = fm.Classifier(Rejecting(jnp.asarray(WEIGHT)))
    keep = np.asarray(fm.predict(system, x)).argmax(1) == y
    attack = lambda **options: fm.PGD(REGION, 0.02, 20, fm.attacks.Clean(), objective=fm.objectives.Margin(), **options)
    strict = evaluate(system, (x[keep], y[keep]), attack())
    lenient = evaluate(system, (x[keep], y[keep]), attack(target=fm.attacks.Unrejected(2)))
    assert strict.robust_accuracy < lenient.robust_accuracy < 1
    broken = lenient.attacked[~lenient.robust]
    assert ((broken != lenient.labels[~lenient.robust]) & (broken != 2)).all()


def test_examples_near_the_boundary_are_not_broken_by_chance():
    x, y = data(64, wrong=0)
    noisy = fm.Classifier(Noisy(jnp.asarray(WEIGHT)))
    still = fm.PGD(fm.LinfBall(1e-6), step_size=1e-7, steps=20, start=fm.attacks.Clean())
    report = evaluate(noisy, (x, y), still)
    assert report.accuracy > 0.8 and report.robust_accuracy > report.accuracy - 0.1
