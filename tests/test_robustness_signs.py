"""Each warning sign, on a system made to trigger it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_robustness import REGION, STILL, WEIGHT, WIDTH, Curve, evaluate, shaped

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks import Square
from fulmen.robust.report import Binarization, Finding, Sign, examine
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Falling, Gradients, Inside, Iterations
from fulmen.robust.report.model_signs import Batches, Jumps, Modes, Probabilities, Randomness


class Noisy(fm.Model):
    """Logits with noise, drawn from the key."""

    weight: jax.Array


@dispatch
def forward(model: Noisy, x, mode):
    return x @ model.weight + 0.3 * jax.random.normal(mode.key, (len(x), 2))


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
        (Iterations(), fm.Classifier(Curve(trap)), dict(pairs=MIDDLE), "wrong", r"FGSM breaks 16 and PGD-40 \d;"),
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
        (Gradients(), shaped(lambda z: 1e4 * z), {}, "wrong", r"Of 16 examples, \d+ have a gradient of 0"),
        (Jumps(), shaped(rounded), {}, "suspicious", "has rounding, whose gradient is 0"),
        (Jumps(), shaped(jax.lax.stop_gradient), {}, "suspicious", "has a stopped gradient"),
        (Jumps(), shaped(lambda z: z.astype(jnp.int8).astype(z.dtype)), {}, "suspicious", "a conversion to integers"),
        (Jumps(), shaped(lambda z: jax.lax.fori_loop(0, 3, lambda i, z: z * 2, z)), {}, "not checked", r"loops \(scan\)"),
        (Randomness(), fm.Classifier(Noisy(jnp.asarray(WEIGHT))), {}, "suspicious", "[1-9] of 16 predicted classes"),
        (Probabilities(), shaped(jax.nn.softmax), {}, "wrong", "return logits"),
        (
            Batches(),
            shaped(lambda z: z - z.mean(0, keepdims=True)),
            {},
            "wrong",
            "depends on the other examples, perhaps by BatchNorm",
        ),
        (
            Modes(),
            fm.bind(shaped(), fm.Train(jax.random.key(0))),
            {},
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


def test_attacks_on_the_mean_over_draws_are_right_for_a_random_model():
    noisy = fm.Classifier(Noisy(jnp.asarray(WEIGHT)))
    (finding,) = evaluate(noisy, attack=fm.FGSM(REGION, samples=2), signs=(Randomness(),)).findings
    assert finding.verdict == "ok" and "samples=" in finding.text


def test_without_a_box_the_radius_grows_until_no_example_survives():
    (finding,) = evaluate(shaped(), attack=fm.FGSM(fm.LinfBall(0.05)), signs=(Falling(),)).findings
    assert finding.verdict == "ok" and re.search(r"(\d+) times the region's, the accuracy is 0\.[0-4]", finding.text)


def test_a_custom_sign():
    class Small(Sign):
        """There are many examples."""

    @examine.dispatch
    def few(sign: Small, evaluation, report):
        return Finding("suspicious", f"There are {len(report)}.")

    seen = evaluate(shaped(), signs=(Small(),))
    assert seen.warnings == [Finding("suspicious", "There are 16.", "There are many examples")]
