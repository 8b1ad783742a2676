"""What is typed in the first hour: each mistake is answered with what to write."""

import dataclasses
import functools
import sys
import types

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, Net, data, net, require_answer

import fulmen as fm
from fulmen import dispatch

X, Y = data(40)
ADAM = dict(optimizer=optax.adam, lr=1e-3)
RUN = dict(ADAM, epochs=1, batch_size=20, progress=False, seed=None)
LABELS = (X[:, :3] > 0).astype(np.float32)


def classifier(model=None, **options):
    return fm.Classifier(model or Linear(4, 3), **options)


@functools.cache
def trained():
    return fm.fit(classifier(), (X, Y), **RUN)


# What is answered with an error


def frame():
    return pytest.importorskip("pandas").DataFrame(X)


def unfit(*arguments, **options):
    return lambda: fm.fit(*arguments, **{**RUN, **options})


class Two(fm.Model):
    first: Linear
    second: fm.models.Dense


@dispatch
def forward(two: Two, x):
    return two.second(two.first(x))


class Undrawn(fm.Model):
    weight: jax.Array | None = None


@dispatch
def forward(undrawn: Undrawn, x):
    return x @ undrawn.weight


def class_with_part_without_annotation():
    class Bare(fm.Model):
        layer = Linear(4, 3)


def class_with_default_without_annotation():
    class Mine(fm.Classifier):
        objective = fm.MSE()


def parts_made_in(name):
    def method(self, width=3):
        self.layer = Linear(4, width)

    body = {"__annotations__": {"width": int}, name: method}
    return types.new_class("Sized", (fm.Model,), exec_body=lambda names: names.update(body))(3)


def text_for(model):
    return unfit(fm.LanguageModel(model), ["to be", "or not"])


def undecorated():
    module = types.ModuleType("first_program")
    sys.modules["first_program"] = module
    try:
        exec("import fulmen as fm\nclass Mine(fm.Model): pass\ndef forward(mine: Mine, x): return x", vars(module))
        fm.forward(module.Mine(), X)
    finally:
        del sys.modules["first_program"]


def sparse():
    return (pytest.importorskip("scipy.sparse").csr_matrix(X), Y)


def unpacked():
    _x, _y = fm.Labeled(X, Y)


MISTAKES = {
    # data
    "list": (unfit(classifier(), (X.tolist(), Y)), TypeError, ["x must be", "got list", "np.asarray(x, np.float32)"]),
    "sparse": (lambda: fm.fit(classifier(), sparse(), **RUN), TypeError, ["x must be", "csr_matrix", "x.toarray()"]),
    "text frame": (
        lambda: fm.fit(classifier(), (frame().assign(city="Rome"), Y), **RUN),
        TypeError,
        ["x, column 'city',", "must be numbers", "np.unique"],
    ),
    "texts": (
        text_for(fm.models.Transformer(16, 8, 1, 2, 8)),
        TypeError,
        ["must be numbers", "np.frombuffer(text.encode(), np.uint8)"],
    ),
    "examples for batches": (
        unfit(classifier(), list(zip(X, Y)), batch_size=None),
        ValueError,
        ["y must", "iterable of batches"],
    ),
    "x, y apart": (
        lambda: fm.fit(classifier(), X, Y, **RUN),
        TypeError,
        ["takes 2", "one argument", "fm.fit(state, (x, y))"],
    ),
    "unpacked batch": (unpacked, TypeError, ["Labeled", "batch.x, batch.y"]),
    "one example": (
        lambda: fm.predict(fm.init(fm.models.Dense(4, 3), jax.random.key(0)), X[0]),
        ValueError,
        ["one row per example", "for 4 examples", "x[None]"],
    ),
    "split(x, y)": (lambda: fm.split(X, Y), TypeError, ["fraction", "got ndarray", "fm.split((x, y), 0.8)"]),
    "split in parts of 0.9": (
        lambda: fm.split(X, (0.8, 0.1)),
        ValueError,
        ["add up to 1", "(0.8, 0.1, 0.1)", "got (0.8, 0.1)"],
    ),
    "several labels": (
        unfit(classifier(), (X, LABELS)),
        ValueError,
        ["CrossEntropy, y", "fm.BinaryCrossEntropy()", "threshold=0.5"],
    ),
    "validation": (
        unfit(classifier(), (X, Y), validation=(X, Y + 5)),
        ValueError,
        ["labels from 5 to 7", "in the data of `validation`"],
    ),
    "named validation": (
        unfit(classifier(), (X, Y), validation={"far": (X * np.nan, Y)}),
        ValueError,
        ["x must be finite", "in the data of `validation['far']`"],
    ),
    # components
    "a model alone": (
        unfit(Linear(4, 3), (X, Y)),
        TypeError,
        ["loss(Linear, Labeled)", "fm.Classifier(model)", "fm.Regressor(model)"],
    ),
    "pair for a state": (lambda: fm.evaluate((1, 2), (X, Y)), TypeError, ["evaluate(tuple", "state, history = fm.fit(…)"]),
    "metric by name": (
        unfit(classifier(metrics="accuracy"), (X, Y)),
        TypeError,
        ["Classifier.metrics", "'accuracy'", "fm.Accuracy()"],
    ),
    "metric class": (unfit(classifier(metrics=fm.Accuracy), (X, Y)), TypeError, ["metrics must be", "write Accuracy(…)"]),
    "objective by name": (
        lambda: fm.fit(fm.Classifier(net(), "cross_entropy"), (X, Y), **RUN),
        TypeError,
        ["Classifier.objective must be an Objective", "'cross_entropy'", "fm.CrossEntropy()"],
    ),
    "function for a model": (
        unfit(classifier(lambda x: x), (X, Y)),
        TypeError,
        ["Classifier.model", "<lambda>", "fm.models.Function(f)"],
    ),
    "activation by name": (
        lambda: fm.models.MLP(4, 8, 3, activation="relu"),
        TypeError,
        ["MLP.activation", "'relu'", "jax.nn.relu"],
    ),
    "layer by name": (lambda: fm.models.Chain(Linear(4, 8), "gelu"), TypeError, ["at index 1", "'gelu'", "jax.nn.gelu"]),
    "list of widths": (lambda: fm.models.MLP(4, [8, 8], 3), TypeError, ["MLP takes sizes", "MLP(4, 8, 8, 3)"]),
    "widths by name": (lambda: fm.models.MLP(4, 3, widths=[8]), TypeError, ["'widths'", "*sizes, activation, dropout"]),
    "pos_weight": (lambda: fm.BinaryCrossEntropy(pos_weight=2.0), TypeError, ["'pos_weight'", "positive_weight=…"]),
    "part without annotation": (class_with_part_without_annotation, TypeError, ["Bare.layer", "`layer: Linear = …`"]),
    "default without annotation": (
        class_with_default_without_annotation,
        TypeError,
        ["Mine.objective", "`objective: MSE = …`"],
    ),
    "undeclared": (
        lambda: parts_made_in("__init__"),
        dataclasses.FrozenInstanceError,
        ["no field 'layer'", "declare it in the class"],
    ),
    "assignment": (
        lambda: setattr(net(), "layer", 1),
        dataclasses.FrozenInstanceError,
        ["Net.layer", "fm.replace(tree, {'layer': …})"],
    ),
    "no init": (
        lambda: fm.forward(Undrawn(), X),
        (TypeError, ValueError),
        ["Undrawn.weight is None", "def init(undrawn: Undrawn, key)"],
    ),
    "size of a part": (
        unfit(classifier(Two(Linear(4, 8), fm.models.Dense(7, 3))), (X, Y)),
        ValueError,
        ["Dense(7, 3)", "in 'model.second' of Classifier"],
    ),
    # calls
    "train=True": (
        lambda: fm.models.Flatten()(X, train=True),
        TypeError,
        ["train", "mode is no option of `forward`", "fm.Train(key)"],
    ),
    "no @dispatch": (undecorated, TypeError, ["forward(Mine", "The function `forward` at", "write @dispatch above it"]),
    "key in a suggestion": (
        lambda: fm.sample(net(), jax.random.key(0), (3,)),
        TypeError,
        ["def sample(net: Net, key, shape: tuple)"],
    ),
    "size of batches": (
        unfit(classifier(), (X, Y), batch_size=32.0),
        TypeError,
        ["batch_size", "32.0", "write batch_size=32"],
    ),
    "lr nan": (unfit(classifier(), (X, Y), lr=float("nan")), ValueError, ["lr must be finite", "got nan", "lr=1e-3"]),
    "lr negative": (unfit(classifier(), (X, Y), lr=-1e-3), ValueError, ["lr must be finite and not negative", "-0.001"]),
}


@pytest.mark.parametrize(("call", "error", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_with_what_to_write(call, error, words):
    require_answer(call, error, words)


def test_a_suggestion_does_not_extend_a_verb_to_a_builtin_type():
    with pytest.raises(TypeError) as caught:
        fm.evaluate([1], (X, Y))
    assert "Write one" not in str(caught.value)


def test_an_equinox_module_that_is_called_with_a_batch():
    equinox = pytest.importorskip("equinox")

    class Holder(fm.Model):
        linear: equinox.nn.Linear

    @dispatch
    def forward(holder: Holder, x):
        return holder.linear(x)

    with pytest.raises(TypeError) as caught:
        fm.setup(classifier(Holder(equinox.nn.Linear(4, 3, key=jax.random.key(0)))), (X, Y), **ADAM)
    assert "forward(linear, x) calls it with the whole batch" in caught.value.__notes__[0]


# What is warned about


IMAGES = (np.arange(40 * 16).reshape(40, 4, 4) % 256).astype(np.float32)


def flat():
    return fm.init(fm.models.Chain(fm.models.Flatten(), lambda x: x.astype(np.float32), Linear(16, 3)), jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fm.setup(classifier(flat()), (IMAGES, Y), **ADAM), "images of 0 to 255.*/ 255.*Normalized"),
        (lambda: fm.validate(classifier(flat()), fm.Labeled(IMAGES.astype(np.uint8), Y)), "images of 0 to 255"),
        (lambda: fm.fit(classifier(), (X, Y), **{**RUN, "lr": 0}), "lr is 0.*fm.frozen"),
        (lambda: fm.fit(classifier(), (X, Y), **{**RUN, "lr": 1e6}), r"lr is 1e\+06.*1e-3"),
        (lambda: fm.fit(classifier(), (X, Y), validation=[(X, Y), (X, Y)], **RUN), "list of pairs.*batches of one set"),
        (lambda: fm.forward.dispatch(lambda anything, x: x), "is for every type.*Annotate the first argument"),
    ],
    ids=["pixels", "uint8", "lr 0", "lr 1e6", "validation", "no annotation"],
)
def test_what_is_probably_not_meant_is_warned_about(call, words):
    methods = fm.forward.methods
    with pytest.warns(UserWarning, match=words):
        call()
    fm.forward.restore(methods)


def test_inputs_that_are_normalized_or_no_pixels_are_not_warned_about():
    fm.validate(classifier(fm.models.Normalized(flat(), mean=127.5, std=127.5)), fm.Labeled(IMAGES, Y))
    fm.validate(classifier(flat()), fm.Labeled(IMAGES + 0.5, Y))


def test_check_finds_a_softmax_before_the_cross_entropy():
    report = fm.check(classifier(fm.models.Chain(Linear(4, 3), jax.nn.softmax)), (X, Y), **ADAM)
    assert any("probabilities" in found.what and "softmax" in found.advice for found in report.warnings)


# What works


def test_no_callbacks_may_be_none():
    assert fm.fit(classifier(), (X, Y), callbacks=None, **RUN)[1]["loss"] == trained()[1]["loss"]


def test_a_split_in_three_parts():
    parts = fm.split((X, Y), (0.5, 0.25, 0.25), seed=1)
    assert [len(x) for x, _ in parts] == [20, 10, 10]
    np.testing.assert_array_equal(np.sort(np.concatenate([x[:, 0] for x, _ in parts])), np.sort(X[:, 0]))
    np.testing.assert_array_equal(parts[0][0], fm.split(X, 0.5, seed=1)[0])


def test_the_first_pattern_that_matches_counts_and_its_rate_is_logged_under_it():
    optimizer = {"**.bias": fm.optimizers.Optimizer(optax.sgd, 0.0), "**": fm.optimizers.Optimizer(optax.sgd, 0.5)}
    state = fm.setup(Net(Linear(4, 3)), (X, Y), optimizer=optimizer)
    after, logs = fm.train_step(state, (X, Y))
    assert (after.system.layer.bias == state.system.layer.bias).all()
    assert (after.system.layer.weight != state.system.layer.weight).any()
    assert {name: float(v) for name, v in logs.items() if name.startswith("lr")} == {"lr/**.bias": 0.0, "lr/**": 0.5}


def test_the_rate_of_all_other_parameters_is_logged_as_lr():
    state = fm.setup(Net(Linear(4, 3)), (X, Y), optimizer={"layer.bias": optax.sgd, "": optax.adam}, lr=0.25)
    assert {name for name in fm.train_step(state, (X, Y))[1] if name.startswith("lr")} == {"lr", "lr/layer.bias"}


def test_the_bar_of_a_game_shows_the_loss_of_each_player():
    from fulmen.train.progress import line

    logs = {"loss": 3.0, "loss/critic/real": 1.0, "loss/critic/fake": 1.5, "loss/generator": 0.5, "lr": 0.1}
    assert line(logs, opposed=True) == "loss/critic/real 1  loss/critic/fake 1.5  loss/generator 0.5  lr 0.1"
    assert line(logs) == "loss 3  lr 0.1"
    assert line({"loss": 3.0}, opposed=True) == "loss 3"
