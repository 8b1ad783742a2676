"""What `evaluate(attack=)` warns about."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from fulmen.attacks import Clean
from test_robustness import REGION, Shaped, data, shaped

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.report import evaluation_warnings


class Leaping(fm.Attack):
    """It leaves the region."""


@dispatch
def perturb(attack: Leaping, system, batch, key):
    return fm.replace(batch, x=batch.x + 0.5)


class Helping(fm.Attack):
    """It makes the examples easier."""


@dispatch
def perturb(attack: Helping, system, batch, key):
    weight = jnp.asarray(system.model.weight)
    return fm.replace(batch, x=batch.x + 0.02 * jnp.sign(weight.T[batch.y] - weight.T[1 - batch.y]))


CASES = {
    "ascending": (shaped, fm.Attack(optax.sgd(-0.1), REGION, steps=3), "changes no input .* has the wrong sign"),
    "lower": (shaped, Helping(REGION), "the loss under attack is lower than without"),
    "still": (shaped, fm.PGD(REGION, 0.0, 3, Clean()), "changes no input of the first batch: its step size may be 0"),
    "blind": (lambda: shaped(jax.lax.stop_gradient), fm.FGSM(REGION), "changes no input .* gradient may be 0"),
    "probabilities": (lambda: shaped(jax.nn.softmax), fm.FGSM(REGION), "returns probabilities, .*return logits"),
    "outside": (shaped, Leaping(fm.LinfBall(0.1)), r"an attacked input is 0.5 .*, outside LinfBall\(eps=0.1\)"),
    "outside the box": (shaped, Leaping(fm.LinfBall(0.6) & fm.Box(0, 1)), r"attacked inputs range .*, outside Box"),
}


@pytest.mark.parametrize("name", CASES)
def test_evaluate_warns_about_a_wrong_attack(name):
    make, attack, message = CASES[name]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fm.evaluate(make(), data(), attack=attack)
    assert [each.filename for each in found if np.any(each)] == [__file__] * len(found)
    with pytest.warns(UserWarning, match=f"evaluate, attack: .*{message}"):
        fm.evaluate(make(), data(), attack=attack)


def test_a_sound_attack_has_no_warning_and_a_warm_call_compiles_nothing():
    system, attack = shaped(), fm.PGD(REGION, 0.05, 3, Clean())
    fm.evaluate(system, data(), attack=attack)
    fm.evaluate(system, data(), attack=fm.FGSM(fm.LinfBall(0.0)))
    with tiny.Compilations() as compiled:
        fm.evaluate(system, data(), attack=attack)
    assert not compiled.names
    assert isinstance(system.model, Shaped) and jnp.ndim(system.model.weight) == 2


def rounded(x):
    return jnp.round(4 * x) / 4


def straight_through(x):
    return x + jax.lax.stop_gradient(rounded(x) - x)


@pytest.mark.parametrize("hidden, warns", [(rounded, True), (straight_through, False), (fm.attacks.BPDA(rounded), False)])
def test_a_model_that_rounds_its_input_has_no_gradient(hidden, warns):
    inner = shaped().model
    layer = hidden if isinstance(hidden, fm.Model) else fm.models.Function(hidden)
    model = fm.models.Chain(layer, inner)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fm.evaluate(fm.Classifier(model), data(), attack=fm.PGD(REGION, 0.05, 3))
    assert any("the model has rounding" in str(each.message) for each in found) == warns
    if warns:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fm.evaluate(fm.Classifier(model), data(), attack=fm.attacks.Through(shaped(), fm.PGD(REGION, 0.05, 3)))


def test_outputs_are_searched_for_probabilities_once_for_each_structure(monkeypatch):
    calls, looks = [], evaluation_warnings._look_like_probabilities
    monkeypatch.setattr(evaluation_warnings, "_look_like_probabilities", lambda *a: calls.append(1) or looks(*a))
    with pytest.warns(UserWarning, match="probabilities"):
        fm.evaluate(system := shaped(lambda z: jax.nn.softmax(z)), data(), attack=fm.FGSM(REGION))
    with pytest.warns(UserWarning, match="probabilities"):
        fm.evaluate(system, data(), attack=fm.PGD(REGION, 0.05, 3))
    assert len(calls) == 1
