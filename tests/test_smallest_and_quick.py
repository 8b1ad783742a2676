"""`Smallest`, `quick` with its objective and targets, and AutoAttack for models that draw random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import attacks_model
from test_minimal_attacks import affine, classes_at, curved, nearest_plane, norm_of

import fulmen as fm
from fulmen import attacks, dispatch

BOX = fm.Box(0.0, 1.0)
REGION = fm.LinfBall(0.05) & BOX


# The smallest radius


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_smallest_radius_is_the_distance_to_the_nearest_boundary(norm, key):
    with jax.enable_x64(True):
        system, batch = affine(classes=2)
        least = nearest_plane(norm, system, batch)
        ball = {"Linf": fm.LinfBall, "L2": attacks.L2Ball}[norm](float(np.median(least)))
        x = np.asarray(fm.perturb(attacks.Smallest(fm.FGSM(ball), trials=14), system, batch, key).x)
        assert (classes_at(system, x) != batch.y).all()
    far = norm_of(norm, x - batch.x)
    assert (far >= least * (1 - 1e-9)).all() and (far <= least * 1.01 + 1e-3 * ball.eps).all()
    assert (least < 0.7 * ball.eps).any() and (least > 1.5 * ball.eps).any()  # both directions of the search


def test_the_smallest_radius_of_an_example_does_not_depend_on_the_others(key):
    attack = attacks.Smallest(fm.PGD(fm.LinfBall(0.02) & BOX, 0.012, 2), trials=6)
    system, batch = curved(n=24, dtype=np.float32)
    batch = fm.replace(batch, index=np.arange(24, dtype=np.int32))
    batch, other = batch[np.arange(16)], batch[np.arange(23, 7, -1)]  # of one size, so that they share their programs
    x, others = (np.asarray(fm.perturb(attack, system, each, key).x) for each in (batch, other))
    np.testing.assert_allclose(others[:7:-1], x[8:], rtol=0, atol=1e-6)
    far = norm_of("Linf", x - batch.x)
    found = attacks.attempt(attack, system, batch, key)
    np.testing.assert_array_equal(found.succeeded, (far > 0) & (far <= 0.02 + 1e-7))
    once = attacks.attempt(attack.attack, system, batch, key)
    assert (np.asarray(found.succeeded) >= np.asarray(once.succeeded)).all() and 3 < found.succeeded.sum() < 16
    left = 1 - np.asarray(found.succeeded).mean()
    assert fm.evaluate(system, batch, attack=attack)["robust/accuracy"] == pytest.approx(left, abs=1e-6)


def test_the_smallest_radius_of_several_attacks_is_their_smallest(key):
    system, batch = curved(n=16, dtype=np.float32)
    one, other = fm.FGSM(REGION), fm.PGD(REGION, 0.03, 3, start=attacks.Clean())
    found = [fm.perturb(attacks.Smallest(each, trials=8), system, batch, key).x for each in (one, fm.WorstOf(one, other))]
    far = [norm_of("Linf", np.asarray(x) - batch.x) for x in found]
    far = [np.where(each > 0, each, np.inf) for each in far]
    assert (far[1] <= far[0] * 1.05).all() and (far[1] < far[0] * 0.95).any()


def test_a_misclassified_input_has_distance_0(key):
    system, batch = affine(dtype=np.float32)
    mistaken = fm.replace(batch, y=np.roll(batch.y, 1))
    x = np.asarray(fm.perturb(attacks.Smallest(fm.FGSM(REGION), trials=3), system, mistaken, key).x)
    wrong = mistaken.y != batch.y
    np.testing.assert_array_equal(x[wrong], batch.x[wrong])
    assert wrong.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.Smallest(REGION), "Smallest.attack must be an attack .* got LinfBall"),
        (lambda: attacks.Smallest(attacks.FAB(REGION, targets=2)), "Smallest.attack must have a fixed radius, got FAB"),
        (lambda: attacks.Smallest(fm.FGSM(fm.LinfBall(0.0))), "must have a ball with one radius above 0"),
        (lambda: attacks.Smallest(fm.FGSM(REGION), trials=0), "Smallest.trials must be .* got 0"),
        (lambda: attacks.Smallest(fm.Attack(attacks.fgsm(0.1), BOX)), "region must contain one ball"),
    ],
)
def test_invalid_searches_are_refused(make, message, key):
    with pytest.raises((ValueError, TypeError), match=message):
        fm.perturb(make(), *affine(dtype=np.float32), key)


# A quick evaluation


def test_the_probability_margin_is_the_difference_of_probabilities():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 5
    y = np.arange(6, dtype=np.int32) % 4
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    others = np.where(np.arange(4) == y[:, None], -1, p).max(1)
    found = fm.loss(fm.objectives.ProbabilityMargin(), fm.Prediction(None, jnp.asarray(logits), fm.Labeled(None, y)))
    np.testing.assert_allclose(found, others - p[np.arange(6), y], atol=1e-6)


@pytest.mark.parametrize(("norm", "dual"), [(np.inf, 1), (2, 2), (1, np.inf)])
def test_malt_aims_at_the_nearest_linearised_boundaries(norm, dual):
    system, batch = affine(classes=5, dtype=np.float32)
    weight, z = np.asarray(system.model.weight), np.asarray(system.model(jnp.asarray(batch.x)))
    rows = np.arange(len(z))
    cases = [attacks.MALT(rank, norm=norm, candidates=candidates) for candidates in (9, 2) for rank in (1, 2, 7)]
    usual = [attacks.LikelyTarget(rank) for rank in (1, 2)]
    aims = jax.jit(lambda system, batch: [attacks.aim(each, system, batch)[1] for each in (*cases, *usual)])
    found = [np.asarray(target) for target in aims(system, batch)]
    for candidates in (9, 2):
        distances = np.full(z.shape, np.inf)
        likely = np.argsort(np.where(np.arange(5) == batch.y[:, None], -np.inf, z), axis=1)[:, ::-1][:, : min(candidates, 4)]
        for t in range(5):
            slope = np.linalg.norm(weight[:, batch.y] - weight[:, [t]], dual, axis=0)
            allowed = (likely == t).any(1)
            distances[:, t] = np.where(allowed, (z[rows, batch.y] - z[:, t]) / np.maximum(slope, 1e-12), np.inf)
        for case, target in zip(cases, found, strict=False):
            if case.candidates == candidates:
                expected = np.argsort(distances, axis=1)[:, min(case.rank, 4, candidates) - 1]
                np.testing.assert_array_equal(target, expected)
    assert any((found[rank] != found[len(cases) + rank]).any() for rank in (0, 1))


def test_quick_is_pma_and_targeted_attacks_of_malt():
    found = [(type(each).__name__, repr(each.objective), repr(each.target)) for each in fm.quick(REGION, targets=2).attacks]
    assert found[0] == ("APGD", "ProbabilityMargin()", "TrueLabel()")
    assert found[1:] == [("APGD", "DLR()", f"MALT(rank={rank}, norm=inf, candidates=9)") for rank in (1, 2)]
    few = fm.quick(attacks.L1Ball(1.0), classes=3).attacks
    assert len(few) == 3 and repr(few[1].objective) == "CrossEntropy()" and few[1].target.norm == 1
    assert all(each.stages for each in few)


def test_on_digits_quick_breaks_what_autoattack_breaks(key):
    """The result of the authors' AutoAttack is recorded."""
    n = 16
    with np.load(attacks_model.PATH.with_name("apgd.npz")) as recorded:
        broken = ~recorded["robust/authors"][:n]
    x, y = attacks_model.examples(n)
    system, batch = attacks_model.classifier(), fm.Labeled(x, y, index=np.arange(n, dtype=np.int32))
    found = attacks.attempt(fm.quick(fm.LinfBall(0.1) & BOX), system, batch, key)
    assert np.asarray(found.succeeded).sum() >= broken.sum() - 1 > 8
    assert (classes_at(system, found.x) != y)[np.asarray(found.succeeded)].all()
    assert np.abs(np.asarray(found.x) - x).max() <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.quick(REGION, targets=0), "quick: targets must be .* at least 1, got 0"),
        (lambda: fm.quick(REGION, classes=1), "quick: classes must be .* at least 2, got 1"),
        (lambda: fm.quick(attacks.L0Ball(3)), "must contain a LinfBall, an L2Ball or an L1Ball"),
        (lambda: fm.quick(BOX), "region must contain one ball"),
        (lambda: attacks.autoattack(REGION, samples=0), "autoattack: samples must be .* at least 1, got 0"),
    ],
)
def test_invalid_ensembles_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


# Models that draw


class Noisy(fm.Model):
    """A linear model of a noisy input, in every mode."""

    weight: jax.Array


@dispatch
def forward(model: Noisy, x, mode):
    return (x + jax.random.uniform(mode.key, x.shape, minval=-0.5, maxval=0.5)) @ model.weight


def test_autoattack_for_models_that_draw_maximises_means(key):
    attack = attacks.autoattack(REGION, samples=20)
    assert [(type(each), each.samples) for each in attack.attacks] == [(attacks.APGD, 20)] * 2
    assert [repr(each.objective) for each in attack.attacks] == ["CrossEntropy()", "DLR()"]
    assert len(attacks.autoattack(REGION, classes=2, samples=20).attacks) == 1
    system, batch = affine(dtype=np.float32)
    noisy = fm.replace(system, model=Noisy(system.model.weight))
    region = fm.LinfBall(0.08) & BOX
    found = attacks.attempt(attacks.autoattack(region, steps=10, samples=16), noisy, batch, key)
    breakable = nearest_plane("Linf", system, batch) < 0.08  # the mean of the draws is the model without noise
    assert (np.asarray(found.succeeded) == breakable).mean() > 0.8 and 3 < breakable.sum() < 16
