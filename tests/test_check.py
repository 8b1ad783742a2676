"""`check`: what it finds, and that it raises nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.core.component import record
from fulmen.inspect.preflight import check

X, Y = data()
ADAM = {"optimizer": optax.adam, "lr": 1e-3}


class Sound(fm.Model):
    """A last layer that begins at zero, and two buffers: one is recorded, one moves after the step."""

    first: Linear
    last: Linear
    mean: fm.Buffer
    steps: fm.Buffer


@dispatch
def init(model: Sound, key):
    model = init.invoke(fm.Component, object)(model, key)
    return fm.replace(model, {"last.weight": model.last.weight * 0})


@dispatch
def forward(model: Sound, x):
    return model.last(record(model.first(x), model.mean, x.mean()))


@dispatch
def loss(model: Sound, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.x), batch.y)


@dispatch
def after_update(model: Sound, batch, mode):
    return fm.replace(model, {"steps.value": model.steps.value + 1})


def sound():
    return Sound(Linear(4, 5), Linear(5, 3), fm.Buffer(jnp.zeros(())), fm.Buffer(jnp.int32(0)))


class Flawed(fm.Model):
    """A part and a buffer that the loss does not reach."""

    used: Linear
    unused: Linear
    mean: fm.Buffer


@dispatch
def forward(model: Flawed, x):
    record(x, model.mean, x.mean())
    return model.used(x)


@dispatch
def loss(model: Flawed, batch):
    return (model(batch.x) ** 2).mean(1)


def flawed():
    return Flawed(Linear(4, 3), Linear(4, 3), fm.Buffer(jnp.zeros(())))


def test_a_sound_model_has_no_findings():
    report = check(sound(), (X, Y), **ADAM)
    assert report.ok and not report.errors and not report.warnings
    assert [f.what.split(":")[0] for f in report.findings] == [
        "data",
        "component",
        "methods",
        "dispatch",
        "a step",
        "loss",
        "gradient",
        "buffers",
    ]
    assert "no problems found" in str(report) and "50 examples" in str(report)


@pytest.mark.parametrize(
    "system",
    [
        lambda: pair(),
        lambda: fm.Classifier(net(), fm.CrossEntropy() + 1e-4 * fm.L2()),
        lambda: fm.setup(pair(), (X, Y), **ADAM),
    ],
    ids=["system", "classifier", "state"],
)
def test_systems_and_states(system):
    options = {"optimizer": optax.adam, "lr": fm.cosine(1e-3)}
    system = system()
    report = check(system, (X, Y), **({} if isinstance(system, fm.State) else options))
    assert report.ok and not report.warnings, report


def test_warns_of_parameters_without_gradient_and_buffers_that_do_not_change():
    report = check(flawed(), (X, Y), **ADAM)
    gradient, buffers = report.warnings
    assert report.ok
    assert gradient.what.startswith("gradient: exactly 0 for 2 of 4") and gradient.where == "unused.weight\nunused.bias"
    assert buffers.what.startswith("buffers: 1 of 1 did not change") and buffers.where == "mean"
    assert "stop_gradient" in gradient.advice and "after_update" in buffers.advice


class Spared(Flawed):
    """Says that the part stays as it is."""


@dispatch
def configure_optimizers(model: Spared):
    return {"used": optax.sgd(0.1), "unused": fm.frozen}


def test_frozen_parameters_need_no_gradient():
    report = check(Spared(Linear(4, 3), Linear(4, 3), fm.Buffer(jnp.zeros(()))), (X, Y))
    assert [f.what.split(":")[0] for f in report.warnings] == ["buffers"]


class Players(fm.Game):
    first: Net
    second: Net


class Careless(Players):
    """The second player's entry looks at the first alone."""


class Around(fm.System):
    game: Careless


@dispatch
def losses(game: Players, batch):
    return {"first": loss(game.first, batch), "second": loss(game.second, batch)}


@dispatch
def losses(game: Careless, batch):
    return {"first": loss(game.first, batch) + loss(game.second, batch), "second": loss(game.first, batch)}


def test_a_game_whose_entry_ignores_its_player():
    assert check(Players(net(), net()), (X, Y), **ADAM).ok
    for system, path in ((Careless(net(), net()), "second"), (Around(Careless(net(), net())), "game.second")):
        report = check(system, (X, Y), **ADAM)
        (error,) = report.errors
        assert (error.where, not report.warnings) == (path, True)
        assert error.what.startswith("game: no entry") and "'second'" in error.advice and "Careless" in error.advice


class Silent(fm.Model):
    layer: Linear


class Vector(fm.Model):
    layer: Linear


@dispatch
def loss(model: Vector, batch):
    return batch.x @ model.layer.weight


class Growing(fm.Model):
    layer: Linear
    total: fm.Buffer


@dispatch
def loss(model: Growing, batch):
    return (batch.x @ model.layer.weight).mean()


@dispatch
def after_update(model: Growing, batch, mode):
    return fm.replace(model, {"total.value": model.total.value.astype(jnp.bfloat16)})


class Diverging(fm.Model):
    layer: Linear


@dispatch
def loss(model: Diverging, batch):
    return jnp.sqrt((model.layer.weight * 0).sum()) + jnp.log(-(model.layer.bias**2).sum() - 1)


class Undrawable(fm.Model):
    layer: Linear


@dispatch
def init(model: Undrawable, key):
    return 1 // 0


class Half(fm.System):
    """Fails in evaluation alone."""

    net: Net


@dispatch
def loss(system: Half, batch, mode: fm.Train):
    return loss(system.net, batch)


@dispatch
def loss(system: Half, batch, mode: fm.Eval):
    raise RuntimeError("not yet written")


ERRORS = {
    "no method": (lambda: Silent(Linear(4, 3)), ["`loss(Silent, Labeled)`: no method", "@dispatch"]),
    "a shape": (lambda: Net(Linear(7, 3)), ["the loss in training: TypeError", "tiny.py:"]),
    "a loss of many numbers": (
        lambda: Vector(Linear(4, 3)),
        ["loss of Vector must be a number or one per example, (32,), got shape (32, 3)"],
    ),
    "another type after a step": (
        lambda: Growing(Linear(4, 3), fm.Buffer(jnp.zeros(()))),
        ["a step: TypeError", "total", "bfloat16"],
    ),
    "not finite": (lambda: Diverging(Linear(4, 3)), ["loss: nan", "gradient: not finite", "layer.weight"]),
    "evaluation": (lambda: Half(net()), ["evaluation: RuntimeError: not yet written", "test_check.py:"]),
    "an init that fails": (lambda: Undrawable(Linear(4, 3)), ["arrays: ZeroDivisionError", "test_check.py:"]),
    "the same part twice": (lambda: (lambda one: fm.replace(pair(), one=one, two=one))(net()), ["'one' and at 'two'"]),
    "no component": (lambda: 3, ["fields: TypeError: a component must be given, got int"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_findings(case):
    make, said = ERRORS[case]
    report = check(make(), (X, Y), **ADAM)
    text = "\n".join(f"{f.what}\n{f.where}\n{f.advice}" for f in report.errors)
    assert not report.ok
    for part in said:
        assert part in text
    assert f"{len(report.errors)} error" in str(report)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((X[:7], Y), "different lengths"),
        ((X.astype(np.float64), Y), "float64"),
        ((np.where(X > 1, np.nan, X), Y), "finite"),
        ((X[:0], Y[:0]), "empty"),
        ("words", "str"),
    ],
)
def test_bad_data_is_an_error(bad, said):
    (error,) = check(pair(), bad, **ADAM).errors
    assert error.what.startswith("data: ") and said in error.what


def test_labels_out_of_range_are_an_error():
    (error,) = check(fm.Classifier(net(classes=2)), (X, Y), **ADAM).errors
    assert "must be labels from 0 to 1" in error.what


def test_a_missing_optimizer_is_a_warning():
    report = check(pair(), (X, Y))
    (warning,) = report.warnings
    assert report.ok and warning.what.startswith("optimizer: no optimizer for 'one.layer.weight'")
    assert not check(pair(), (X, Y), optimizer={"three": optax.sgd(0.1)}).ok
    assert not check(pair(), (X, Y), optimizer=optax.adam).ok


class Left(fm.Batch):
    x: jax.Array


class Both(Net):
    pass


def test_ambiguous_methods_are_a_warning(verbs_restored):
    @dispatch
    def metrics(model: Net, batch: Left):
        return {}

    @dispatch
    def metrics(model: Both, batch: fm.Batch):
        return {}

    report = check(Both(Linear(4, 3)), (X, Y), **ADAM)
    (warning,) = report.warnings
    assert "metrics(Both, Left)" in warning.what and warning.where.count("test_check.py:") == 2
    assert not check(sound(), (X, Y), **ADAM).warnings


def test_a_method_without_annotation_is_a_warning(verbs_restored):
    with pytest.warns(UserWarning, match="is for every type"):

        @dispatch
        def predictions(net, batch):
            return {}

    (warning,) = check(sound(), (X, Y), **ADAM).warnings
    assert "predictions(object, object) applies to every type" in warning.what and "test_check.py:" in warning.where


class Twice(fm.Model):
    """A dropout that is called twice, in a loop, or once each with its own numbers."""

    drop: fm.models.Dropout
    layer: Linear
    use: str = "twice"


@dispatch
def forward(model: Twice, x):
    drop, fold = model.drop, fm.models.fold
    y = model.layer(drop(x))
    if model.use == "twice":
        return drop(y)
    each = (lambda i: drop) if model.use == "loop" else lambda i: fold(drop, i)
    return jax.lax.scan(lambda y, i: (each(i)(y), None), y, jnp.arange(2))[0]


@pytest.mark.parametrize("use, found", [("twice", ["2 calls"]), ("loop", ["iteration of a loop"]), ("folded", [])])
def test_equal_random_numbers_are_a_warning(use, found):
    report = check(fm.Classifier(Twice(fm.models.Dropout(0.5), Linear(4, 3), use)), (X, Y), **ADAM)
    assert report.ok and len(report.warnings) == len(found)
    for warning, how in zip(report.warnings, found, strict=True):
        assert "model.drop" in warning.what and how in warning.what and "fm.models.fold" in warning.advice


def test_html():
    report = check(Silent(Linear(4, 3)), (X, Y), **ADAM)
    text = report._repr_html_()
    assert "`loss(Silent, Labeled)`" in text and text.count("<tr") == 1 + len(report.findings)
