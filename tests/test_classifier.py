"""Classifier and Regressor: their verbs, and what they say of systems and data that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch

KEY = jax.random.key(0)


class Drop(fm.Model):
    """A layer that is wrong in training, to tell the modes apart."""

    layer: Linear


@dispatch
def forward(drop: Drop, x):
    return drop.layer(x)


@dispatch
def forward(drop: Drop, x, mode: fm.Train):
    return 0 * drop.layer(x)


class Picky(fm.Model):
    """A layer with an error of its own."""


@dispatch
def forward(picky: Picky, x):
    if x.shape[1] != 7:
        raise ValueError(f"Picky takes 7 numbers, and {x.shape[1]} came.")
    return x


class Batchwise(fm.Objective):
    """A term that couples examples."""


@dispatch
def loss(term: Batchwise, prediction):
    return jnp.var(prediction.outputs)


class TwoInputs(fm.Batch):
    left: jax.Array
    y: jax.Array


@pytest.fixture(scope="module")
def raw():
    return data()


@pytest.fixture(scope="module")
def model():
    return fm.init(Linear(4, 3), KEY)


@pytest.fixture(scope="module")
def linear():
    x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    return x, (x @ np.arange(8, dtype=np.float32).reshape(4, 2)) + 1


def test_losses_are_one_entry_per_term(model, raw):
    system = fm.Classifier(model, fm.CrossEntropy(smoothing=0.1) + 1e-2 * fm.L2())
    found = fm.losses(system, raw)
    assert list(found) == ["cross_entropy", "l2"]
    targets = optax.smooth_labels(np.eye(3, dtype=np.float32)[raw[1]], 0.1)
    np.testing.assert_allclose(found["cross_entropy"], optax.softmax_cross_entropy(model(raw[0]), targets), rtol=1e-5)
    np.testing.assert_allclose(found["l2"], 0.5e-2 * (model.weight**2).sum(), rtol=1e-6)
    total = fm.loss(system, fm.Labeled(*raw))
    np.testing.assert_allclose(total, found["cross_entropy"].mean() + found["l2"], rtol=1e-6)


def test_the_loss_is_the_mean_by_weight(model, raw):
    weight = np.arange(50, dtype=np.float32)
    found = fm.loss(fm.Classifier(model), fm.Labeled(*raw, weight=weight))
    values = np.asarray(optax.softmax_cross_entropy_with_integer_labels(model(raw[0]), raw[1]))
    np.testing.assert_allclose(found, np.average(values, weights=weight), rtol=1e-5)


def test_forward_calls_the_model(model, raw):
    system = fm.Classifier(model)
    np.testing.assert_array_equal(system(raw[0]), model(raw[0]))
    np.testing.assert_array_equal(fm.forward(system, raw[0]), model(raw[0]))


def test_the_mode_reaches_the_model(model, raw):
    system, batch = fm.Classifier(Drop(model)), fm.Labeled(*raw)
    np.testing.assert_allclose(fm.loss(system, batch, fm.Train(KEY)), np.log(3), rtol=1e-6)
    assert abs(float(fm.loss(system, batch)) - np.log(3)) > 1e-3
    assert float(fm.metrics(system, batch, fm.Train(KEY))["accuracy"].compute()) == 0


def test_metrics_are_named(model, raw):
    class Share(fm.Metric):
        of: int

    @dispatch
    def metrics(metric: Share, prediction):
        return fm.Mean(prediction.outputs.argmax(1) == metric.of, prediction.batch.weight)

    system = fm.Classifier(model, metrics=(fm.Accuracy(), Share(0), Share(1), Share(2).named("last")))
    found = {name: float(figure.compute()) for name, figure in fm.metrics(system, raw).items()}
    assert list(found) == ["accuracy", "share", "share_2", "last"]
    assert found["share"] + found["share_2"] + found["last"] == pytest.approx(1)
    assert fm.metrics(fm.Classifier(model, metrics=()), raw) == {}
    assert list(fm.metrics(fm.Classifier(model, metrics=Share(0)), raw)) == ["share"]


def test_defaults():
    classifier, regressor = fm.Classifier(Linear(1, 1)), fm.Regressor(Linear(1, 1))
    assert repr((classifier.objective, classifier.metrics)) == "(CrossEntropy(), None)"
    assert repr((regressor.objective, regressor.metrics)) == "(MSE(), (MeanAbsoluteError(),))"
    with pytest.raises(TypeError):
        fm.Classifier(Linear(1, 1), fm.CrossEntropy(), (fm.Accuracy(),))


def test_training_a_classifier(raw):
    x, _ = raw
    y = x.argmax(1) % 3
    objective = fm.CrossEntropy(smoothing=0.01) + 1e-4 * fm.L2()
    state, history = fm.fit(
        fm.Classifier(Linear(4, 3), objective),
        (x, y),
        optimizer=optax.adam,
        lr=0.1,
        epochs=20,
        batch_size=20,
        progress=False,
    )
    assert history["accuracy"][-1] > 0.8 > history["accuracy"][0]
    assert {"loss", "loss/cross_entropy", "loss/l2", "accuracy", "lr"} <= set(history)
    figures = fm.evaluate(state, (x, y))
    assert figures["accuracy"] == pytest.approx(float((state.system(x).argmax(1) == y).mean()))
    assert figures["loss"] == pytest.approx(figures["loss/cross_entropy"] + figures["loss/l2"], rel=1e-6)
    assert repr(state.system.objective) == repr(objective)


def test_training_a_regressor(linear):
    x, y = linear
    state, history = fm.fit(
        fm.Regressor(Linear(4, 2)), linear, optimizer=optax.adam, lr=0.3, epochs=60, batch_size=25, progress=False
    )
    assert history["mean_absolute_error"][-1] < 0.2 < history["mean_absolute_error"][0]
    figures = fm.evaluate(state, linear, batch_size=16)
    errors = np.asarray(state.system(x)) - y
    assert figures["mean_absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert figures["loss"] == pytest.approx((errors**2).mean(), rel=1e-4)


def test_the_gradient_is_that_of_the_formula(model, raw):
    x, y = raw

    def by_hand(weight):
        values = optax.softmax_cross_entropy_with_integer_labels(x @ weight + model.bias[None], y)
        return values.mean() + 0.05 * (weight**2).sum()

    def ours(weight):
        system = fm.Classifier(fm.replace(model, weight=weight), fm.CrossEntropy() + 0.1 * fm.L2())
        return fm.loss(system, fm.Labeled(x, y))

    slopes = jax.jit(lambda weight: [jax.grad(loss)(weight) for loss in (ours, by_hand)])(model.weight)
    np.testing.assert_allclose(*slopes, atol=1e-6)


def test_a_classifier_is_per_example_if_its_terms_and_metrics_are(model):
    class Own(fm.Metric): ...

    assert fm.Classifier(model, 0.1 * fm.CrossEntropy() + fm.L2()).per_example
    assert fm.Regressor(model).per_example
    assert not fm.Classifier(model, fm.CrossEntropy() + 0.1 * Batchwise()).per_example
    assert not fm.Classifier(model, metrics=(fm.Accuracy(), Own())).per_example


def test_an_evaluation_pads_only_systems_that_are_per_example(model, raw):
    """A term over the outputs of a batch would see the padding, whatever its weight."""
    found = fm.evaluate(fm.Classifier(model, Batchwise(), metrics=()), raw, batch_size=32)
    parts = [float(np.var(model(part))) for part in (raw[0][:32], raw[0][32:])]
    assert found["loss"] == pytest.approx(np.average(parts, weights=[32, 18]), rel=1e-4)


def test_a_classifier_can_be_a_part(model, raw):
    class Both(fm.System):
        one: fm.Classifier
        two: fm.Classifier

    both = Both(fm.Classifier(model), fm.Classifier(jax.tree.map(lambda v: 2 * v, model), fm.CrossEntropy() + fm.L2()))
    found = fm.losses(both, raw)
    assert {name: list(entry) for name, entry in found.items()} == {"one": ["cross_entropy"], "two": ["cross_entropy", "l2"]}
    assert list(fm.metrics(both, raw)) == ["one/accuracy", "two/accuracy"]


# Bad input


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (
            fm.Classifier(Picky(), fm.CrossEntropy),
            r"Classifier.objective must be an Objective, got the class CrossEntropy; write CrossEntropy\(",
        ),
        (
            fm.Classifier(Picky(), optax.softmax_cross_entropy),
            r"Classifier.objective .* got softmax_cross_entropy; write fm.CrossEntropy\(\)",
        ),
        (
            fm.Regressor(Picky(), metrics=("mae",)),
            r"Regressor.metrics must be a Metric or .* got \('mae',\); write fm.Accuracy\(\)",
        ),
        (
            fm.Classifier(Picky(), augment=(len,)),
            r"Classifier.augment must be .* got \(len,\); write fm.augmentations.Noise\(0.1\)",
        ),
    ],
)
def test_fields_of_the_wrong_kind(system, message):
    with pytest.raises(TypeError, match=message):
        fm.validate(system)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x, y + 1), ValueError, "CrossEntropy, y must be labels from 0 to 2.*labels from 1 to 3"),
        (
            lambda x, y: (x, y.astype(np.float32)),
            TypeError,
            r"CrossEntropy, y must be integer labels .* got float32",
        ),
        (
            lambda x, y: (x, y[:, None]),
            ValueError,
            r"CrossEntropy, y must be integer labels of shape \(50,\).*got int32 of shape \(50, 1\)",
        ),
        (lambda x, y: x, ValueError, "CrossEntropy needs a batch with targets, got an Unlabeled without y"),
        (
            lambda x, y: TwoInputs(x, y),
            TypeError,
            r"needs batch.x, and TwoInputs has no x. Write a method `model_inputs",
        ),
    ],
)
def test_invalid_data(model, raw, change, error, message):
    system = fm.Classifier(model)
    with pytest.raises(error, match=message):
        fm.validate(system, fm.as_batch(system, change(*raw)))
    with pytest.raises(error, match=message):
        fm.setup(system, change(*raw), optimizer=optax.sgd(0.1))
    if "labels from" not in message:  # which the step itself cannot see
        with pytest.raises(error, match=message):
            fm.losses(system, change(*raw))


def test_regression_targets_are_not_broadcast(raw):
    x, _ = raw
    with pytest.raises(ValueError, match=r"MSE, y must have the shape of the model's outputs, \(50, 1\), got \(50,\)"):
        fm.setup(fm.Regressor(Linear(4, 1)), (x, x[:, 0]), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("outputs", "objective", "remedy"),
    [
        (1, fm.CrossEntropy(), r"the objective is fm\.BinaryCrossEntropy"),
        (2, fm.BinaryCrossEntropy(), r"is fm\.CrossEntropy"),
    ],
)
def test_binary_labels_with_the_other_objective(raw, outputs, objective, remedy):
    x, y = raw
    with pytest.raises(ValueError, match=remedy):
        fm.setup(fm.Classifier(Linear(4, outputs), objective), (x, y % 2), optimizer=optax.sgd(0.1))


def test_a_wrong_input_size_raises_the_layers_error(raw):
    with pytest.raises(ValueError, match="Picky takes 7 numbers, and 4 came"):
        fm.validate(fm.Classifier(Picky()), fm.Labeled(*raw))


def test_validation_traces_one_example_only(raw):
    seen = []

    class Shy(fm.Model): ...

    @dispatch
    def forward(shy: Shy, x):
        seen.append((x.shape, isinstance(x, jax.core.Tracer)))
        return x

    fm.validate(fm.Classifier(Shy()), fm.Labeled(*raw))
    assert seen == [((1, 4), True)]


def test_a_model_that_mixes_examples(raw):
    class Pooled(fm.Model): ...

    @dispatch
    def forward(pooled: Pooled, x):
        return x.mean()

    with pytest.raises(ValueError, match=r"outputs must have shape \(n, classes\), got \(\)"):
        fm.validate(fm.Classifier(Pooled()), fm.Labeled(*raw))
