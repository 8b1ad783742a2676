"""Averages of weights, teachers, and labelled and unlabelled batches in one run: against the same by hand; attacks in and out."""

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, Chain, Dense, Dropout

PGD = fm.PGD(fm.LinfBall(0.1), step_size=0.05, steps=2, start=fm.attacks.Clean())
FGSM = fm.FGSM(fm.LinfBall(0.1))
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def labeled():
    return data(12)


@pytest.fixture(scope="module")
def unlabeled():
    return np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)


def classifier(**options):
    return fm.Classifier(Linear(4, 3), **options)


def arrays(tree):
    return [np.asarray(v) for v in jax.tree.leaves(tree)]


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def entropy(z, y):
    return -np.log(softmax(z)[np.arange(len(y)), y]).mean()


def linear(layer, x):
    return np.asarray(x) @ np.asarray(layer.weight) + np.asarray(layer.bias)


# EMA


@pytest.fixture(scope="module")
def averaged(labeled):
    """Some states of a run with batch normalization and dropout."""
    net = Chain(Dense(4, 5), BatchNorm(5), jax.nn.relu, Dropout(0.2), Dense(5, 3))
    states = [fm.setup(fm.EMA(fm.Classifier(net), 0.8), labeled, optimizer=optax.adam, lr=0.1, batch_size=12)]
    for _ in range(3):
        states.append(fm.train_step(states[-1], labeled)[0])
    return states


def test_the_average_is_the_recursion_of_statistics_too(averaged):
    expected = arrays(averaged[0].system.component)
    for state in averaged:
        new = arrays(state.system.component)
        if state is not averaged[0]:
            expected = [0.8 * old + 0.2 * v for old, v in zip(expected, new)]
        roles = [leaf.role for leaf in fm.leaves(state.system.component)]
        for role, ours, theirs, v in zip(roles, arrays(state.system.average.part), expected, new):
            np.testing.assert_allclose(ours, theirs if role in ("parameter", "buffer") else v, rtol=0, atol=1e-6)
    assert roles.count("buffer") == 2 and roles.count("parameter") == 6


def test_the_average_is_state_and_nothing_else(averaged, labeled):
    state = averaged[-1]
    roles = {leaf.path: leaf.role for leaf in fm.leaves(state.system) if leaf.path.startswith("average")}
    assert set(roles.values()) == {"frozen", "hyperparameter"}
    trained = fm.count_parameters(state.system.component)
    assert fm.count_parameters(state.system) == trained
    moments = sum(v.size for v in arrays(state.optimizer_state) if v.ndim)
    assert moments == 2 * trained  # Adam's two, of the component alone
    _, slopes, moved, _ = jax.jit(fm.differentiate)(state.system, fm.Labeled(*labeled), fm.Train(jax.random.key(0)))
    assert not jax.tree.leaves(slopes.average)
    assert all((a == b).all() for a, b in zip(arrays(moved.average), arrays(state.system.average)))


def test_an_evaluation_uses_the_average(averaged, labeled):
    state = averaged[-1]
    of = lambda system: fm.evaluate(system, labeled)
    ours, average, component = of(state), of(state.system.average.part), of(state.system.component)
    assert ours == pytest.approx(average) and ours["loss"] != pytest.approx(component["loss"])
    without = fm.replace(state.system, evaluate_average=False)
    assert of(without) == pytest.approx(component)


def test_averages_of_parts(labeled):
    """Of a model in a classifier; and attacks in training are on what is trained, in evaluation on the average."""
    system = fm.Adversarial(fm.Classifier(fm.EMA(Linear(4, 3), 0.5)), PGD)
    state = fm.setup(system, labeled, optimizer=SGD, batch_size=12)
    for _ in range(2):
        before, (state, logs) = state, fm.train_step(state, labeled)
    x, y = labeled
    model = before.system.system.model
    of = lambda layer: fm.perturb(PGD, fm.Classifier(layer), fm.Labeled(x, y), jax.random.key(0), best=False).x
    moved = of(model.component)
    assert (np.asarray(moved) != np.asarray(of(model.average.part))).any()
    np.testing.assert_allclose(logs["loss"], entropy(linear(model.component, moved), y), rtol=1e-5)
    model = state.system.system.model
    figures = fm.evaluate(state, labeled, attack=PGD)
    moved = fm.perturb(PGD, fm.Classifier(model.average.part), fm.Labeled(x, y), jax.random.key(0)).x
    np.testing.assert_allclose(figures["robust/loss"], entropy(linear(model.average.part, moved), y), rtol=1e-5)


# Mean teacher


def brier(a, b):
    return ((softmax(a) - softmax(b)) ** 2).sum(1).mean()


def mean_teacher(system, weight=3.0):
    return fm.systems.MeanTeacher(fm.EMA(system, 0.5), weight * fm.objectives.Brier())


def started(system, labeled):
    """A state whose average is not the component any more."""
    state = fm.setup(system, labeled, optimizer=SGD, batch_size=12)
    return fm.train_step(state, labeled)[0]


def ema_of(system):
    while not isinstance(system, fm.EMA):
        system = system.system
    return system


@pytest.fixture(scope="module")
def plain(labeled):
    return started(mean_teacher(classifier()), labeled)


@pytest.mark.parametrize("kind", ["labeled", "unlabeled"])
def test_mean_teacher(kind, plain, labeled, unlabeled):
    raw, x = (labeled, labeled[0]) if kind == "labeled" else (unlabeled, unlabeled)
    state = plain
    for _ in range(3):  # the student's and the teacher's outputs differ enough for float32
        state = fm.train_step(state, labeled)[0]
    after, logs = fm.train_step(state, raw)
    ema = ema_of(state.system)
    student, teacher = (linear(part.model, x) for part in (ema.component, ema.average.part))
    consistency = 3 * brier(student, teacher)
    assert consistency > 1e-6
    own = entropy(student, labeled[1]) if kind == "labeled" else 0.0
    np.testing.assert_allclose(logs["loss"], own + consistency, rtol=1e-5)
    assert ("accuracy" in logs) == (kind == "labeled")

    def by_hand(weight, bias):
        z, target = x @ weight + bias[None], jax.nn.softmax(teacher)
        value = 3 * ((jax.nn.softmax(z) - target) ** 2).sum(1).mean()
        if kind == "labeled":
            value += optax.softmax_cross_entropy_with_integer_labels(z, labeled[1]).mean()
        return value

    layer = ema.component.model
    slopes = jax.jit(jax.grad(by_hand, (0, 1)))(layer.weight, layer.bias)
    new = ema_of(after.system).component.model
    np.testing.assert_allclose(new.weight, layer.weight - 0.1 * slopes[0], atol=1e-6)
    np.testing.assert_allclose(new.bias, layer.bias - 0.1 * slopes[1], atol=1e-6)
    expected = 0.5 * np.asarray(ema.average.part.model.weight) + 0.5 * np.asarray(new.weight)
    np.testing.assert_allclose(ema_of(after.system).average.part.model.weight, expected, atol=1e-6)


def test_the_teacher_has_its_own_augmentation(labeled):
    system = mean_teacher(classifier(augment=fm.augmentations.Noise(0.3)))
    state = started(system, labeled)
    mode = fm.Train(jax.random.key(5))
    batch = fm.augment(state.system, fm.Labeled(*labeled), mode)
    student, teacher = batch.parts["student"].x, batch.parts["teacher"].x
    assert (student != teacher).all() and np.abs(student - labeled[0]).max() < 2
    entries = fm.losses(state.system, batch, mode)
    ema = state.system.system
    expected = 3 * brier(linear(ema.component.model, student), linear(ema.average.part.model, teacher))
    np.testing.assert_allclose(entries["consistency"].mean(), expected, rtol=1e-4)
    np.testing.assert_allclose(entries["labelled"], entropy(linear(ema.component.model, student), labeled[1]), rtol=1e-5)


@pytest.mark.parametrize("outside", [True, False])
def test_mean_teacher_and_attacks(outside, labeled):
    """Outside, the student's view is attacked, by what trains it; inside, its loss is robust; the teacher sees clean inputs."""
    system = fm.Adversarial(mean_teacher(classifier()), PGD) if outside else mean_teacher(fm.Adversarial(classifier(), PGD))
    state = started(system, labeled)
    ema = ema_of(state.system)
    student, teacher = ((p if outside else p.system).model for p in (ema.component, ema.average.part))
    x, y = labeled
    moved = fm.perturb(PGD, fm.Classifier(student), fm.Labeled(x, y), None, best=False).x
    _, logs = fm.train_step(state, labeled)
    seen = moved if outside else x  # an attack outside is on all that a training step sees
    expected = entropy(linear(student, moved), y) + 3 * brier(linear(student, moved), linear(teacher, seen))
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    assert "robust/accuracy" in logs


# Distillation


@pytest.fixture(scope="module")
def distilled(labeled):
    teacher = fm.init(Linear(4, 3), jax.random.key(7))
    system = fm.Distillation(fm.Frozen(teacher), classifier(), temperature=3.0, weight=0.7)
    return fm.setup(system, labeled, optimizer=optax.adam, lr=0.1, batch_size=12)


def soft_targets(system, x, t=3.0):
    p, q = (softmax(linear(part, x) / t) for part in (system.teacher.part, system.student.model))
    return t**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()


def test_distillation(distilled, labeled, unlabeled):
    after, logs = fm.train_step(distilled, labeled)
    hard, soft = (
        entropy(linear(distilled.system.student.model, labeled[0]), labeled[1]),
        soft_targets(distilled.system, labeled[0]),
    )
    np.testing.assert_allclose(logs["loss"], 0.3 * hard + 0.7 * soft, rtol=1e-5)
    np.testing.assert_allclose(logs["loss/teacher"], 0.7 * soft, rtol=1e-4)
    np.testing.assert_array_equal(after.system.teacher.part.weight, distilled.system.teacher.part.weight)
    assert fm.count_parameters(distilled.system) == 15
    assert sum(v.size for v in arrays(distilled.optimizer_state) if v.ndim) == 30
    value = fm.loss(distilled.system, fm.Unlabeled(unlabeled))
    np.testing.assert_allclose(value, 0.7 * soft_targets(distilled.system, unlabeled), rtol=1e-5)
    figures = fm.evaluate(distilled, labeled, batch_size=5)
    np.testing.assert_allclose(figures["loss"], 0.3 * hard + 0.7 * soft, rtol=1e-5)
    np.testing.assert_array_equal(fm.predict(distilled, unlabeled), distilled.system.student(unlabeled))


# Labelled and unlabelled examples in one run


def test_batches_of_both_types_in_one_run(plain, labeled, unlabeled):
    """Each type has its program, and the state goes through both."""
    state = plain
    for _ in range(2):
        state, first = fm.train_step(state, labeled)
        state, second = fm.train_step(state, unlabeled)
    assert int(state.step) == 5
    assert {"loss/labelled", "loss/consistency"} <= set(first) and "loss/labelled" not in second


class OnlyLabeled(fm.Adversarial):
    """An attack that needs labels leaves those without alone."""


@dispatch
def augment(adv: OnlyLabeled, batch: fm.Unlabeled, mode):
    return fm.augment(adv.system, batch, mode.at("system"))


def mixed(labeled, unlabeled):
    return fm.data.Mixed(fm.Labeled(labeled[0][:5], labeled[1][:5]), fm.Unlabeled(unlabeled))


@pytest.mark.parametrize(("kind", "attack"), [("VAT", "outside"), ("MeanTeacher", "inside"), ("MeanTeacher", "outside")])
def test_labelled_and_unlabelled_examples_in_one_step(kind, attack, labeled, unlabeled):
    inner = OnlyLabeled(classifier(), FGSM) if attack == "inside" else classifier()
    system = fm.defences.VAT(inner, eps=0.3) if kind == "VAT" else mean_teacher(inner)
    semi = fm.systems.SemiSupervised(system, weight=0.5)
    whole = fm.Adversarial(semi, FGSM) if attack == "outside" else semi
    state = fm.setup(whole, labeled, optimizer=SGD)
    batch = mixed(labeled, unlabeled)

    @jax.jit
    def step(system, mode):
        """The loss of what a step sees, and the losses of its two parts."""
        seen = fm.augment(system, batch, mode)
        bound = fm.bind(system, mode)
        part, inside = (bound.system, seen.batch) if attack == "outside" else (bound, seen)
        each = [fm.loss(part.system, some) for some in (inside.labeled, inside.unlabeled)]
        return fm.loss(bound, seen), each, inside

    value, each, inside = step(state.system, fm.Train(jax.random.key(2)))
    np.testing.assert_allclose(value, each[0] + 0.5 * each[1], rtol=1e-5)
    if attack == "outside":
        assert 0 < np.abs(inside.labeled.x - labeled[0][:5]).max() <= 0.1001
        assert np.abs(inside.unlabeled.x - unlabeled).max() <= 0.1001
    after, logs = fm.train_step(state, batch)
    assert np.isfinite(logs["loss"]) and "robust/accuracy" in logs
    assert any((a != b).any() for a, b in zip(arrays(after.system), arrays(state.system)))


def test_labelled_and_unlabelled_examples_as_data(labeled, unlabeled):
    """An epoch goes once through the larger, and again and again through the smaller; in the midst of it as from its start."""
    data = fm.data.Mixed(labeled, np.concatenate([unlabeled, unlabeled + 1, unlabeled + 2]))
    seen = [*fm.batches(data, batch_size=4, seed=0, epochs=1)]
    large, small = len(data.unlabeled), len(labeled[0])
    assert len(seen) == -(-large // 4) and [len(b.unlabeled) for b in seen] == [len(b.labeled[0]) for b in seen]
    whole = np.concatenate([b.unlabeled for b in seen])
    assert sorted(map(tuple, whole)) == sorted(map(tuple, data.unlabeled)) and (whole != data.unlabeled).any()
    rows = np.concatenate([b.labeled[0] for b in seen])
    assert sorted(map(tuple, rows[:small])) == sorted(map(tuple, labeled[0])) == sorted(map(tuple, rows[small : 2 * small]))
    semi = fm.systems.SemiSupervised(mean_teacher(classifier(augment=fm.augmentations.Noise(0.1))))
    options = dict(batch_size=4, progress=False)
    once, history = fm.fit(semi, data, optimizer=SGD, epochs=1, **options)
    assert int(once.step) == len(seen) and np.isfinite(history["loss/unlabeled"]).all()
    assert not any("robust" in name for name in history)
    half, _ = fm.fit(semi, data, optimizer=SGD, steps=2, **options)
    again, _ = fm.fit(half, data, steps=len(seen) - 2, **options)
    for a, b in zip(arrays(once.system), arrays(again.system), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "accuracy" in fm.evaluate(once, labeled)
    for evaluated in (data, [data]):
        with pytest.raises(ValueError, match=r"cannot be evaluated exactly. Evaluate on pairs \(x, y\)"):
            fm.evaluate(once, evaluated)
    with pytest.raises(ValueError, match="cannot be evaluated exactly"):
        fm.fit(once, data, epochs=1, validation=data, progress=False)
    with pytest.raises(RuntimeError, match=r"Mixed.labeled must be arrays of equal length"):
        fm.fit(semi, fm.data.Mixed((labeled[0], labeled[1][:2]), unlabeled), optimizer=SGD, epochs=1, **options)


# What cannot be


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (
            lambda: fm.Distillation(classifier(), classifier()),
            r"Distillation\.teacher must be a Frozen.* write fm\.Frozen\(",
        ),
        (lambda: fm.Distillation(fm.Frozen(classifier()), fm.Frozen(classifier())), "student must be trained"),
        (
            lambda: fm.Distillation(fm.Frozen(fm.init(Linear(4, 5), jax.random.key(0))), classifier()),
            "same names and numbers of classes, got {'': 5} and {'': 3}",
        ),
        (
            lambda: fm.Distillation(fm.Frozen(classifier()), classifier()),
            r"teacher must be trained, but this Classifier has no array 'model.weight'; write fm.Frozen\(state",
        ),
        (lambda: fm.Distillation(fm.Frozen(Linear(4, 3)), classifier(), temperature=0.0), "temperature must be above 0"),
        (lambda: fm.Distillation(fm.Frozen(Linear(4, 3)), classifier(), weight=1.5), "weight must be between 0 and 1"),
        (lambda: fm.systems.MeanTeacher(classifier()), r"MeanTeacher\.system must be an EMA, .*fm\.EMA\(system"),
        (lambda: fm.EMA(classifier(), 1.5), "decay must be between 0 and 1"),
        (lambda: fm.EMA(classifier(), 0.5, classifier()), r"average must be a Frozen .*fm\.Frozen"),
        (lambda: fm.EMA(0.5), "component must be a Component"),
        (lambda: fm.systems.SemiSupervised(classifier(), weight=-1.0), "weight must be at least 0"),
        (lambda: fm.systems.SemiSupervised(3.0), "SemiSupervised.system"),
    ],
)
def test_bad_input(system, words, labeled):
    with pytest.raises((TypeError, ValueError), match=words):
        fm.setup(system(), labeled, optimizer=SGD)
    report = fm.check(system(), labeled, optimizer=SGD)
    assert not report.ok
