"""Systems of a user's own: what attacks, evaluations and certificates take for their outputs; wrong metrics and intervals."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch, forward, losses, metrics, model_inputs

Dense = fm.models.Dense
REGION = fm.LinfBall(0.1) & fm.Box(0, 1)
RUN = dict(optimizer=optax.adam, lr=1e-2, epochs=4, progress=False)


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


class Encoded(fm.System):
    """A classifier in two parts, with a `forward` of its own."""

    encoder: Dense
    head: Dense


@dispatch
def forward(system: Encoded, x):
    return system.head(jax.nn.relu(system.encoder(x)))


@dispatch
def losses(system: Encoded, batch: fm.Labeled):
    return {"ce": cross_entropy(system(batch.x), batch.y)}


@dispatch
def metrics(system: Encoded, batch: fm.Labeled):
    return {"accuracy": system(batch.x).argmax(-1) == batch.y}


class Coder(fm.System):
    """Two models without a `forward`; only its `losses` say what each model gets."""

    encoder: Dense
    decoder: Dense


@dispatch
def losses(system: Coder, batch: fm.Labeled):
    code = system.encoder(batch.x)
    return {"ce": cross_entropy(code, batch.y), "reconstruction": ((system.decoder(code) - batch.x) ** 2).mean(-1)}


class Two(fm.System):
    """A classifier beside a model, with `losses` of its own."""

    classifier: fm.Classifier
    model: Dense


@dispatch
def losses(system: Two, batch: fm.Labeled):
    return {"ce": fm.total_loss(system.classifier, batch), "size": (system.model.weight**2).sum()}


class Sides(fm.Batch):
    left: jax.Array
    right: jax.Array
    y: jax.Array


class Compared(fm.System):
    net: Dense


@dispatch
def forward(system: Compared, left, right):
    return system.net(left - right)


@dispatch
def model_inputs(system: Compared, batch: Sides):
    return batch.left, batch.right


class Denoiser(fm.System):
    """Its `forward` takes more than a batch has."""

    net: Dense


@dispatch
def forward(system: Denoiser, x, time):
    return system.net(x) * time


@dispatch
def losses(system: Denoiser, batch: fm.Labeled):
    return {"distance": ((system(batch.x, 0.5) - batch.x) ** 2).mean(-1)}


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).random((96, 6), np.float32)
    return x, (x.sum(1) > 3).astype(np.int32)


@pytest.fixture(scope="module")
def trained(data):
    return fm.fit(Encoded(Dense(6, 8), Dense(8, 2)), data, **RUN)[0]


@pytest.mark.parametrize(
    "attack",
    [
        fm.PGD(REGION, 0.02, 5, objective=fm.CrossEntropy()),
        fm.attacks.APGD(REGION, steps=5),
        fm.attacks.DeepFool(REGION, steps=5),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_an_attack_is_on_the_outputs_of_the_system(data, trained, attack):
    system = trained.system
    same = fm.Classifier(fm.models.Chain(system.encoder, jax.nn.relu, system.head), metrics=(fm.Accuracy(),))
    found, expected = (fm.evaluate(each, data, attack=attack)["robust/accuracy"] for each in (trained, same))
    assert found == expected < fm.evaluate(trained, data)["accuracy"]


def test_predictions_are_those_of_the_systems_forward_or_of_its_parts(data, key):
    x, y = data
    batch, classifier = fm.Labeled(x, y), fm.Classifier(Dense(6, 2))
    found = fm.predictions(fm.init(Encoded(Dense(6, 8), Dense(8, 2)), key), batch)
    assert [*found] == [""] and found[""].outputs.shape == (96, 2) and found[""].batch is not None
    assert [*fm.predictions(fm.init(Compared(Dense(6, 3)), key), Sides(x, x[::-1], y))] == [""]
    assert [*fm.predictions(fm.init(Two(classifier, Dense(6, 6)), key), batch)] == ["classifier"]
    assert [*fm.predictions(fm.init(Denoiser(Dense(6, 6)), key), batch)] == ["net"]
    assert [*fm.predictions(fm.init(Coder(Dense(6, 2), Dense(2, 6)), key), batch)] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda state, data: fm.evaluate(state, data, attack=fm.attacks.APGD(REGION, steps=5)),
        lambda state, data: fm.evaluate(state, data, attack=fm.PGD(REGION, 0.02, 5, objective=fm.CrossEntropy())),
        lambda state, data: fm.certify(state, data, REGION),
        lambda state, data: fm.robustness(state, data, fm.FGSM(REGION)),
    ],
)
def test_without_outputs_the_error_names_the_method_to_write(data, call):
    state = fm.setup(Coder(Dense(6, 2), Dense(2, 6)), data, optimizer=optax.adam, lr=1e-2)
    with pytest.raises(ValueError, match=r"Coder has (no|0) predictions.*rite `forward\(system: Coder, x\)`"):
        call(state, data)


def test_an_attack_on_the_loss_needs_no_outputs(data):
    state = fm.setup(Coder(Dense(6, 2), Dense(2, 6)), data, optimizer=optax.adam, lr=1e-2)
    found = fm.evaluate(state, data, attack=fm.FGSM(REGION))
    assert found["robust/loss"] > found["loss"]


class Measured(fm.System):
    net: Dense
    kind: str


@dispatch
def losses(system: Measured, batch: fm.Labeled):
    return {"ce": cross_entropy(system.net(batch.x), batch.y)}


@dispatch
def metrics(system: Measured, batch: fm.Labeled):
    values = system.net(batch.x).argmax(-1) == batch.y
    return {"array": values, "none": None, "metric": {"accuracy": fm.Accuracy()}}[system.kind]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("array", r"`metrics` of Measured must return a dict from names to values.*got"),
        ("none", r"`metrics` of Measured must return a dict from names to values.*got None"),
        (
            "metric",
            r"the metric 'accuracy' must be a number.*got Accuracy.*fm.Classifier\(model, metrics=\(fm.Accuracy\(\),\)\)",
        ),
    ],
)
def test_wrong_results_of_metrics_are_named(data, kind, message):
    with pytest.raises(TypeError, match=message):
        fm.fit(Measured(Dense(6, 2), kind), data, **RUN)


def test_an_interval_of_validation_is_an_every(data):
    with pytest.raises(
        TypeError, match=r"validate_every must be an fm.Every, got 100; write validate_every=fm.Every\(steps=100\)"
    ):
        fm.fit(Encoded(Dense(6, 8), Dense(8, 2)), data, validation=data, validate_every=100, **RUN)


def test_a_run_is_not_resumed_with_other_data(data, tmp_path):
    pytest.importorskip("safetensors")
    x, y = data
    system, saving = Encoded(Dense(6, 8), Dense(8, 2)), fm.Checkpoint(tmp_path)
    fm.fit(system, data, callbacks=[saving], **{**RUN, "epochs": 1})
    with pytest.raises(ValueError, match="examples=40 instead of 96"):
        fm.fit(system, (x[:40], y[:40]), callbacks=[saving], resume=tmp_path, **RUN)
