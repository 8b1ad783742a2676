"""The strength and the cost of the iterated attacks, and that they change no statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import attacks, dispatch

SHAPE, CLASSES, N = (6, 5, 2), 4, 5
BOX = fm.Box(0.0, 1.0)
EPS, STEP = 0.1, 0.03
LINF = fm.LinfBall(EPS) & BOX


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def data(n=N):
    rng = np.random.default_rng(2)
    return rng.uniform(size=(n, *SHAPE)), rng.integers(0, CLASSES, n).astype(np.int32)


# Strength


BALLS = {"Linf": (fm.LinfBall(0.25), 1), "L2": (attacks.L2Ball(0.25), 2), "L1": (attacks.L1Ball(0.25), np.inf)}


class Line(fm.Model):
    """A loss that is linear in the input."""

    weight: jax.Array


@dispatch
def loss(line: Line, batch):
    return (batch.x * line.weight[None]).sum((1, 2, 3))


@pytest.mark.parametrize("name", BALLS)
def test_attacks_reach_the_worst_case_of_a_linear_model(name, key):
    ball, dual = BALLS[name]
    weight = np.random.default_rng(4).normal(size=SHAPE)
    line, (x, _) = Line(jnp.asarray(weight)), data()
    worst = 0.25 * np.linalg.norm(weight.ravel(), dual)
    reaching = [fm.FGSM(ball), attacks.MIFGSM(ball, 0.1, 4)]
    reaching += [] if name == "L1" else [fm.PGD(ball, 2.0, 12, attacks.Clean())]  # in L1 it moves several coordinates
    if name == "Linf":
        reaching += [
            attacks.BIM(ball, 0.1, 4),
            attacks.NIFGSM(ball, steps=4),
            attacks.DIFGSM(ball, 0.1, 4, views=(attacks.Diverse(0.0),)),
            fm.Attack(optax.adam(0.1), ball, steps=6),
            attacks.RFGSM(ball, step_size=0.5),
        ]
    if name == "L1":
        reaching.append(attacks.SLIDE(ball, 0.1, 20, start=fm.attacks.Clean(), q=1 / 60))
    for attack in reaching:
        moved = fm.perturb(attack, line, fm.Unlabeled(jnp.asarray(x)), key, best=False).x
        gained = ((np.asarray(moved) - x) * weight).sum((1, 2, 3))
        np.testing.assert_allclose(gained, worst, rtol=0, atol=1e-9)


# Cost


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("attack", "best", "passes"),
    [
        (fm.Attack(optax.adam(STEP), attacks.L2Ball(1.0), steps=2), False, 2 * 2),
        # One more at the last point, and at each point whose gradient is taken elsewhere.
        (attacks.NIFGSM(LINF, STEP, 2), True, 2 * 2 + 3),
    ],
    ids=["Adam", "NI"],
)
def test_a_step_costs_two_passes(attack, best, passes, key):
    """Counted on the unrolled program of a network with dropout."""
    shapes = jax.eval_shape(fm.init, fm.models.MLP(64, 256, 256, 10, dropout=0.1), key)
    model = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), shapes)
    whole = fm.bind(fm.Classifier(model), fm.Train(key))
    batch = fm.Labeled(np.zeros((64, 64)), np.zeros(64, np.int32))
    forward = flops(lambda model, x: model(x), whole.model, batch.x)
    counted = flops(lambda s, b: fm.perturb(attack, s, b, key, best=best).x, whole, batch)
    assert 1.7 * 2 * forward < counted <= 1.05 * passes * forward


# Running statistics


EVERY = {  # one of each way to attack: FGSM, BIM and others are `PGD` with other numbers
    "PGD": fm.PGD(LINF, STEP, 1, restarts=2),
    "SLIDE": attacks.SLIDE(attacks.L1Ball(0.5) & BOX, STEP, 1),
    "TI-DIM": attacks.TIFGSM(LINF, STEP, 1, 1.0, views=(attacks.Diverse(),)),
    "NIFGSM": attacks.NIFGSM(LINF, STEP, 1),
    "with samples": fm.PGD(LINF, STEP, 1, samples=2),
    "C&W": attacks.CarliniWagner(attacks.L2Ball(0.5) & BOX, steps=1, searches=1),
    "DeepFool": attacks.DeepFool(LINF, 1, bisections=1),
    "FAB": attacks.FAB(LINF, 1, targets=2),
    "APGD": attacks.APGD(LINF, 1),
    "Square": attacks.Square(LINF, 1),
    "of several": fm.WorstOf(fm.FGSM(LINF), fm.PGD(LINF, STEP, 1)),
}


class Attacking(fm.System):
    """A classifier that attacks itself in its loss."""

    part: fm.Classifier
    attack: fm.Attack


@dispatch
def losses(system: Attacking, batch, mode):
    attacked = fm.perturb(system.attack, system.part, batch, mode.key)
    return {"clean": fm.loss(system.part, batch), "moved": 0.0 * jnp.abs(attacked.x - batch.x).sum((1, 2, 3))}


def statistics(wrapped):
    """The statistics after a training step. Multiples of 1/8 are exact in any program.

    Nothing else is returned, so that passes that do not change them are not compiled.
    """
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 9, (8, 8, 4, 2)) / 8, rng.integers(0, CLASSES, 8).astype(np.int32)
    shapes = jax.eval_shape(fm.init, normalized(), jax.random.key(0))
    # With equal weights in the last layer there would be no gradient, and the attacks would not move.
    arrays = jax.tree.map(
        lambda v: np.ones(v.shape, v.dtype) * (rng.integers(1, 9, v.shape) / 8 if v.ndim == 2 else 1), shapes
    )
    system = wrapped(jax.tree.map(lambda v, like: v.astype(like.dtype), arrays, shapes))

    @jax.jit
    def moved():
        _, _, after, _ = fm.differentiate(system, fm.Labeled(x, y), fm.Train(jax.random.key(0)))
        norm = getattr(after, "part", after).model.layers[0]
        return norm.mean.value, norm.variance.value

    return np.array(moved())


@functools.cache
def by_itself():
    return statistics(lambda system: system)


def normalized():
    layers = [fm.models.BatchNorm(2, momentum=0.5), fm.models.Flatten(), fm.models.Dense(64, CLASSES)]
    return fm.Classifier(fm.models.Chain(*layers))


@pytest.mark.parametrize("name", EVERY)
def test_attacks_leave_running_statistics_unchanged(name):
    """Also if the attacked system is in training, where its passes could record statistics."""
    moved = statistics(lambda system: Attacking(system, EVERY[name]))
    assert (np.abs(moved - 1) > 0.1).all()  # they were 1
    np.testing.assert_array_equal(moved, by_itself())
