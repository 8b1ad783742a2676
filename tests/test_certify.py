"""`certify`: interval bounds and randomized smoothing on models whose radius is known, and beside attacks on digits."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtri
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from tiny import Compilations

import fulmen as fm
from fulmen import dispatch
from fulmen.models import MLP, Chain, Dense
from fulmen.robust.certified import margin_bounds
from fulmen.robust.certified.interval import interval_of
from fulmen.robust.certified.smoothed import lower_confidence_bound

REGION = fm.LinfBall(0.1) & fm.Box(0, 1)
WEIGHT = np.array([[1.0, -1.0], [-2.0, 0.5], [0.5, 0.0]], np.float32)
STEEPNESS = WEIGHT[:, 0] - WEIGHT[:, 1]


def linear():
    return fm.Classifier(Dense(3, 2, weight=jnp.asarray(WEIGHT), bias=jnp.array([0.3, 0.0])))


@functools.cache
def examples(n=50):
    x = np.random.default_rng(0).random((n, 3), np.float32)
    return x, (x @ STEEPNESS + 0.3 < 0).astype(np.int32)


def distance(order):
    """The exact distance of each example from the linear model's boundary."""
    return np.abs(examples()[0].astype(np.float64) @ STEEPNESS + np.float32(0.3)) / np.linalg.norm(STEEPNESS, order)


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    train, test = fm.split(((x / 16).astype(np.float32), y.astype(np.int32)), 0.8, seed=0)
    return tuple(v[:1408] for v in train), test  # 22 batches of 64: no other program for the last one


def small():
    return fm.Classifier(MLP(64, 32, 10), metrics=(fm.Accuracy(),))


@functools.cache
def ibp_state():
    system = fm.IBP(small(), fm.LinfBall(0.05) & fm.Box(0, 1), warmup=20, ramp=100)
    return fm.fit(system, digits()[0], optimizer=optax.adam, lr=3e-3, epochs=10, batch_size=64, progress=False)[0]


# Interval bounds


def test_radii_of_a_linear_model_are_its_distances():
    found = fm.certify(linear(), examples(), fm.LinfBall(0.1))
    exact = np.minimum(distance(1), 0.2)
    assert found.accuracy == 1
    np.testing.assert_array_equal(found.certified, distance(1) > 0.1)
    assert (found.radius <= exact).all()
    np.testing.assert_allclose(found.radius, exact, atol=1e-4)
    assert found.at(0.0) == 1 and found.at(0.1) == found.certified_accuracy and found.at(0.15) == (distance(1) > 0.15).mean()


def test_a_region_without_a_ball_has_no_radius():
    found = fm.certify(linear(), examples(), fm.Box(0, 1))
    assert found.radius is None and found.certified_accuracy == 0
    with pytest.raises(ValueError, match="no radii"):
        found.at(0.1)


def test_a_wrong_label_is_neither_correct_nor_certified():
    x, y = examples()
    found = fm.certify(linear(), (x, 1 - y), REGION)
    assert not found.correct.any() and not found.certified.any() and not found.radius.any()
    assert "Certified accuracy 0.000 of 50 examples, accuracy 0.000" in repr(found)


def test_results_do_not_depend_on_the_batch_size_and_a_warm_call_compiles_nothing():
    system = linear()
    state = fm.setup(system, examples(), optimizer=optax.sgd, lr=0.1)
    whole, parts = (fm.certify(state, examples(), REGION, batch_size=size) for size in (None, 16))
    np.testing.assert_allclose(whole.radius, parts.radius, atol=1e-4)  # found by bisection
    for name in ("labels", "predicted", "correct", "certified"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    with Compilations() as compilations:
        fm.certify(state, examples(), fm.LinfBall(0.07) & fm.Box(0, 1), batch_size=16)
    assert not compilations.names


class TwoHeads(fm.System):
    one: fm.Classifier
    two: fm.Classifier


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fm.certify(linear(), examples(), fm.L2Ball(0.1)), ValueError, "fm.Smoothed"),
        (lambda: fm.certify(linear(), examples(), fm.L1Ball(0.1) & fm.Box(0, 1)), ValueError, "bounds each coordinate"),
        (lambda: fm.certify(linear(), examples(), 0.1), TypeError, "fm.LinfBall"),
        (lambda: fm.certify(linear(), examples(), fm.LinfBall(-0.1)), ValueError, "eps"),
        (lambda: fm.certify(linear(), examples()[0], REGION), ValueError, "no labels"),
        (lambda: fm.certify(linear(), (examples()[0], examples()[1] + 5), REGION), ValueError, "labels from 0 to 1"),
        (lambda: fm.certify(linear(), (3 * examples()[0], examples()[1]), REGION), ValueError, "Box"),
        (lambda: fm.certify(TwoHeads(linear(), linear()), examples(), REGION), ValueError, "one classifier"),
        (lambda: fm.certify(fm.Classifier(MLP(3, 2)), examples(), REGION), ValueError, "fm.init"),
        (lambda: fm.certify(linear(), examples(), REGION, batch_size=0), ValueError, "batch_size"),
        (lambda: fm.certify(fm.Smoothed(linear(), 0.0), examples(), fm.L2Ball(0.1)), ValueError, "Smoothed.sigma"),
        (lambda: fm.certify(fm.Smoothed(linear(), -1.0), examples(), fm.L2Ball(0.1)), ValueError, "Smoothed.sigma"),
        (lambda: fm.certify(fm.Smoothed(linear(), 0.1, 0), examples(), fm.L2Ball(0.1)), ValueError, "Smoothed.samples"),
        (lambda: fm.certify(fm.Smoothed(linear(), 0.1), examples(), fm.LinfBall(0.1)), ValueError, "fm.L2Ball"),
        (lambda: fm.setup(fm.IBP(linear(), fm.L2Ball(0.1)), examples(), optimizer=optax.sgd, lr=0.1), ValueError, "IBP"),
        (
            lambda: fm.setup(fm.IBP(linear(), REGION, warmup=0.1), examples(), optimizer=optax.sgd, lr=0.1),
            ValueError,
            r"IBP.warmup must be a number of steps, 0 or at least 1, got 0.1",
        ),
    ],
)
def test_bad_input_is_an_error_with_the_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Beside attacks


def test_no_attack_breaks_a_certified_digit_and_the_report_shows_both():
    state, (x, y) = ibp_state(), digits()[1]
    data, region = (x[:128], y[:128]), fm.LinfBall(0.05) & fm.Box(0, 1)
    certificate = fm.certify(state, data, region)
    report = fm.robustness(
        state, data, fm.PGD(region, 0.01, 20, fm.attacks.Clean()), eps=(), signs=(), progress=False
    ).with_certificate(certificate)
    assert 0.5 < report.certified_accuracy <= report.robust_accuracy <= report.accuracy
    assert (report.robust >= report.certified).all()
    assert report.findings[-1].verdict == "ok"
    assert f"certified accuracy {report.certified_accuracy:.3f}" in str(report)
    for eps in (0.02, 0.04):  # the radii hold too
        within = certificate.radius >= eps
        attack = fm.PGD(fm.LinfBall(eps) & fm.Box(0, 1), eps / 4, 10, fm.attacks.Clean())
        broken = np.asarray(fm.attacks.attempt(attack, state, data, jax.random.key(0)).succeeded)
        assert within.sum() > 30 and not broken[within].any()


def test_a_broken_certified_example_is_a_finding(tmp_path):
    report = fm.robustness(linear(), examples(), fm.FGSM(REGION), eps=(), signs=(), progress=False)
    certificate = fm.certify(linear(), examples(), REGION)
    wrong = type(certificate)(**{**vars(certificate), "certified": np.ones(50, bool)})
    found = report.with_certificate(wrong)
    assert found.findings[-1].verdict == "wrong" and "broken by the attacks" in found.findings[-1].text
    found.save(tmp_path / "report.json")
    np.testing.assert_array_equal(fm.Report.load(tmp_path / "report.json").certified, found.certified)
    with pytest.raises(ValueError, match="certificate must be for"):
        report.with_certificate(fm.certify(linear(), examples(), fm.LinfBall(0.1)))
    with pytest.raises(ValueError, match="of the report's 50 examples"):
        report.with_certificate(fm.certify(linear(), tuple(v[:20] for v in examples()), REGION))


# Randomized smoothing

SIGMA = 0.25


def smoothed(system=None, **options):
    return fm.Smoothed(linear() if system is None else system, SIGMA, **{"samples": 2000, **options})


def test_smoothed_radii_of_a_linear_model_are_below_its_distances_and_near_them():
    found = fm.certify(smoothed(), examples(), fm.L2Ball(0.1))
    right = found.correct
    assert right.mean() > 0.9 and (found.radius <= distance(2))[right].all()
    # A radius that 2000 draws can show is at most σ Φ⁻¹(α^(1/2000)).
    reachable = np.minimum(distance(2), SIGMA * ndtri(0.001 ** (1 / 2000)))
    assert (found.radius > reachable - 0.1)[right].all()
    np.testing.assert_array_equal(found.certified, right & (found.radius >= 0.1))


def by_hand(x, y, model, samples, key):
    """Cohen's procedure for one example at a time, with the same draws."""
    predicted, radius = [], []

    @jax.jit
    def classes(key):
        def of_example(i, one):
            example = jax.random.fold_in(key, i)
            draw = lambda number: jax.random.normal(jax.random.fold_in(jax.random.fold_in(example, number), 0), one.shape)
            noise = jax.vmap(draw)(jnp.arange(samples))
            return fm.forward(model, one[None] + np.float32(SIGMA) * noise).argmax(1)

        return jax.vmap(of_example)(jnp.arange(len(x)), x)

    sizes = {"selection": 100, "estimation": samples}
    found = {name: np.asarray(classes(fm.core.fold_name(key, name)))[:, :n] for name, n in sizes.items()}
    for i in range(len(x)):
        votes = lambda name, i=i: np.bincount(found[name][i], minlength=2)
        top = votes("selection").argmax()
        p = binomtest(int(votes("estimation")[top]), samples, alternative="greater").proportion_ci(0.999).low
        predicted.append(top if p > 0.5 else -1)
        radius.append(SIGMA * ndtri(p) if p > 0.5 and top == y[i] else 0.0)
    return np.array(predicted), np.array(radius)


def test_smoothing_equals_the_procedure_by_hand_with_the_same_draws():
    x, y = examples()
    found = fm.certify(smoothed(samples=500), (x, y), fm.L2Ball(0.1), seed=3)
    predicted, radius = by_hand(x, y, linear(), 500, jax.random.key(3))
    np.testing.assert_array_equal(found.predicted, predicted)
    np.testing.assert_allclose(found.radius, radius, atol=1e-9)
    assert (predicted < 0).any()  # some abstain


def test_draws_of_an_example_do_not_depend_on_batches_and_passes():
    x, y = examples()
    whole = fm.certify(smoothed(samples=500), (x, y), fm.L2Ball(0.1))
    parts = fm.certify(smoothed(samples=500, draws=64), (x, y), fm.L2Ball(0.1), batch_size=7)
    np.testing.assert_array_equal(whole.radius, parts.radius)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)


@pytest.mark.parametrize("weight", [0.0, np.nan])
def test_a_model_whose_logits_tie_or_are_nan_abstains_everywhere(weight):
    model = fm.Classifier(Dense(3, 2, weight=jnp.full((3, 2), weight), bias=jnp.zeros(2)))
    found = fm.certify(smoothed(model, samples=200), examples(), fm.L2Ball(0.1))
    assert found.abstained == 1 and found.certified_accuracy == 0 and not found.radius.any()
    assert "abstained: 1.000" in repr(found)


def test_smoothing_takes_states_and_models_of_other_libraries():
    x, y = examples()
    module = eqx.tree_at(
        lambda m: (m.weight, m.bias),
        eqx.nn.Linear(3, 2, key=jax.random.key(0)),
        (jnp.asarray(WEIGHT.T), jnp.array([0.3, 0.0])),
    )
    functions = fm.functional(
        lambda key: None, lambda p, x: x @ p["w"] + p["b"][None], parameters={"w": WEIGHT, "b": np.float32([0.3, 0])}
    )
    state = fm.setup(linear(), (x, y), optimizer=optax.sgd, lr=0.1)
    radii = [
        fm.certify(smoothed(each, samples=300), (x, y), fm.L2Ball(0.1)).radius
        for each in (linear(), state, module, functions)
    ]
    for radius in radii[1:]:
        np.testing.assert_array_equal(radius, radii[0])


def test_the_confidence_bound_is_that_of_clopper_and_pearson():
    for k in (0, 1, 57, 99, 100):
        exact = binomtest(k, 100, alternative="greater").proportion_ci(1 - 0.001, "exact").low
        np.testing.assert_allclose(lower_confidence_bound(np.array([k]), 100, 0.001), [exact], rtol=1e-9)


# Training


def worst_case(model, x, y, eps):
    """The cross-entropy of the worst logits by hand: bounds of the two layers, and differences in the last one."""
    w1, b1, w2, b2 = model[0].weight, model[0].bias, model[2].weight, model[2].bias
    lower, upper = jnp.clip(x - eps, 0, 1), jnp.clip(x + eps, 0, 1)
    centre, radius = (lower + upper) / 2 @ w1 + b1[None], (upper - lower) / 2 @ jnp.abs(w1)
    lower, upper = jax.nn.relu(centre - radius), jax.nn.relu(centre + radius)
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    difference = w2[:, None, :] - w2.T[y].T[:, :, None]  # (features, n, classes)
    logits = (
        jnp.einsum("nf,fnc->nc", centre, difference)
        + jnp.einsum("nf,fnc->nc", radius, jnp.abs(difference))
        + b2[None]
        - b2[y][:, None]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
@jax.value_and_grad
def loss_by_hand(model, share):
    x, y = (v[:32] for v in digits()[0])
    clean = optax.softmax_cross_entropy_with_integer_labels(fm.forward(model, x), y).mean()
    return (1 - 0.6 * share) * clean + 0.6 * share * worst_case(model, x, y, share * 0.1)


@jax.jit
@jax.value_and_grad
def loss_by_library(model, step):
    ibp = fm.IBP(fm.Classifier(model), REGION, clean_weight=0.4, warmup=10, ramp=20)
    return fm.loss(ibp, tuple(v[:32] for v in digits()[0]), fm.Train(jax.random.key(0), step))


@pytest.mark.parametrize("step, share", [(0, 0.0), (10, 0.0), (15, 0.25), (30, 1.0), (99, 1.0)])
def test_loss_and_gradient_equal_those_by_hand_at_every_step_of_the_schedule(step, share):
    model = fm.init(MLP(64, 8, 10), jax.random.key(0))
    expected, found = loss_by_hand(model, share), loss_by_library(model, np.int32(step))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_without_a_ramp_the_whole_region_counts_from_the_first_step():
    ibp = fm.bind(fm.IBP(linear(), REGION), fm.Train(jax.random.key(0), 0))
    assert ibp.progress == 1


def test_training_certifies_more_than_plain_training():
    region, test = fm.LinfBall(0.05) & fm.Box(0, 1), digits()[1]
    plain, _ = fm.fit(small(), digits()[0], optimizer=optax.adam, lr=3e-3, epochs=10, batch_size=64, progress=False)
    assert (
        fm.certify(ibp_state(), test, region).certified_accuracy > fm.certify(plain, test, region).certified_accuracy + 0.3
    )


def test_evaluation_and_logs_are_those_of_the_system():
    state, test = ibp_state(), digits()[1]
    assert fm.evaluate(state, test).keys() == {"loss", "accuracy"}
    _, logs = fm.train_step(state, tuple(v[:64] for v in digits()[0]))
    assert {"loss/clean", "loss/worst"} <= logs.keys()


def test_batch_norm_is_bounded_with_running_statistics_and_its_statistics_move():
    x, y = (v[:64] for v in digits()[0])
    net = Chain(Dense(64, 4), fm.models.BatchNorm(4), jax.nn.relu, fm.models.Dropout(0.2), Dense(4, 10))
    state = fm.setup(fm.IBP(fm.Classifier(net), REGION), (x, y), optimizer=optax.sgd, lr=0.1)
    after, _ = fm.train_step(state, (x, y))
    mean = np.asarray(after.system.system.model[1].mean.value)
    assert mean.shape == (4,) and np.abs(mean).max() > 0


class Head(fm.Model):
    """A user's model around library layers, with tighter margins by one method."""

    body: Chain
    last: Dense


@dispatch
def forward(net: Head, x):
    return fm.forward(net.last, fm.forward(net.body, x))


@dispatch
def margin_bounds(net: Head, x, labels):
    return margin_bounds(net.last, fm.forward(net.body, x), labels)


def test_a_users_model_of_layers_needs_no_method_and_may_give_its_margins():
    model, bounds = fm.init(small().model, jax.random.key(0)), jax.jit(margin_bounds)
    net = Head(Chain(model[0], model[1]), model[2])
    x, y = digits()[1][0][:4], jnp.asarray(digits()[1][1][:4])
    box = interval_of(REGION, x)
    np.testing.assert_allclose(bounds(net, box, y), bounds(model, box, y), rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(fm.forward, net, box).shape == (4, 10)


def test_predict_and_evaluate_of_a_smoothed_model_are_those_of_its_certificate():
    (x, y), small = examples(), smoothed(samples=500)
    found = fm.certify(small, (x, y), fm.L2Ball(0.1))
    np.testing.assert_array_equal(fm.predict(small, x), found.predicted)
    assert fm.evaluate(smoothed(samples=500, draws=64), (x, y), batch_size=7) == dict(
        accuracy=found.correct.mean(), abstained=(found.predicted == -1).mean()
    )
    weight = np.where(y == 1, 3.0, 1.0).astype(np.float32)
    assert fm.evaluate(small, (x, y, weight))["accuracy"] == pytest.approx(np.average(found.correct, weights=weight))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda one, x, y: fm.evaluate(one, x), "evaluate needs labels"),
        (lambda one, x, y: fm.evaluate(one, (x, y), attack=fm.FGSM(fm.LinfBall(0.1))), "fm.certify"),
        (lambda one, x, y: fm.predict(one, x, devices=fm.Replicated(fm.mesh())), "devices"),
    ],
)
def test_what_a_smoothed_model_cannot_do_is_an_error(call, named):
    with pytest.raises(ValueError, match=named):
        call(smoothed(), *examples())
