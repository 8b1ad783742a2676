"""`External`: metric classes of other libraries, with `from_model_output`, `merge` and `compute`."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Linear

import fulmen as fm
from fulmen.metric_types import External

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 3)).astype(np.float32), RNG.integers(0, 2, 50)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ShareAbove:
    """The share of values above each of some thresholds: sums, and a number that is no array."""

    above: jax.Array
    count: jax.Array
    thresholds: int

    @classmethod
    def from_model_output(cls, values, thresholds=4):
        levels = jnp.arange(thresholds) / thresholds
        return cls((values > levels[:, None]).sum(1), jnp.asarray(values.size), thresholds)

    def merge(self, other):
        return type(self)(self.above + other.above, self.count + other.count, self.thresholds)

    def compute(self):
        return (self.above / self.count)[: self.thresholds - 1].sum()


class Newest(ShareAbove):
    def merge(self, other):
        return other


class Largest(ShareAbove):
    def merge(self, other):
        return type(self)(jnp.maximum(self.above, other.above), self.count, self.thresholds)


def first_probability(prediction):
    return dict(values=jax.nn.softmax(prediction.outputs)[:, 1])


jax.tree_util.register_dataclass(Newest)
jax.tree_util.register_dataclass(Largest)


def classifier(*metrics):
    return fm.init(fm.Classifier(Linear(3, 2), metrics=metrics), jax.random.key(0))


def test_external_metrics_add_up_over_batches():
    system = classifier(External(ShareAbove, first_probability), External(Newest, first_probability))
    found = fm.evaluate(system, (X, Y), batch_size=32)
    p = np.asarray(jax.nn.softmax(fm.predict(system, X))[:, 1])
    expected = lambda p: sum((p > level / 4).mean() for level in range(3))
    assert found["share_above"] == pytest.approx(expected(p), abs=1e-6)
    assert found["newest"] == pytest.approx(expected(p[32:]), abs=1e-6)


def test_a_merge_that_adds_nothing_up_is_an_error():
    with pytest.raises(ValueError, match=r"Largest.merge must add.*fm.predict"):
        fm.evaluate(classifier(External(Largest, first_probability)), (X, Y))


@pytest.mark.parametrize(
    ("kind", "arguments", "name"), [(ShareAbove(1, 1, 1), dict, "kind"), (int, dict, "kind"), (ShareAbove, {}, "arguments")]
)
def test_wrong_arguments_are_named(kind, arguments, name):
    with pytest.raises(TypeError, match=f"External, {name} must be"):
        External(kind, arguments)


def test_its_name_and_printed_form():
    assert repr(External(ShareAbove, first_probability).named("share")) == "External(ShareAbove).named('share')"


def test_metrics_of_clu_and_metrax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clu, metrax = pytest.importorskip("clu.metrics"), pytest.importorskip("metrax")
        sk = pytest.importorskip("sklearn.metrics")
    logits = lambda p: dict(logits=p.outputs, labels=p.batch.y)
    score = lambda p: dict(predictions=jax.nn.softmax(p.outputs)[:, 1], labels=p.batch.y)
    system = classifier(
        External(clu.Accuracy, logits),
        External(metrax.AUCROC, score),
        External(metrax.Precision, score),
        External(clu.LastValue, lambda p: dict(value=p.outputs[:, 0])),
    )
    found, outputs = fm.evaluate(system, (X, Y), batch_size=32), np.asarray(fm.predict(system, X))
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == Y).mean())
    assert found["aucroc"] == pytest.approx(sk.roc_auc_score(Y, outputs[:, 1] - outputs[:, 0]), abs=0.01)
    assert found["precision"] == pytest.approx(sk.precision_score(Y, outputs.argmax(1)), abs=1e-6)
    assert found["last_value"] == pytest.approx(outputs[32:, 0].mean(), abs=1e-5)
    collecting = External(clu.CollectingMetric.from_outputs(("logits",)), logits)
    with pytest.raises(ValueError, match=r"merge must add"):
        fm.evaluate(classifier(collecting), (X, Y))
