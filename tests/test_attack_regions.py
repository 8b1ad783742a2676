"""Attacks stay in their regions: per-example radii and targets, several input arrays, custom regions, nearest-point attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Perceptron

import fulmen as fm
from fulmen import attacks, dispatch

BOX = fm.Box(0.0, 1.0)
REGION = fm.LinfBall(0.1) & BOX
N = 48


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return fm.Classifier(Perceptron(0.3 * draw(16, 32), draw(32, 5)))


@pytest.fixture(scope="module")
def batch(system):
    x = np.random.default_rng(1).uniform(size=(N, 16)).astype(np.float32)
    y = np.asarray(system.model(x)).argmax(1).astype(np.int32)
    y[::9] = (y[::9] + 1) % 5  # some are wrong, and left out by attacks that stop
    return fm.Labeled(x, y)


def moved(batch, found):
    return np.abs(np.asarray(found, np.float64) - batch.x).max(1)


# One radius and one target per example


def test_examples_that_are_left_out_do_not_shift_the_radii(system, batch, key):
    eps = np.where(np.arange(N) % 2, 0.02, 0.08).astype(np.float32)
    attack = attacks.BIM(fm.LinfBall(eps) & BOX, 0.03, 8)
    options = {"eps": (), "signs": (), "progress": False}
    for found in (
        fm.perturb(attack, system, batch, key).x,
        fm.perturb(fm.WorstOf(fm.FGSM(fm.LinfBall(0.001) & BOX), attack), system, batch, key).x,
        attacks.attempt(attack, system, batch, key).x,
        fm.robustness(system, (batch.x, batch.y), attack, batch_size=20, **options).x,
    ):
        assert (moved(batch, found) <= eps * (1 + 1e-5)).all()
    whole = fm.evaluate(system, batch, attack=attack)["robust/accuracy"]
    assert whole == fm.evaluate(system, batch, attack=attack, batch_size=20)["robust/accuracy"] < 0.8


def test_examples_that_are_left_out_do_not_shift_the_targets(system, batch, key):
    label = (batch.y + 2) % 5
    attack = attacks.BIM(fm.LinfBall(0.6) & BOX, 0.05, 20, target=attacks.Target(label))
    found = attacks.attempt(attack, system, batch, key)
    assert found.succeeded.mean() > 0.9
    reached = np.asarray(system.model(jnp.asarray(found.x))).argmax(1) == label
    np.testing.assert_array_equal(found.succeeded, reached)
    report = fm.robustness(system, (batch.x, batch.y), attack, eps=(), signs=(), progress=False)
    broken = report.correct & ~report.robust
    assert (np.asarray(system.model(jnp.asarray(report.x))).argmax(1) == label)[broken].all() and broken.mean() > 0.7
    whole = fm.evaluate(system, batch, attack=attack)["robust/accuracy"]
    assert whole == fm.evaluate(system, batch, attack=attack, batch_size=20)["robust/accuracy"]
    smallest = attacks.Smallest(attacks.BIM(REGION, 0.03, 3, target=attacks.Target(label)), trials=3)
    assert fm.evaluate(system, batch, attack=smallest)["robust/accuracy"] <= 1


BY_STEPS = {
    "FGSM": fm.FGSM,
    "RFGSM": attacks.RFGSM,
    "PGD": lambda region: fm.PGD(region, 0.05, 3),
    "NIFGSM": lambda region: attacks.NIFGSM(region, steps=3),
    "APGD": lambda region: attacks.APGD(region, 5),
    "Square": lambda region: attacks.Square(region, 6),
}


@pytest.mark.parametrize("ball", [fm.LinfBall, fm.L2Ball])
@pytest.mark.parametrize("name", BY_STEPS)
def test_a_radius_for_each_example_is_as_that_radius_for_all(name, ball, system, batch, key):
    """Steps and starts whose size is the radius are those of each example."""
    narrow, wide, even = 0.05, 0.2, np.arange(N) % 2 == 0
    attacked = lambda eps: np.asarray(fm.perturb(BY_STEPS[name](ball(eps) & BOX), system, batch, key).x)
    mixed = attacked(np.where(even, narrow, wide).astype(np.float32))
    np.testing.assert_allclose(mixed[even], attacked(narrow)[even], atol=1e-6)
    np.testing.assert_allclose(mixed[~even], attacked(wide)[~even], atol=1e-6)
    assert np.abs(mixed - batch.x)[~even].max() > narrow


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (
            attacks.BIM(REGION, 0.02, 2, target=attacks.Target(np.zeros(7, np.int32))),
            r"Target\.label .* \(48,\).*got \(7,\)",
        ),
        (attacks.BIM(fm.LinfBall(np.full(7, 0.1, np.float32)), 0.02, 2), r"LinfBall\.eps .* \(48,\).*got \(7,\)"),
        (attacks.Universal(fm.LinfBall(np.full(N, 0.1, np.float32)), 0.02, 2), r"Universal\.region must have one radius"),
    ],
    ids=["targets", "radii", "one for all"],
)
def test_wrong_numbers_of_values(attack, words, system, batch):
    with pytest.raises(ValueError, match=words):
        fm.evaluate(system, batch, attack=attack, batch_size=20)


# Nearest points


NEAREST = [
    attacks.FAB(REGION, 5, targets=2),
    attacks.FMN(REGION, 20),
    attacks.DeepFool(REGION),
    attacks.DDN(fm.L2Ball(0.3) & BOX, 20),
    attacks.Smallest(attacks.BIM(REGION, 0.03, 3), trials=3),
]


@pytest.mark.parametrize("attack", NEAREST, ids=lambda a: type(a).__name__)
def test_members_of_a_population_are_attacked_inside_the_region(attack, system, batch):
    other = jax.tree.map(lambda v: v[::-1] if v.ndim else v, system)
    population = fm.init(fm.Population([system, other]), jax.random.key(0))
    found = fm.evaluate(population, batch, attack=attack)["robust/accuracy/members"]
    alone = [fm.evaluate(each, batch, attack=attack)["robust/accuracy"] for each in (system, other)]
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert alone[0] > 0


def test_a_nearest_point_is_inside_when_it_is_traced_and_through_a_surrogate(system, batch, key):
    attack = NEAREST[0]
    run = lambda system: fm.perturb(attack, system, batch, key, inside=True).x
    assert moved(batch, jax.jit(run)(system)).max() <= 0.1 * (1 + 1e-5)
    through = attacks.Through(system, attack)
    robust = fm.evaluate(system, batch, attack=attack)["robust/accuracy"]
    assert fm.evaluate(system, batch, attack=through)["robust/accuracy"] == robust > 0
    report = fm.robustness(system, (batch.x, batch.y), through, eps=(), signs=(), progress=False)
    assert report.robust_accuracy == robust


# Several input arrays


class Halves(fm.Model):
    whole: fm.Model


@dispatch
def forward(halves: Halves, x):
    return halves.whole(jnp.concatenate([x["first"], x["second"]], 1))


@pytest.mark.parametrize(("ball", "order"), [(fm.L2Ball(0.4), 2), (fm.L1Ball(1.0), 1), (attacks.L0Ball(3), 0)])
@pytest.mark.parametrize("make", [lambda r: attacks.BIM(r, 0.1, 5), lambda r: fm.PGD(r, 0.1, 3), fm.FGSM])
def test_a_norm_is_over_all_arrays_of_an_example(ball, order, make, system, batch, key):
    split = fm.Labeled({"first": batch.x[:, :5], "second": batch.x[:, 5:]}, batch.y)
    found = fm.perturb(make(ball & BOX), fm.Classifier(Halves(system.model)), split, key).x
    offset = np.concatenate([found["first"], found["second"]], 1).astype(np.float64) - batch.x
    far = np.linalg.norm(offset, axis=1, ord=order)
    assert (far <= ball.eps * (1 + 1e-6)).all() and far.max() > 0.9 * ball.eps
    assert found["first"].shape == (N, 5) and found["second"].dtype == np.float32


def test_one_array_and_several_are_projected_onto_the_same_point():
    from fulmen.robust.attacks.projections import projected

    rng = np.random.default_rng(0)
    x, origin = rng.normal(size=(2, 6, 8)).astype(np.float32)
    for region in (fm.L2Ball(0.5) & fm.Box(-1, 1), fm.L1Ball(0.5), attacks.L0Ball(2) & fm.LinfBall(0.3)):
        cut = lambda v: {"a": v[:, :3], "b": v[:, 3:].reshape(6, 5, 1)}
        parts = projected(region, cut(x), cut(origin))
        joined = np.concatenate([parts["a"], parts["b"].reshape(6, 5)], 1)
        np.testing.assert_array_equal(joined, attacks.project(region, x, origin))


# Custom regions


class Falling(attacks.Region):
    """The sum of the changes is at most 0."""


@dispatch
def project(region: Falling, x, origin):
    change = x - origin
    return x - jnp.maximum(change.sum(1, keepdims=True), 0) / change.shape[1]


class Never(attacks.Region):
    """A region that no point is in."""


@dispatch
def project(region: Never, x, origin):
    return x + 1


@pytest.mark.parametrize("ball", [fm.LinfBall(0.1), fm.L2Ball(0.3)])
def test_a_custom_region_of_an_intersection_is_respected(ball, system, batch, key):
    found = fm.perturb(fm.PGD(ball & Falling() & BOX, 0.05, 5), system, batch, key).x
    change = np.asarray(found, np.float64) - batch.x
    assert change.sum(1).max() < 1e-3 and np.abs(change).max() > 0.02


class Widening(attacks.Region):
    """Its `project` returns another type."""


@dispatch
def project(region: Widening, x, origin):
    return jnp.asarray(x, jnp.float32)


def test_a_custom_projection_may_return_another_type():
    x = jnp.ones((2, 3), jnp.float16)
    assert attacks.project(Widening() & fm.LinfBall(0.25), x, 0 * x).dtype == jnp.float16


def test_points_outside_a_custom_region_are_reported(system, batch):
    attack = fm.PGD(fm.LinfBall(0.1) & Never(), 0.05, 3)
    with pytest.warns(UserWarning, match=r"an attacked input is .* outside Never\(\)"):
        fm.evaluate(system, batch, attack=attack)
    text = str(fm.robustness(system, (batch.x, batch.y), attack, eps=(), progress=False))
    assert "outside Never()" in text


# Success on binary targets


class Leading(fm.Model):
    """One column of another model's outputs."""

    model: fm.Model
    keeps_axis: bool = True


@dispatch
def forward(leading: Leading, x):
    z = leading.model(x)[:, 1:2]
    return z if leading.keeps_axis else z[:, 0]


@pytest.mark.parametrize("keeps_axis", [True, False])
def test_success_on_a_binary_target_is_a_logit_of_the_other_sign(keeps_axis, system, batch, key):
    binary = fm.Classifier(Leading(system.model, keeps_axis), fm.BinaryCrossEntropy())
    y = (np.asarray(system.model(batch.x))[:, 1] > 0).astype(np.float32)
    labelled = fm.Labeled(batch.x, y[:, None] if keeps_axis else y)
    found = attacks.attempt(attacks.BIM(REGION, 0.03, 5), binary, labelled, key)
    wrong = (np.asarray(system.model(jnp.asarray(found.x)))[:, 1] > 0) != y
    np.testing.assert_array_equal(found.succeeded, wrong)
    assert 0 < wrong.mean() < 1
    with pytest.raises(ValueError, match="predict needs logits of at least two classes"):
        fm.predict(fm.Smoothed(binary, 0.1, samples=10), batch.x)


class AnyLabel(attacks.Targeting):
    """Succeeds where any of several labels is wrong."""

    one_class = False


@dispatch
def aim(targeting: AnyLabel, system, batch):
    return batch, None


@dispatch
def succeeded(targeting: AnyLabel, prediction, target):
    return ((prediction.outputs > 0) != (prediction.batch.y > 0.5)).any(1)


def test_success_may_be_defined_on_several_labels(system, batch, key):
    several = fm.Labeled(batch.x, (np.asarray(system.model(batch.x)) > 0).astype(np.float32))
    labels = fm.Classifier(system.model, fm.BinaryCrossEntropy())
    found = attacks.attempt(attacks.BIM(REGION, 0.03, 3, target=AnyLabel()), labels, several, key)
    assert 0 < found.succeeded.mean() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_success_is_not_defined_on_several_labels(dtype, system, batch, key):
    several = fm.Labeled(batch.x, (np.asarray(system.model(batch.x)) > 0).astype(dtype))
    labels = fm.Classifier(system.model, fm.BinaryCrossEntropy())
    fm.perturb(attacks.BIM(REGION, 0.03, 2), labels, several, key)
    with pytest.raises(ValueError, match=r"one label per example, got y .*48, 5\] with several"):
        attacks.attempt(attacks.BIM(REGION, 0.03, 2), labels, several, key)


def test_a_list_of_attacks_for_an_ensemble():
    with pytest.raises(TypeError, match=r"WorstOf takes attacks.*write fm\.WorstOf\(\*attacks\)"):
        fm.WorstOf([fm.FGSM(REGION)])


def test_free_training_keeps_one_norm_over_all_arrays(system, batch):
    split = fm.Labeled({"first": batch.x[:, :5], "second": batch.x[:, 5:]}, batch.y)
    free = fm.defences.FreeAdversarial(fm.Classifier(Halves(system.model)), fm.L2Ball(0.3) & BOX, replays=2)
    state = fm.setup(free, split, optimizer=optax.sgd, lr=0.1, batch_size=N)
    state, _ = fm.train_step(state, split)
    stored = state.system.perturbation.value
    far = np.linalg.norm(np.concatenate([stored["first"], stored["second"]], 1), axis=1)
    assert far.max() <= 0.3 * (1 + 1e-5) and far.max() > 0.2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fm.autoattack(attacks.L0Ball(3) & BOX), TypeError, "must contain a LinfBall, an L2Ball or an L1Ball"),
        (
            lambda: fm.validate(attacks.FAB(attacks.L0Ball(3) & BOX, 3)),
            ValueError,
            "FAB, region: must contain an L1Ball or an L2Ball",
        ),
        (lambda: fm.validate(attacks.DeepFool(attacks.L0Ball(3))), ValueError, "DeepFool, region: must contain an L1Ball"),
    ],
)
def test_attacks_of_three_norms_refuse_an_l0_ball(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_several_attacks_in_evaluate(system, batch):
    with pytest.raises(TypeError, match=r"attack must be an Attack.*write fm\.WorstOf\(\*attacks\)"):
        fm.evaluate(system, batch, attack=(fm.FGSM(REGION), fm.FGSM(REGION)))


def test_one_perturbation_for_all_stays_in_the_region_in_spite_of_rounding(system, batch, key):
    found = fm.perturb(attacks.Universal(REGION, 0.05, 4), system, batch, key).x
    limit = np.nextafter(np.float32(0.1), np.float32(1))
    assert (np.abs(np.asarray(found) - batch.x) <= limit).all()
    again = attacks.project(REGION, found, batch.x)
    np.testing.assert_array_equal(again, found)
