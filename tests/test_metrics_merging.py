"""Metrics against scikit-learn's on random data, however it is cut into batches, weighed and padded."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Linear

import fulmen as fm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import scipy.special
    import sklearn.calibration
    import sklearn.metrics as sk

CLASSES, SIZE = 4, 8
compiled = jax.jit(fm.metrics)


@st.composite
def cut_data(draw, numbers=False):
    """Outputs, targets, weights, and where the data is cut; some classes may be empty."""
    n = draw(st.integers(2, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = rng.choice(CLASSES, draw(st.integers(1, CLASSES)), replace=False)
    outputs = rng.normal(size=(n, CLASSES)).astype(np.float32)
    outputs[:, rng.integers(CLASSES)] -= draw(st.sampled_from([0, 10]))
    y = rng.normal(size=(n, CLASSES)).astype(np.float32) if numbers else rng.choice(some, n).astype(np.int32)
    weight = rng.integers(1, 4, n).astype(np.float32) if draw(st.booleans()) else None
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=4)))
    return outputs, y, weight, [0, *cuts, n]


def merged(metric, outputs, y, weight, places):
    """The figure from batches that are padded to one size with what must not count."""
    given = np.ones(len(y), np.float32) if weight is None else weight
    total = None
    for start, end in itertools.pairwise(places):
        for a in range(start, end, SIZE):
            b = min(a + SIZE, end)
            padding = [(0, SIZE - (b - a))]
            some = np.pad(outputs[a:b], padding + [(0, 0)] * (outputs.ndim - 1), constant_values=np.nan)
            targets = np.pad(y[a:b], padding + [(0, 0)] * (y.ndim - 1))
            batch = fm.Labeled(None, targets, weight=np.pad(given[a:b], padding))
            sums = jax.tree.map(lambda v: np.asarray(v, np.float64), compiled(metric, fm.Prediction(None, some, batch)))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total.compute()


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


RATES = {"precision": (fm.Precision, sk.precision_score), "recall": (fm.Recall, sk.recall_score), "f1": (fm.F1, sk.f1_score)}


@pytest.mark.parametrize("name", RATES)
@settings(max_examples=25, deadline=None)
@given(cut_data())
def test_precision_recall_and_f1(name, data):
    outputs, y, weight, _ = data
    metric, reference = RATES[name]
    predicted = outputs.argmax(1)
    for average in ("macro", "micro"):
        expected = quiet(reference, y, predicted, average=average, sample_weight=weight)
        np.testing.assert_allclose(merged(metric(average), *data), expected, rtol=1e-6, atol=1e-9)
    expected = quiet(reference, y, predicted, average=None, sample_weight=weight, labels=range(CLASSES), zero_division=0)
    absent = [c for c in range(CLASSES) if c not in y and c not in predicted]
    expected[absent] = np.nan
    np.testing.assert_allclose(merged(metric(None), *data), expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(cut_data())
def test_the_confusion_matrix(data):
    outputs, y, weight, _ = data
    expected = sk.confusion_matrix(y, outputs.argmax(1), labels=range(CLASSES), sample_weight=weight)
    np.testing.assert_array_equal(merged(fm.metric_types.ConfusionMatrix(CLASSES), *data), expected)


@settings(max_examples=25, deadline=None)
@given(cut_data(), st.integers(1, CLASSES - 1))
def test_top_k(data, k):
    outputs, y, weight, _ = data
    expected = sk.top_k_accuracy_score(y, outputs, k=k, labels=range(CLASSES), sample_weight=weight)
    np.testing.assert_allclose(merged(fm.metric_types.TopK(k), *data), expected, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(cut_data(), st.sampled_from([1, 5, 15]))
def test_calibration_error(data, bins):
    outputs, y, weight, _ = data
    weight = np.ones(len(y)) if weight is None else weight
    probabilities = scipy.special.softmax(outputs, 1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    # scikit-learn's curve takes no weights: an example of weight 2 is there twice.
    confidence, right = (np.repeat(v, weight.astype(int)) for v in (confidence, right))
    shares, means = sklearn.calibration.calibration_curve(right, confidence, n_bins=bins, pos_label=True)
    counts = np.histogram(-confidence, -np.linspace(0, 1, bins + 1)[::-1])[0][::-1]  # a bin has its upper edge
    expected = (counts[counts > 0] * np.abs(shares - means)).sum() / counts.sum()
    np.testing.assert_allclose(merged(fm.metric_types.CalibrationError(bins), *data), expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(cut_data())
def test_perplexity(data):
    outputs, y, weight, _ = data
    probabilities = scipy.special.softmax(outputs.astype(np.float64), 1)
    expected = np.exp(sk.log_loss(y, probabilities, labels=range(CLASSES), sample_weight=weight))
    np.testing.assert_allclose(merged(fm.metric_types.Perplexity(), *data), expected, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(cut_data(numbers=True), st.sampled_from([0.0, 3.0]))
def test_rmse_mae_and_r2(data, offset):
    outputs, y, weight, places = data
    y = y + np.float32(offset)
    data = outputs, y, weight, places
    expected = sk.mean_squared_error(y, outputs, sample_weight=weight) ** 0.5
    np.testing.assert_allclose(merged(fm.metric_types.RMSE(), *data), expected, rtol=1e-5)
    np.testing.assert_allclose(
        merged(fm.metric_types.MeanAbsoluteError(), *data),
        sk.mean_absolute_error(y, outputs, sample_weight=weight),
        rtol=1e-5,
    )
    each = sk.r2_score(y, outputs, sample_weight=weight, multioutput="raw_values")
    # What is small beside what it is the difference of loses digits.
    if (y.std(0) > 0.1).all():
        np.testing.assert_allclose(merged(fm.metric_types.R2(), *data), each.mean(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(merged(fm.metric_types.R2(center=offset), *data), each.mean(), rtol=1e-4, atol=1e-4)
    one = outputs[:, 0], y[:, 0], weight, places
    expected = sk.root_mean_squared_error(y[:, 0], outputs[:, 0], sample_weight=weight)
    np.testing.assert_allclose(merged(fm.metric_types.RMSE(), *one), expected, rtol=1e-5)


# What has no value, and what is hard


def predict(outputs, y, weight=None):
    return fm.Prediction(None, outputs, fm.Labeled(None, y, weight=weight))


def test_r2_of_equal_targets_is_nan():
    y = np.full(8, 0.1, np.float32)
    assert np.isnan(compiled(fm.metric_types.R2(), predict(y + 1, y)).compute())


def test_r2_far_from_zero():
    rng = np.random.default_rng(0)
    y = (1e6 + rng.normal(size=1000)).astype(np.float32)
    z = y + rng.normal(size=1000).astype(np.float32) / 2
    assert np.isnan(compiled(fm.metric_types.R2(), predict(z, y)).compute())
    found = compiled(fm.metric_types.R2(center=1e6), predict(z, y)).compute()
    assert float(found) == pytest.approx(sk.r2_score(y.astype(np.float64), z.astype(np.float64)), rel=1e-4)
    with pytest.raises(
        ValueError, match=r"R2.center must be .*, got 0; the mean is 1e\+06.* Write fm.metric_types.R2\(center=1e\+06\)"
    ):
        fm.validate(fm.metric_types.R2(), predict(z, y))
    fm.validate(fm.metric_types.R2(center=1e6), predict(z, y))
    fm.validate(fm.metric_types.R2(), predict(z, np.ones(1000, np.float32)))


METRICS = [
    (fm.metric_types.TopK(2), ()),
    (fm.Precision(), ()),
    (fm.Recall("micro"), ()),
    (fm.F1(None), (CLASSES,)),
    (fm.metric_types.ConfusionMatrix(), (CLASSES, CLASSES)),
    (fm.metric_types.CalibrationError(), ()),
    (fm.metric_types.Perplexity(), ()),
]


@pytest.mark.parametrize(("metric", "shape"), METRICS)
def test_metrics_of_no_examples_are_nan(metric, shape):
    found = compiled(metric, predict(np.zeros((SIZE, CLASSES), np.float32), np.zeros(SIZE, int), np.zeros(SIZE, np.float32)))
    host = jax.tree.map(np.asarray, found)
    with np.errstate(invalid="ignore"):
        values = found.compute(), host.compute()
    for value in values:  # on the device and on the host
        assert value.shape == shape
        assert (value == 0).all() if isinstance(metric, fm.metric_types.ConfusionMatrix) else np.isnan(value).all()


@pytest.mark.parametrize(("metric", "shape"), METRICS)
def test_the_class_of_probabilities_is_the_most_probable_one(metric, shape):
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(SIZE, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, SIZE)
    one_hot = np.eye(CLASSES, dtype=np.float32)[y]
    of_labels, of_probabilities = (fm.metrics(metric, predict(outputs, v)).compute() for v in (y.astype(np.uint8), one_hot))
    np.testing.assert_allclose(of_labels, of_probabilities, rtol=1e-6)


@pytest.mark.parametrize(
    ("rank", "right"), [([1, 2, 3, 0], True), ([2, 2, 1, 3], False), ([3, np.nan, 0, 1], False), ([5, 4, 0, 3], True)]
)
def test_ties_and_nan_count_against_the_top_2(rank, right):
    assert (
        float(fm.metrics(fm.metric_types.TopK(2), predict(np.array([rank], np.float32), np.array([1]))).compute()) == right
    )


def test_perplexity_weighs_all_tokens_equally():
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(3, 5, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, (3, 5)).astype(np.int32)
    weight = np.array([1, 0, 2], np.float32)
    found = fm.metrics(fm.metric_types.Perplexity(), predict(outputs, y, weight)).compute()
    flat = predict(outputs.reshape(15, CLASSES), y.reshape(15), np.repeat(weight, 5))
    assert float(found) == pytest.approx(float(fm.metrics(fm.metric_types.Perplexity(), flat).compute()), rel=1e-6)
    fm.validate(fm.metric_types.Perplexity(), predict(jax.ShapeDtypeStruct((3, 5, CLASSES), np.float32), y))
    with pytest.raises(ValueError, match=r"Perplexity.*y.* labels from 0 to 3"):
        fm.validate(fm.metric_types.Perplexity(), predict(jax.ShapeDtypeStruct((3, 5, CLASSES), np.float32), y + 1))


def test_an_overflowing_perplexity_is_infinite():
    found = jax.tree.map(
        np.asarray, fm.metrics(fm.metric_types.Perplexity(), predict(np.array([[0, 5000.0]], np.float32), np.array([0])))
    )
    assert np.isposinf(jax.tree.map(lambda v: v.astype(np.float64), found).compute())


# In a run


@functools.cache
def run():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, CLASSES, 50).astype(np.int32)
    metrics = (*(m for m, _ in METRICS), fm.F1(), fm.F1("micro").named("micro"))
    state = fm.setup(fm.Classifier(Linear(3, CLASSES), metrics=metrics), (x, y), optimizer=optax.sgd, lr=0.1)
    return state, (x, y)


def test_evaluation_of_metrics_that_are_arrays():
    state, (x, y) = run()
    found, whole = fm.evaluate(state, (x, y), batch_size=16), fm.evaluate(state, (x, y))
    predicted = fm.predict(state, x).argmax(1)
    names = {"top_2", "precision", "recall", "f1", "confusion_matrix", "calibration_error", "perplexity", "f1_2", "micro"}
    assert {*found} == {"loss", *names}
    for name in found:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)
    np.testing.assert_array_equal(found["confusion_matrix"], sk.confusion_matrix(y, predicted, labels=range(CLASSES)))
    np.testing.assert_allclose(found["f1"], sk.f1_score(y, predicted, average=None, labels=range(CLASSES)), rtol=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)
    assert isinstance(found["f1_2"], float)


def test_a_training_step_logs_them_too():
    state, (x, y) = run()
    _, logs = fm.train_step(state, (x, y))
    assert logs["confusion_matrix"].shape == (CLASSES, CLASSES) and float(logs["confusion_matrix"].sum()) == 50
    for name, value in fm.evaluate(state, (x, y)).items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5)


# Names and bad input


def test_names_and_prints():
    assert repr(fm.Precision()) == "Precision()" and repr(fm.F1(None)) == "F1(average=None)"
    assert repr(fm.metric_types.TopK(3)) == "TopK(k=3)" and fm.metric_types.TopK(3).default_name == "top_3"
    assert fm.metric_types.R2().default_name == "r2" and fm.metric_types.RMSE().default_name == "rmse"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (fm.metric_types.TopK(0), "TopK.k must be at least 1, got 0"),
        (fm.F1("weighted"), "F1.average must be 'macro' or 'micro' or 'binary' or None, got 'weighted'"),
        (fm.metric_types.CalibrationError(0), "CalibrationError.bins must be at least 1, got 0"),
    ],
)
def test_field_values_out_of_range(metric, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(metric)


@pytest.mark.parametrize(
    ("metric", "y", "message"),
    [
        (
            fm.metric_types.TopK(4),
            np.zeros(3, int),
            "TopK.k must be less than the number of classes, 4, got 4",
        ),
        (fm.metric_types.ConfusionMatrix(5), np.zeros(3, int), "ConfusionMatrix.classes must be 4.* got 5"),
        (fm.Precision(), np.full(3, 4), "Precision.*y.* labels from 0 to 3"),
        (
            fm.metric_types.CalibrationError(),
            np.zeros((3, 2), np.float32),
            r"CalibrationError, y must be .* got float32 of shape \(3, 2\)",
        ),
        (
            fm.metric_types.RMSE(),
            np.zeros(3),
            r"RMSE, y must have the shape of the model's outputs, \(3, 4\), got \(3,\)",
        ),
        (fm.metric_types.R2(), None, "R2 needs a batch with targets"),
    ],
)
def test_invalid_targets(metric, y, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(metric, predict(jax.ShapeDtypeStruct((3, 4), np.float32), y))


def test_half_precision():
    rng = np.random.default_rng(0)
    outputs = jnp.asarray(rng.normal(size=(SIZE, CLASSES)), jnp.bfloat16)
    for metric, y in [(m, np.zeros(SIZE, int)) for m, _ in METRICS] + [
        (fm.metric_types.R2(), outputs),
        (fm.metric_types.RMSE(), outputs),
    ]:
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(fm.metrics(metric, predict(outputs, y))))
