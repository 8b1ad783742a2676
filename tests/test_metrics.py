"""Metrics: values, weights, and figures that are the same however the data was cut."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fulmen as fm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sklearn.metrics

N, CLASSES = 40, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
NUMBERS = RNG.normal(size=(N, CLASSES)).astype(np.float32)
WEIGHT = RNG.integers(0, 3, N).astype(np.float32)


def predict(outputs=LOGITS, y=LABELS, weight=None):
    return fm.Prediction(None, outputs, fm.Labeled(None, y, weight=weight))


@functools.cache
def jitted():
    return jax.jit(fm.metrics)


def figure(metric, *prediction):
    return float(fm.metrics(metric, predict(*prediction)).compute())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_accuracy_is_the_share_of_right_classes(dtype):
    expected = sklearn.metrics.accuracy_score(LABELS, LOGITS.argmax(1))
    assert figure(fm.Accuracy(), LOGITS, LABELS.astype(dtype)) == pytest.approx(expected)


def test_accuracy_of_probabilities_is_by_the_most_probable_class():
    y = 0.6 * np.eye(CLASSES, dtype=np.float32)[LABELS] + 0.1
    assert figure(fm.Accuracy(), LOGITS, y) == figure(fm.Accuracy())


def test_accuracy_by_weight():
    expected = sklearn.metrics.accuracy_score(LABELS, LOGITS.argmax(1), sample_weight=WEIGHT)
    assert figure(fm.Accuracy(), LOGITS, LABELS, WEIGHT) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ([1, 2, 0], True),
        ([1, 1, 0], False),
        ([0, 0, 0], False),
        ([0, np.nan, 0], False),
        ([np.nan, 5, 0], False),
        ([np.nan] * 3, False),
        ([0, np.inf, 0], True),
        ([-np.inf, -5, -np.inf], True),
    ],
)
def test_ties_and_nan_are_wrong(row, right):
    assert figure(fm.Accuracy(), np.array([row], np.float32), np.array([1])) == float(right)


def test_accuracy_in_half_precision():
    assert 0 <= figure(fm.Accuracy(), jnp.asarray(LOGITS, jnp.bfloat16), LABELS) <= 1


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_mean_absolute_error(weight):
    expected = sklearn.metrics.mean_absolute_error(NUMBERS, LOGITS, sample_weight=weight)
    assert figure(fm.metric_types.MeanAbsoluteError(), LOGITS, NUMBERS, weight) == pytest.approx(expected, rel=1e-5)
    assert figure(fm.metric_types.MeanAbsoluteError(), LOGITS[:, 0], NUMBERS[:, 0]) == pytest.approx(
        np.abs(LOGITS - NUMBERS)[:, 0].mean(), rel=1e-5
    )


@pytest.mark.parametrize(("metric", "y"), [(fm.Accuracy(), LABELS), (fm.metric_types.MeanAbsoluteError(), NUMBERS)])
@pytest.mark.parametrize("cuts", [(20,), (1, 21), (19, 39)])
def test_metrics_do_not_depend_on_the_batch_size(metric, y, cuts):
    places = [0, *cuts, N]
    parts = [jitted()(metric, predict(LOGITS[a:b], y[a:b], WEIGHT[a:b])) for a, b in itertools.pairwise(places)]
    merged = jax.tree.map(lambda *sums: np.sum(np.asarray(sums, np.float64)), *parts)
    assert float(merged.compute()) == pytest.approx(figure(metric, LOGITS, y, WEIGHT), rel=1e-5)


@pytest.mark.parametrize(("metric", "y"), [(fm.Accuracy(), LABELS), (fm.metric_types.MeanAbsoluteError(), NUMBERS)])
def test_padding_has_no_effect(metric, y):
    padded = np.concatenate([LOGITS, np.full((3, CLASSES), np.nan, np.float32)])
    targets = np.concatenate([y, y[:3]])
    weight = np.concatenate([np.ones(N), np.zeros(3)]).astype(np.float32)
    found = jitted()(metric, predict(padded, targets, weight))
    assert float(found.compute()) == pytest.approx(figure(metric, LOGITS, y), rel=1e-6)
    assert float(found.weight) == N


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16, np.float32])
def test_a_mean_takes_values_of_any_type(dtype):
    mean = fm.Mean(jnp.asarray([1, 0, 1, 0], dtype))
    assert mean.total.dtype == np.float32 and float(mean.compute()) == 0.5


def test_metrics_have_names():
    assert repr(fm.Accuracy()) == "Accuracy()"
    assert repr(fm.metric_types.MeanAbsoluteError().named("mae")) == "MeanAbsoluteError().named('mae')"


@pytest.mark.parametrize(
    ("metric", "y", "error", "message"),
    [
        (fm.Accuracy(), np.ones(N, np.float32), TypeError, "Accuracy, y must be integer labels.* got float32"),
        (fm.Accuracy(), LABELS + 1, ValueError, r"Accuracy, y must be labels from 0 to 3.*labels from 1 to 4"),
        (fm.Accuracy(), None, ValueError, "Accuracy needs a batch with targets, got a Labeled without y"),
        (
            fm.metric_types.MeanAbsoluteError(),
            LABELS,
            ValueError,
            r"MeanAbsoluteError, y must have the shape .*\(40, 4\), got \(40,\)",
        ),
    ],
)
def test_invalid_targets(metric, y, error, message):
    with pytest.raises(error, match=message):
        fm.validate(metric, predict(jax.ShapeDtypeStruct((N, CLASSES), np.float32), y))
    if "labels from" not in message:  # which needs all the data
        with pytest.raises(error, match=message):
            fm.metrics(metric, predict(LOGITS, y))


def test_a_metric_without_a_method_says_what_to_write():
    class Empty(fm.Metric): ...

    with pytest.raises(TypeError, match=r"def metrics\(metric: Empty, prediction\): return fm.Mean"):
        fm.metrics(Empty(), predict())


@pytest.mark.parametrize(
    "metric", [fm.Precision("micro"), fm.Recall("micro"), fm.F1("micro"), fm.metric_types.ConfusionMatrix()], ids=str
)
def test_an_example_with_a_nan_is_predicted_to_be_of_no_class(metric):
    outputs = jnp.eye(3)[jnp.array([0, 0, 1, 2])].at[0].set(jnp.nan).at[3, 1].set(jnp.nan)
    found = fm.metrics(metric, fm.Prediction(None, outputs, fm.Labeled(None, jnp.array([0, 0, 1, 2])))).compute()
    expected = {fm.Precision: 1.0, fm.Recall: 0.5, fm.F1: 2 / 3, fm.metric_types.ConfusionMatrix: np.diag([1.0, 1, 0])}
    np.testing.assert_allclose(found, expected[type(metric)], rtol=1e-6)
