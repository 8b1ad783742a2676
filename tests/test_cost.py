"""What the compiled step costs, counted by XLA, and what compiles nothing."""

import functools

import numpy as np
import optax
import pytest
from tiny import Compilations

import fulmen as fm
from fulmen.train.compiled_step import traced_step

X = np.random.default_rng(0).random((64, 64), np.float32)
Y = np.random.default_rng(1).integers(0, 10, 64)
REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)


def classifier(metrics=(fm.Accuracy(),)):
    return fm.Classifier(fm.models.MLP(64, 128, 128, 10, dropout=0.1), fm.CrossEntropy(), metrics=metrics)


@functools.cache
def flops(steps=None, **options):
    """Of a step of a classifier with the given options; of adversarial training by PGD with a number of steps."""
    component = classifier(**options)
    if steps is not None:
        component = fm.Adversarial(component, fm.PGD(REGION, step_size=0.02, steps=steps))
    state = fm.setup(component, (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=64)
    return traced_step(state, (X, Y.astype(np.int32))).lower().compile().cost_analysis()["flops"]


def test_metrics_cost_no_second_forward_pass():
    """Loss and metrics both run the model; XLA merges the passes, dropout included."""
    with_metrics, without = flops(), flops(metrics=())
    assert without < with_metrics <= 1.01 * without


def test_an_attack_is_computed_once_with_metrics_on():
    with_metrics, without = flops(2), flops(2, metrics=())
    assert without < with_metrics <= 1.01 * without


def test_pgd_training_costs_two_passes_a_step_and_three_for_the_model():
    """(2k + 3) forward passes at most, counted on the unrolled program."""
    forward = flops(metrics=()) / 3
    for steps in (1, 2):
        assert flops(steps, metrics=()) <= 1.05 * (2 * steps + 3) * forward


def adversarial(attack):
    return fm.Adversarial(fm.Classifier(fm.models.MLP(64, 16, 10, dropout=0.1)), attack)


@pytest.mark.parametrize(
    "make",
    [
        lambda eps: adversarial(fm.FGSM(fm.LinfBall(eps) & fm.Box(0.0, 1.0))),
        lambda size: adversarial(fm.PGD(REGION, step_size=size, steps=2)),
        lambda weight: fm.Classifier(fm.models.MLP(64, 16, 10), fm.CrossEntropy() + weight * fm.L2()),
        lambda smoothing: fm.Classifier(fm.models.MLP(64, 16, 10), fm.CrossEntropy(smoothing=smoothing)),
        lambda rate: fm.Classifier(fm.models.MLP(64, 16, 10, dropout=rate)),
    ],
    ids=["eps", "step size", "weight of a term", "smoothing", "dropout rate"],
)
def test_another_number_compiles_nothing(make):
    """A fit of the same system with another hyperparameter, and of a state in which it was changed."""
    options = {"epochs": 1, "batch_size": 32, "progress": False}

    def run(value, lr):
        return fm.fit(fm.setup(make(value), (X, Y), optimizer=optax.sgd, lr=lr), (X, Y), **options)

    run(0.05, 1e-3)
    run(0.04, 1e-3)
    with Compilations() as compiled:
        state, _ = run(0.07, 2e-3)
        fm.fit(fm.replace(state, {"optimizer.lr": 5e-4}), (X, Y), **options)
    assert compiled.names == []


def test_evaluation_under_another_attack_of_a_kind_compiles_nothing():
    state = fm.setup(classifier(), (X, Y), optimizer=optax.sgd, lr=1e-3)
    attack = lambda eps, size, steps: fm.PGD(fm.LinfBall(eps) & fm.Box(0.0, 1.0), step_size=size, steps=steps)
    fm.evaluate(state, (X, Y), attack=attack(0.1, 0.02, 3))
    with Compilations() as compiled:
        fm.evaluate(state, (X, Y), attack=attack(0.2, 0.01, 3))
        fm.evaluate(fm.train_step(state, (X, Y))[0], (X, Y), attack=attack(0.05, 0.03, 3))
    assert [name for name in compiled.names if "train_step" not in name] == []
