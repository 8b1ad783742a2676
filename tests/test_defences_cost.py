"""What a training step of each defence costs, counted by XLA in forward passes, on a network with dropout."""

import functools

import jax
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen.robust.defences import AWP, MART, NFGSM, TRADES, VAT, FreeAdversarial, Gaussian
from fulmen.train.compiled_step import traced_step

SIZE, N = 256, 64
X = np.random.default_rng(0).random((N, SIZE), np.float32)
Y = np.random.default_rng(1).integers(0, 10, N).astype(np.int32)
REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)
PGD = fm.PGD(REGION, 0.02, 2, start=Gaussian(0.001))
ONCE = fm.PGD(REGION, 0.02, 1, start=Gaussian(0.001))


def classifier():
    return fm.Classifier(fm.models.MLP(SIZE, SIZE, SIZE, 10, dropout=0.1))


def flops(component):
    state = fm.setup(component, (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=N)
    return traced_step(state, (X, Y)).lower().compile().cost_analysis()["flops"]


@functools.cache
def forward():
    """A forward pass, in training."""
    state = fm.setup(classifier(), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=N)
    program = jax.jit(lambda system: fm.loss(system, fm.Labeled(X, Y), fm.Train(jax.random.key(0))))
    return program.lower(state.system).compile().cost_analysis()["flops"]


COSTS = {
    "FGSM, half clean": (lambda: fm.Adversarial(classifier(), fm.FGSM(REGION), 0.5), 8),
    "PGD": (lambda: fm.Adversarial(classifier(), PGD), 2 * 2 + 3),
    "N-FGSM": (lambda: fm.Adversarial(classifier(), NFGSM(REGION)), 5),
    "Free, 2 replays": (lambda: FreeAdversarial(classifier(), REGION, replays=2), 2 * 3),
    "TRADES": (lambda: TRADES(classifier(), ONCE), 2 + 7),
    "MART": (lambda: MART(classifier(), ONCE), 2 + 6),
    "AWP around PGD": (lambda: AWP(fm.Adversarial(classifier(), ONCE)), 2 + 3 + 3),
    "VAT": (lambda: VAT(classifier(), eps=1.0), 8),
}


@pytest.mark.parametrize(("make", "passes"), COSTS.values(), ids=COSTS)
def test_a_step_in_forward_passes(make, passes):
    """Training and evaluating compute different things here, so that XLA merges no clean passes."""
    counted = flops(make()) / forward()
    assert 0.8 * passes < counted <= 1.05 * passes
