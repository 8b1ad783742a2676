"""Metrics of binary outputs and of several labels per example, against scikit-learn."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear

import fulmen as fm
from fulmen import dispatch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import scipy.special
    import sklearn.metrics as sk

N, K = 200, 3
RNG = np.random.default_rng(0)
SCORES = (2 * RNG.normal(size=(N, K))).astype(np.float32)
LABELS = (SCORES + 2 * RNG.normal(size=(N, K)) > 0.5).astype(np.int32)
CLASSES = RNG.integers(0, K, N).astype(np.int32)
WEIGHT = RNG.integers(0, 3, N).astype(np.float32)
AUROC, AP = fm.metric_types.AUROC, fm.metric_types.AveragePrecision
RATES = {fm.Precision: sk.precision_score, fm.Recall: sk.recall_score, fm.F1: sk.f1_score}


# One program is faster than many small ones.
sums = jax.jit(fm.metrics)
computed = jax.jit(lambda metric, prediction: fm.metrics(metric, prediction).compute())


def prediction(outputs, y, weight=None):
    return fm.Prediction(None, outputs, fm.Labeled(None, y, weight=weight))


def figure(metric, outputs, y, weight=None):
    return computed(metric, prediction(outputs, y, weight))


def assert_figures(metrics, expected, outputs, y, weight=None, **tolerance):
    """The figures of several metrics, by one program."""
    program = jax.jit(lambda prediction: [fm.metrics(metric, prediction).compute() for metric in metrics])
    for metric, found, right in zip(metrics, program(prediction(outputs, y, weight)), expected, strict=True):
        np.testing.assert_allclose(found, right, **tolerance, err_msg=str(metric))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_rates_of_one_binary_target(weight):
    z, y, kinds = SCORES[:, 0], LABELS[:, 0], [*itertools.product(RATES, ("binary", "macro", "micro", None))]
    metrics = [kind(average) for kind, average in kinds]
    expected = [RATES[kind](y, z > 0, average=average, sample_weight=weight) for kind, average in kinds]
    assert_figures(metrics, expected, z, y, weight, rtol=1e-5)
    assert_figures(metrics, expected, z[:, None], y[:, None].astype(bool), weight, rtol=1e-5)


def test_rates_of_several_labels():
    kinds, right = [*itertools.product(RATES, ("macro", "micro", None))], 1 / (1 + np.exp(-SCORES)) > 0.7
    expected = [RATES[kind](LABELS, right, average=average, sample_weight=WEIGHT) for kind, average in kinds]
    metrics = [kind(average, threshold=0.7) for kind, average in kinds]
    assert_figures(metrics, expected, SCORES, LABELS, WEIGHT, rtol=1e-5)


def test_the_rate_of_class_1_of_a_softmax():
    z, y = SCORES[:, :2], CLASSES % 2
    expected = [reference(y, z.argmax(1)) for reference in RATES.values()]
    assert_figures([kind("binary") for kind in RATES], expected, z, y, rtol=1e-5)


def test_accuracy_of_binary_targets():
    assert figure(fm.Accuracy(), SCORES[:, 0], LABELS[:, 0], WEIGHT) == pytest.approx(
        sk.accuracy_score(LABELS[:, 0], SCORES[:, 0] > 0, sample_weight=WEIGHT), rel=1e-5
    )
    assert figure(fm.Accuracy(threshold=0.5), SCORES, LABELS) == pytest.approx(
        1 - sk.hamming_loss(LABELS, SCORES > 0), rel=1e-5
    )
    assert figure(fm.Accuracy(), jnp.array([1.0, -1.0, 2.0]), np.array([1, -1, -1])) == pytest.approx(2 / 3)
    np.testing.assert_array_equal(
        figure(fm.metric_types.ConfusionMatrix(), SCORES[:, 0], LABELS[:, 0]),
        sk.confusion_matrix(LABELS[:, 0], SCORES[:, 0] > 0),
    )


def test_a_nan_is_wrong_in_every_binary_metric():
    z, y = np.array([np.nan, 1, -1, np.nan], np.float32), np.array([1, 1, 0, 0])
    assert figure(fm.Accuracy(), z, y) == 0.5
    assert (figure(fm.Recall("binary"), z, y), figure(fm.Precision("binary"), z, y)) == (0.5, 1.0)
    assert figure(AUROC(), z, y) == 0.25  # of four pairs only that of the two finite ones is in order


# Metrics of the ranking


def binned(z, bins):
    """The outputs as the histograms see them."""
    return np.floor((z / (1 + np.abs(z)) + 1) / 2 * bins)


def test_rankings_are_those_of_scikit_learn():
    references = {AUROC: sk.roc_auc_score, AP: sk.average_precision_score}
    kinds = [*itertools.product(references, ("macro", "micro", None))]

    def expected(y, z, weight=None):
        return [references[kind](y, z, average=average, sample_weight=weight) for kind, average in kinds]

    few = [kind(average, bins=50) for kind, average in kinds]
    assert_figures(few, expected(LABELS, binned(SCORES, 50), WEIGHT), SCORES, LABELS, WEIGHT, rtol=1e-5)
    many = [kind(average) for kind, average in kinds]
    assert_figures(many, expected(LABELS, SCORES, WEIGHT), SCORES, LABELS, WEIGHT, atol=3e-3)
    z, y = SCORES[:, 0], LABELS[:, 0]
    assert_figures(many, [reference(y, z) for reference in references.values() for _ in range(3)], z, y, atol=3e-3)


def test_rankings_of_classes():
    p = scipy.special.softmax(SCORES, 1)
    expected = sk.roc_auc_score(CLASSES, p / p.sum(1, keepdims=True), multi_class="ovr")
    assert figure(AUROC(), SCORES, CLASSES) == pytest.approx(expected, abs=3e-3)
    z, y = SCORES[:, :2], CLASSES % 2
    assert figure(AP(), z, y) == pytest.approx(sk.average_precision_score(y, z[:, 1] - z[:, 0]), abs=3e-3)


def test_a_label_of_one_value_is_left_out_of_the_mean():
    y = np.stack([LABELS[:, 0], np.zeros(N, np.int32)], 1)
    each = figure(AUROC(None), SCORES[:, :2], y)
    assert np.isfinite(each[0]) and np.isnan(each[1]) and figure(AUROC(), SCORES[:, :2], y) == each[0]


METRICS = [fm.Accuracy(threshold=0.5), fm.F1("macro", threshold=0.5), AUROC(), AP("micro")]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_batches_add_up_and_padding_has_no_effect(metric):
    cuts = [0, 70, 140, N]
    parts = []
    for a, b in itertools.pairwise(cuts):
        pad = np.zeros((70 - (b - a), K), np.float32) * np.nan
        z, y = np.concatenate([SCORES[a:b], pad]), np.concatenate([LABELS[a:b], np.zeros(pad.shape, np.int32)])
        weight = np.concatenate([WEIGHT[a:b], np.zeros(len(pad), np.float32)])
        parts.append(sums(metric, fm.Prediction(None, z, fm.Labeled(None, y, weight=weight))))
    merged = jax.tree.map(lambda *each: np.sum(np.asarray(each, np.float64), 0), *parts)
    assert float(merged.compute()) == pytest.approx(float(figure(metric, SCORES, LABELS, WEIGHT)), rel=1e-5)


# A classifier


class Column(fm.Model):
    layer: Linear


@dispatch
def forward(column: Column, x):
    return column.layer(x)[:, 0]


X = SCORES[:64]
OPTIONS = dict(optimizer=optax.sgd, lr=1e-2, epochs=1, batch_size=32, progress=False)


@pytest.mark.parametrize(
    "objective", [fm.BinaryCrossEntropy(), 2 * fm.BinaryCrossEntropy(positive_weight=2.0) + 1e-3 * fm.L2()], ids=str
)
@pytest.mark.parametrize(
    ("model", "y"), [(Column(Linear(K, 1)), LABELS[:64, 0]), (Linear(K, K), LABELS[:64])], ids=["binary", "multi-label"]
)
def test_a_classifier_of_binary_targets_has_the_fitting_accuracy(model, y, objective):
    state, history = fm.fit(fm.Classifier(model, objective), (X, y), validation=(X, y), **OPTIONS)
    expected = np.mean((fm.predict(state, X) > 0) == y)
    assert history["validation/accuracy"][-1] == pytest.approx(expected, rel=1e-5)


def test_ranking_metrics_are_logged():
    system = fm.Classifier(Linear(K, K), fm.BinaryCrossEntropy(), metrics=(AUROC(), AP()))
    state, history = fm.fit(system, (X, LABELS[:64]), **OPTIONS)
    assert fm.evaluate(state, (X, LABELS[:64]))["auroc"] == pytest.approx(
        sk.roc_auc_score(LABELS[:64], fm.predict(state, X)), abs=2e-3
    )
    assert 0 < history["average_precision"][-1] <= 1


def test_positive_weights_of_each_label():
    z, y, p = SCORES[:5], LABELS[:5].astype(np.float32), jnp.array([1.0, 2.0, 3.0])
    loss = jax.jit(fm.loss)
    found = loss(fm.BinaryCrossEntropy(p), fm.Prediction(None, z, fm.Labeled(None, y)))
    each = [
        loss(fm.BinaryCrossEntropy(float(p[i])), fm.Prediction(None, z[:, i], fm.Labeled(None, y[:, i]))) for i in range(K)
    ]
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-5)


@pytest.mark.parametrize(
    ("metric", "outputs", "y", "words"),
    [
        (
            fm.F1("binary", threshold=0.5),
            SCORES,
            LABELS,
            'average must not be "binary" for 3 labels.*"macro", threshold=0.5',
        ),
        (fm.F1("binary"), SCORES, CLASSES, 'average must not be "binary" for 3 classes'),
        (
            fm.Accuracy(),
            SCORES[:, 0],
            CLASSES,
            r"y must be 0 or 1 for binary outputs of shape \(200,\).*0 to 2.*one output for each",
        ),
        (fm.Accuracy(), SCORES[:, :1], LABELS[:, 0], r"y must have the shape.*\(200, 1\), got \(200,\).*y\[:, None\]"),
        (AUROC(), SCORES, LABELS * 2, "AUROC, y must be 0 or 1"),
        (fm.metric_types.ConfusionMatrix(threshold=0.5), SCORES, LABELS, "one label per example, got 3.*threshold=0.5"),
        (fm.CrossEntropy(), SCORES, LABELS, "Several labels per example.*fm.BinaryCrossEntropy"),
        (fm.CrossEntropy(), SCORES, LABELS.astype(np.float32), "Several labels per example.*fm.BinaryCrossEntropy"),
        (fm.BinaryCrossEntropy(jnp.ones(2)), SCORES, LABELS, r"positive_weight must.*\(3,\), got shape \(2,\)"),
    ],
)
def test_targets_and_options_that_do_not_fit(metric, outputs, y, words):
    with pytest.raises(ValueError, match=words):
        fm.validate(metric, fm.Prediction(None, jax.ShapeDtypeStruct(outputs.shape, np.float32), fm.Labeled(None, y)))
