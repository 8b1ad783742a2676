"""Defences with invalid fields or unsuitable systems, and `check` on valid ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Net, Pair, net

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.defences import (
    AWP,
    MART,
    NFGSM,
    SAM,
    TRADES,
    VAT,
    FreeAdversarial,
    Gaussian,
    GradAlign,
    OverfittingGuard,
)
from fulmen.robust.defences.adversarial import AttackSchedule

REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)
PGD = fm.PGD(REGION, 0.03, 1)
RNG = np.random.default_rng(0)
X, Y = RNG.random((16, 4), np.float32), RNG.integers(0, 3, 16).astype(np.int32)
SOFT = np.eye(3, dtype=np.float32)[Y]


def classifier(**options):
    return fm.Classifier(fm.models.Chain(fm.models.Dropout(0.1), fm.models.Dense(4, 3)), **options)


class Distance(fm.System):
    """A system with a loss and no predictions."""

    scale: fm.Parameter


@dispatch
def losses(system: Distance, batch):
    return {"distance": jnp.abs(batch.x * system.scale.value).mean(1)}


class Stubborn(fm.System):
    """A system with a custom training step."""

    net: Net


@dispatch
def update(system: Stubborn, state, batch, mode):
    return state, {}


def distance():
    return Distance(fm.Parameter(jnp.ones(())))


BAD = {
    "TRADES, no classifier": (
        lambda: TRADES(distance(), PGD),
        (X, Y),
        ValueError,
        "system of TRADES must contain a classifier.* Write `predictions",
    ),
    "VAT, no classifier": (
        lambda: VAT(distance(), eps=1.0),
        (X, Y),
        ValueError,
        "system of VAT must contain a classifier.* Write `predictions",
    ),
    "MART, a regressor": (
        lambda: MART(fm.Regressor(fm.models.Dense(4, 1)), PGD),
        (X, X[:, :1]),
        ValueError,
        r"the system of MART must contain a classifier: .*logits.*got \((16|2), 1\)",
    ),
    "MART, soft labels": (
        lambda: MART(classifier(), PGD),
        (X, SOFT),
        TypeError,
        "MART: y must be integer labels.*augmentations",
    ),
    "MART, mixed labels": (
        lambda: MART(classifier(augment=fm.augmentations.Mixup(1.0, 3)), PGD),
        (X, Y),
        TypeError,
        "MART: y must be integer labels.*augmentations",
    ),
    "TRADES, beta": (lambda: TRADES(classifier(), PGD, beta=-1.0), (X, Y), ValueError, "TRADES.beta .* got -1"),
    "MART, beta": (lambda: MART(classifier(), PGD, beta=float("nan")), (X, Y), ValueError, "MART.beta"),
    "GradAlign, weight": (lambda: GradAlign(classifier(), PGD, -0.1), (X, Y), ValueError, "GradAlign.weight"),
    "VAT, xi": (lambda: VAT(classifier(), 1.0, xi=0.0), (X, Y), ValueError, "VAT.xi must be above 0"),
    "VAT, steps": (lambda: VAT(classifier(), 1.0, steps=0), (X, Y), ValueError, "VAT.steps"),
    "SAM, rho": (lambda: SAM(classifier(), -0.1), (X, Y), ValueError, "SAM.rho"),
    "AWP, gamma": (lambda: AWP(classifier(), -0.1), (X, Y), ValueError, "AWP.gamma"),
    "clean weight": (
        lambda: fm.Adversarial(classifier(), PGD, 1.5),
        (X, Y),
        ValueError,
        "clean_weight must be between 0 and 1",
    ),
    "Free, replays": (lambda: FreeAdversarial(classifier(), REGION, replays=0), (X, Y), ValueError, "replays"),
    "Free, no ball": (
        lambda: FreeAdversarial(classifier(), fm.Box(0, 1)),
        (X, Y),
        ValueError,
        "region must contain one ball",
    ),
    "Free, no region": (
        lambda: FreeAdversarial(classifier(), PGD),
        (X, Y),
        TypeError,
        "FreeAdversarial.region must be a Region.*fm.LinfBall",
    ),
    "Free, outside": (lambda: FreeAdversarial(classifier(), REGION), (2 * X, Y), ValueError, "x must be in Box"),
    "NFGSM, noise": (lambda: fm.Adversarial(net(), NFGSM(REGION, noise=-1.0)), (X, Y), ValueError, "NFGSM.noise"),
    "TRADES, where it starts": (
        lambda: TRADES(classifier(), fm.FGSM(REGION)),
        (X, Y),
        ValueError,
        "TRADES.attack must start at random.*Gaussian",
    ),
    "no attack": (lambda: TRADES(classifier(), REGION), (X, Y), TypeError, "TRADES.attack must be an Attack.*fm.PGD"),
    "no system": (lambda: MART("model", PGD), (X, Y), TypeError, r"MART.system|^system must be .* a component, got 'model'"),
    "SAM, no system": (lambda: SAM(3.0), (X, Y), TypeError, "SAM.system must be a Component"),
    "no labels": (lambda: TRADES(classifier(), PGD), X, ValueError, "CrossEntropy needs a batch with targets"),
    "a schedule of no attack": (
        lambda: fm.Adversarial(classifier(), AttackSchedule(lambda step: REGION)),
        (X, Y),
        TypeError,
        "AttackSchedule.function must return an attack such as fm.FGSM",
    ),
    "two steps": (
        lambda: SAM(AWP(classifier())),
        (X, Y),
        ValueError,
        "AWP defines its own training step.*outermost.*inside SAM",
    ),
    "a custom step": (lambda: SAM(Stubborn(net())), (X, Y), ValueError, "Stubborn defines its own training step"),
    "a step that would be ignored": (lambda: Pair(SAM(net()), net()), (X, Y), ValueError, "SAM defines .* inside Pair"),
    "Free within": (
        lambda: fm.Adversarial(FreeAdversarial(net(), REGION), PGD),
        (X, Y),
        ValueError,
        "FreeAdversarial defines .* outermost.*inside Adversarial",
    ),
}


@pytest.mark.parametrize(("make", "data", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_found_at_setup(make, data, error, message):
    with pytest.raises(error, match=message):
        fm.setup(make(), data, optimizer=optax.sgd, lr=0.1, batch_size=16)


def test_a_batch_larger_than_the_perturbation(data=(X, Y)):
    state = fm.setup(FreeAdversarial(classifier(), REGION), data, optimizer=optax.sgd, lr=0.1, batch_size=8)
    with pytest.raises(ValueError, match=r"perturbation of shape \(8, 4\), got a batch of inputs \(16, 4\).*batch_size"):
        fm.train_step(state, data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attack": REGION}, TypeError, "OverfittingGuard: attack must be .*fm.PGD"),
        ({"every": 0}, ValueError, "OverfittingGuard: every must be a positive number"),
        ({"drop": 1.5}, ValueError, "OverfittingGuard: drop must be between 0 and 1"),
    ],
)
def test_invalid_fields_of_a_guard(options, error, message):
    with pytest.raises(error, match=message):
        OverfittingGuard(**{"attack": PGD, "data": (X, Y), **options})


GOOD = {
    "N-FGSM, mixed": lambda c: fm.Adversarial(c, NFGSM(REGION), 0.5),
    "MART": lambda c: MART(c, PGD),
    "GradAlign": lambda c: GradAlign(c, fm.FGSM(REGION)),
    "VAT": lambda c: VAT(c, eps=0.5),
    "Free": lambda c: FreeAdversarial(c, REGION, replays=2),
    "AWP around TRADES": lambda c: AWP(TRADES(c, fm.PGD(REGION, 0.03, 1, start=Gaussian(0.001)))),
    "Adversarial around SAM": lambda c: fm.Adversarial(SAM(c), PGD),
}


class Inside(fm.System):
    """A system of one part."""

    part: Net


class TwoHeads(fm.System):
    """Two classifiers, one of them inside another system."""

    one: fm.Classifier
    two: Inside


NOISE = (fm.augmentations.Noise(0.01),)


def two_heads(augment=NOISE):
    return TwoHeads(classifier(augment=augment), Inside(net()))


def inside(system):
    return system if isinstance(system, TwoHeads) else inside(system.system)


def around(system, heads):
    """The defences of a system around other heads."""
    return heads if isinstance(system, TwoHeads) else fm.replace(system, system=around(system.system, heads))


def evaluation(system):
    """What an evaluation computes of the heads, and the structure of its results."""
    key, batch = jax.random.key(0), fm.as_batch(system, (X, Y))

    def results(heads):
        whole = around(system, heads)
        attacked = fm.perturb(PGD, whole, batch, key)
        return [(fm.losses(whole, each), fm.metrics(whole, each)) for each in (batch, attacked)]

    program, shapes = jax.make_jaxpr(results, return_shape=True)(inside(system))
    return str(program), jax.tree.structure(shapes)


@functools.cache
def evaluation_of_heads(augment):
    """The evaluation of the heads without a defence."""
    return evaluation(fm.init(two_heads(augment), jax.random.key(0)))


@pytest.mark.parametrize("name", GOOD)
def test_around_a_system_of_several_classifiers(name):
    """`check` runs the loss and its gradient: they are finite, and the gradient reaches every parameter."""
    # If all parts have inputs of their own, those of the whole batch have a perturbation that never changes, to be warned of.
    augment = () if name == "Free" else NOISE
    heads = two_heads(augment)
    report = fm.check(GOOD[name](heads), (X, Y), optimizer=optax.sgd, lr=0.1)
    assert report.ok, report
    assert not report.warnings, report
    system = fm.init(GOOD[name](heads), jax.random.key(0))
    assert evaluation(system) == evaluation_of_heads(augment)
    assert fm.loss_tree(system, (X, Y)) is not None


@pytest.mark.parametrize("name", ["Free", "AWP around TRADES", "Adversarial around SAM"])
def test_a_custom_step_trains_all_parts(name):
    state = fm.setup(GOOD[name](two_heads()), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=16)
    after, logs = fm.train_step(state, (X, Y))
    assert np.isfinite(float(logs["loss"]))
    before, moved = ([v.value for v in fm.leaves(s.system) if v.role == "parameter"] for s in (state, after))
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, moved, strict=True))


def test_an_evaluation_has_the_figures_of_the_system():
    """Of a defence that has arrays of its own, and without random starts: a state has another key."""
    state = fm.setup(FreeAdversarial(two_heads(), REGION), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=16)
    figures, plain = (fm.evaluate(each, (X, Y), attack=fm.FGSM(REGION)) for each in (state, state.system.system))
    assert figures == {name: pytest.approx(value, rel=1e-6) for name, value in plain.items()}
