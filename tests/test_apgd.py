"""APGD against the authors' code, torchattacks and closed forms, and independence of examples; the formula of DLR."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.attacks_model import PATH, classifier, examples

import fulmen as fm
from fulmen import dispatch
from fulmen.objectives import DLR, Margin
from fulmen.robust.attacks import APGD, Boundary, attempt
from fulmen.robust.attacks.region import L1Ball, L2Ball

N, BOX = 16, fm.Box(0.0, 1.0)
BALLS = {"Linf": fm.LinfBall(0.1), "L2": L2Ball(0.5), "L1": L1Ball(2.0)}
OBJECTIVES = {"dlr": DLR(), "dlr-targeted": DLR()}
SHRINKING = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


# Recorded results of other implementations


class Wave(fm.attacks.Start):
    """A point on the ball's boundary that depends on the image only, as in `parity/record_apgd.py`."""


@dispatch
def start_point(start: Wave, region: fm.attacks.Intersection, x, key):
    ball, direction = region.regions[0], jnp.cos(40 * x + jnp.arange(64, dtype=x.dtype).reshape(8, 8, 1))
    if isinstance(ball, L1Ball):
        return x + direction
    length = jnp.abs(direction).max() if isinstance(ball, fm.LinfBall) else jnp.sqrt((direction**2).sum())
    return x + jnp.asarray(ball.eps).astype(x.dtype) * direction / length


@functools.cache
def recorded():
    with np.load(PATH.with_name("apgd.npz")) as stored:
        return dict(stored)


@functools.cache
def correct():
    """Which of the images are classified correctly."""
    x, y = examples(N)
    return np.asarray(jax.jit(lambda model, x: model(x))(classifier().model, x)).argmax(1) == y


def found(norm, loss, steps, dtype):
    x, y = examples(N, dtype)
    target = fm.attacks.LikelyTarget(1) if loss == "dlr-targeted" else fm.attacks.TrueLabel()
    options = {"objective": OBJECTIVES.get(loss, fm.CrossEntropy()), "target": target, "start": Wave()}
    if norm == "L1":
        options["stages"] = SHRINKING
    attack = APGD(BALLS[norm] & BOX, steps, **options)
    return np.asarray(fm.perturb(attack, classifier(dtype), fm.Labeled(x, y), jax.random.key(0)).x)


def comparable(case, precision, limit):
    """The images for which the other implementation is stable under rounding errors, which decide the direction of a step where
    the gradient is about 0, and whose second class, its target, is wrong."""
    steady = (recorded()[f"{case}/unsteadiness{precision}"] < limit) & correct()
    assert steady.sum() >= 11
    return steady


@pytest.mark.parametrize(
    ("norm", "loss", "steps"),
    [("Linf", "ce", 100), ("Linf", "dlr-targeted", 10), ("L2", "dlr", 10), ("L1", "shrinking", 10)],
)
def test_apgd_equals_the_authors_code(norm, loss, steps):
    with jax.enable_x64(True):
        x = found(norm, loss, steps, np.float64)
    steady = np.ones(N, bool)
    for who in ("authors", "torchattacks"):
        case = f"{who}/{norm}/{loss}/{steps}"
        if who == "authors" or case in recorded():
            steady &= comparable(case, "", 1e-10)  # an image is unstable for both
            assert steady.sum() >= 10
            np.testing.assert_allclose(x[steady], recorded()[case][steady], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("norm", "loss"), [("Linf", "dlr"), ("L2", "dlr-targeted")])
def test_apgd_equals_the_authors_code_in_single_precision(norm, loss):
    case = f"authors/{norm}/{loss}/10"
    steady = comparable(case, "32", 1e-5)
    far = np.abs(found(norm, loss, 10, np.float32) - recorded()[case])[steady] > 1e-5
    assert far.mean() <= 0.001


# Closed forms


class Affine(fm.Model):
    """x W"""

    weight: jax.Array


@dispatch
def forward(model: Affine, x):
    return x @ model.weight


def affine(dtype=np.float32, classes=5, features=12, n=24):
    rng = np.random.default_rng(3)
    weight = jnp.asarray(rng.normal(size=(features, classes)), dtype)
    x = rng.uniform(0.3, 0.7, size=(n, features)).astype(dtype)
    return fm.Classifier(Affine(weight), fm.CrossEntropy()), fm.Labeled(x, np.asarray(x @ weight).argmax(1).astype(np.int32))


# The L1 attack moves few coordinates, at the end not always the best one only.
@pytest.mark.parametrize(
    ("ball", "order", "share"),
    [(fm.LinfBall, 1, 0.9999), (L2Ball, 2, 0.9998), (L1Ball, np.inf, 0.9)],
    ids=["Linf", "L2", "L1"],
)
def test_apgd_reaches_the_worst_case_of_a_linear_model(ball, order, share, key):
    system, batch = affine(classes=2)
    attack = APGD(ball(0.05) & BOX, 40, objective=Margin())
    attacked = fm.perturb(attack, system, batch, key)
    gained = margins(system, attacked) - margins(system, batch)
    weight = np.asarray(system.model.weight)
    most = 0.05 * np.linalg.norm(weight[:, 0] - weight[:, 1], order)
    assert (gained <= most * 1.0001).all() and (gained >= share * most).all()
    still = fm.perturb(fm.replace(attack, {"region.regions.0.eps": 0.0}), system, batch, key)
    np.testing.assert_array_equal(still.x, batch.x)


def margins(system, batch):
    logits = np.asarray(batch.x) @ np.asarray(system.model.weight)
    others = np.where(np.arange(logits.shape[1]) == batch.y[:, None], -np.inf, logits)
    return others.max(1) - logits[np.arange(len(logits)), batch.y]


def test_apgd_starts_on_the_boundary(key):
    x, k = np.full(1000, 0.5, np.float32), jax.random.key(1)
    for ball, size in [(fm.LinfBall(0.25), lambda d: abs(d).max()), (L2Ball(0.25), lambda d: (d**2).sum() ** 0.5)]:
        offset = np.asarray(jax.jit(fm.attacks.start_point)(Boundary(), ball & BOX, x, k)) - x
        assert abs(size(offset) - 0.25) < 1e-6
        assert abs(offset.mean()) < 0.02 and len(np.unique(offset)) > 900


# Independence of examples, of the batch and of the program


LINF = APGD(fm.LinfBall(0.03) & BOX, 6, objective=DLR(), target=fm.attacks.LikelyTarget(2))


def two_batches():
    """A system and two batches of one size, which have the examples 8 to 23 in common, in other rows."""
    system, batch = affine(np.float64, n=32)
    batch = fm.replace(batch, index=np.arange(32) + 3)
    return system, batch[np.arange(24)], batch[np.arange(31, 7, -1)]


def common(one, other):
    """The rows of the common examples, in one order."""
    return np.asarray(one)[8:], np.asarray(other)[:7:-1]


def test_an_attack_on_an_example_does_not_depend_on_the_others(key):
    with jax.enable_x64(True):
        system, batch, other = two_batches()
        x = np.asarray(fm.perturb(LINF, system, batch, key).x)
        assert np.abs(x - batch.x).max() > 0.01
        np.testing.assert_allclose(*common(x, fm.perturb(LINF, system, other, key).x), rtol=0, atol=1e-12)
        traced = jax.jit(lambda s, b, k: fm.perturb(LINF, s, b, k).x)(system, batch, key)
        np.testing.assert_allclose(traced, x, rtol=0, atol=1e-12)


def test_the_remaining_examples_continue_unchanged(key):
    with jax.enable_x64(True):
        system, *batches = two_batches()
        one, other = (attempt(LINF, system, batch, key) for batch in batches)
        np.testing.assert_allclose(*common(one.x, other.x), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(*common(one.first, other.first))
        assert 0 < np.asarray(one.succeeded).sum() < 24


def test_only_points_of_the_last_stage_count_and_do_not_depend_on_other_examples(key):
    attack = APGD(L1Ball(0.03) & BOX, 10, stages=((30.0, 0.5), (1.0, 0.5)))
    assert attack.length == 11
    with jax.enable_x64(True):
        system, batch, others = two_batches()
        outcome, other = (attempt(attack, system, each, key) for each in (batch, others))
    np.testing.assert_allclose(*common(outcome.x, other.x), rtol=0, atol=1e-12)
    assert (np.abs(np.asarray(outcome.x) - batch.x).sum(1) <= 0.03).all()
    assert np.asarray(outcome.succeeded).any() and not np.asarray(outcome.succeeded).all()
    np.testing.assert_array_equal(margins(system, fm.replace(batch, x=outcome.x)) >= 0, outcome.succeeded)


# The objectives


def test_dlr_equals_its_formula(key):
    logits = np.random.default_rng(0).normal(size=(40, 6))
    y, target = np.arange(40) % 6, (np.arange(40) * 5 + 1) % 6
    prediction = fm.Prediction(None, jnp.asarray(logits, jnp.float32), fm.Labeled(None, jnp.asarray(y)))
    down, rows = -np.sort(-logits, 1), np.arange(40)
    others = np.where(np.arange(6) == y[:, None], -np.inf, logits).max(1)
    expected = -(logits[rows, y] - others) / (down[:, 0] - down[:, 2])
    np.testing.assert_allclose(fm.loss(DLR(), prediction), expected, rtol=1e-5)
    np.testing.assert_allclose(fm.loss(Margin(), prediction), others - logits[rows, y], rtol=1e-5)
    towards = -(logits[rows, y] - logits[rows, target]) / (down[:, 0] - (down[:, 2] + down[:, 3]) / 2)
    got = fm.attacks.toward(DLR(), prediction, jnp.asarray(target))
    np.testing.assert_allclose(got, towards, rtol=1e-4, atol=1e-5)
    # Probabilities count as their most likely class, and DLR is invariant to shift and scale.
    soft = fm.replace(prediction, batch=fm.Labeled(None, jax.nn.one_hot(y, 6)), outputs=3 * prediction.outputs + 2)
    np.testing.assert_allclose(fm.loss(DLR(), soft), expected, rtol=1e-4, atol=1e-5)


def test_dlr_refuses_too_few_classes(key):
    region = fm.LinfBall(0.1) & BOX
    for classes, target, message in [
        (2, fm.attacks.TrueLabel(), "at least 3 outputs"),
        (3, fm.attacks.LikelyTarget(1), "at least 4"),
    ]:
        system, batch = affine(classes=classes)
        with pytest.raises(ValueError, match=f"DLR.*{message}.*got {classes}.*CrossEntropy"):
            fm.perturb(APGD(region, 3, objective=DLR(), target=target), system, batch, key)


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (lambda: APGD(BOX), ValueError, "region must contain one ball"),
        (lambda: APGD(fm.LinfBall(0.1), 0), ValueError, "APGD.steps .* got 0"),
        (
            lambda: APGD(fm.LinfBall(0.1), stages=((1.0, 0.3), (2.0, 0.7))),
            ValueError,
            r"APGD.stages .* the last is 1.* got \(\(1.0",
        ),
        (lambda: APGD(fm.LinfBall(0.1), stages=((2.0, 0.3), (1.0, 0.3))), ValueError, "APGD.stages .* add up to 1"),
        (lambda: APGD(fm.LinfBall(0.1), stages=(1.0,)), TypeError, "APGD.stages must be a tuple of tuple"),
        (
            lambda: APGD(L1Ball(0.1), 2, stages=SHRINKING),
            ValueError,
            "APGD.steps must be at least one for each stage, got 2",
        ),
    ],
)
def test_invalid_attacks_are_refused(attack, error, message, key):
    with pytest.raises(error, match=message):
        fm.perturb(attack(), *affine(), key)


def test_a_step_takes_two_passes(key):
    ones = lambda *shape: np.ones(shape, np.float32)
    system = fm.Classifier(Affine(ones(1024, 1024)), fm.CrossEntropy())
    batch = fm.Labeled(ones(32, 1024), np.zeros(32, np.int32))
    flops = lambda f, *given: jax.jit(f).lower(*given).cost_analysis()["flops"]
    one, steps = flops(lambda s, b: s.model(b.x), system, batch), 2
    whole = flops(lambda s, b, k: fm.perturb(APGD(fm.LinfBall(0.1) & BOX, steps), s, b, k).x, system, batch, key)
    assert 1.95 * steps * one < whole <= 1.05 * (2 * steps + 1) * one


class Bowl(fm.Model):
    """A loss that is largest at 0."""

    weight: jax.Array


@dispatch
def loss(bowl: Bowl, batch):
    return -(bowl.weight * batch.x**2).sum(1)


@pytest.mark.parametrize("steps", [1, 2])
def test_without_the_best_point_the_peak_is_returned(steps, key):
    """Steps from near the maximum go past it."""
    bowl, data = Bowl(jnp.ones(())), fm.Unlabeled(jnp.full((3, 1), 0.01))
    attack = fm.attacks.APGD(fm.LinfBall(0.5), steps, objective=None, start=fm.attacks.Clean())
    found = fm.perturb(attack, bowl, data, key, best=False).x
    np.testing.assert_array_equal(found, data.x)
