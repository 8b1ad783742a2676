"""Names and forms of other libraries: each is answered with what to write here."""

import dataclasses
import difflib

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, Net, data, net, require_answer

import fulmen as fm
from fulmen import dispatch
from fulmen.train.history import History, find_metric

X, Y = data(40)
RUN = dict(optimizer=optax.adam, lr=1e-3, epochs=1, batch_size=20, progress=False)
LINF = fm.LinfBall(0.1)
LOGS = dict(accuracy=1.0, loss=1.0)
BOTH = {**LOGS, "validation/accuracy": 1.0, "validation/loss": 1.0}


def classifier():
    return fm.Classifier(Linear(4, 3))


def unfit(system, *arguments, **options):
    return lambda: fm.fit(system, *(arguments or [(X, Y)]), **{**RUN, **options})


def method(name):
    return lambda: exec(f"@dispatch\ndef {name}(model: fm.Model, batch): pass", {"dispatch": dispatch, "fm": fm})


def history(name):
    made = History()
    made.append(BOTH)
    return lambda: made[name]


class Duel(fm.Game):
    one: Linear
    two: Linear


class Fair(fm.Game):
    one: Linear
    two: Linear


@dispatch
def losses(fair: Fair, batch):
    return dict(one=fair.one(batch.x).sum(1), two=fair.two(batch.x).sum(1))


class Lossy(fm.Model):
    one: Linear


@dispatch
def losses(lossy: Lossy, batch):
    return dict(one=lossy.one(batch.x).sum(1))


class Keeping(fm.Model):
    one: Linear


@dispatch
def forward(keeping: Keeping, x):
    keeping.last = x
    return keeping.one(x)


def undeclared(value):
    class Made(fm.Model):
        def __init__(self):
            self.part = value

    return Made


def keeping_in_post_init():
    class Made(fm.Model):
        n: int = 1

        def __post_init__(self):
            self.part = fm.models.Flatten()

    return Made()


def chained():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(fm.cosine(1e-3)))


def planned(plan):
    return optax.adam(1e-3)


def optimized(system, optimizer, batch=(X, Y), **options):
    return lambda: fm.setup(system, batch, optimizer=optimizer, steps=2, **options)


WRONG = {
    # metrics
    "history val_loss": (history("val_loss"), KeyError, ["did you mean 'validation/loss'?"]),
    "history val_acc": (history("val_acc"), KeyError, ["did you mean 'validation/accuracy'?"]),
    "history train_loss": (history("train_loss"), KeyError, ["did you mean 'loss'?"]),
    "validation_loss": (
        lambda: find_metric(BOTH, "validation_loss", "EarlyStopping"),
        KeyError,
        ["EarlyStopping", "did you mean 'validation/loss'?"],
    ),
    "valid_loss, no validation": (
        lambda: find_metric(LOGS, "valid_loss", "EarlyStopping"),
        KeyError,
        ["did you mean 'validation/loss'?", "fm.fit(…, validation=…)"],
    ),
    "Best": (lambda: fm.Best("val_loss"), ValueError, ["Best.metric must be", "write 'validation/loss'"]),
    "EarlyStopping": (
        lambda: fm.EarlyStopping("val_acc"),
        ValueError,
        ["EarlyStopping.metric must be", "write 'validation/accuracy'"],
    ),
    # attacks and regions
    "eps": (lambda: fm.PGD(eps=0.1, alpha=0.1, steps=3), TypeError, ["'eps'", "use region=fm.LinfBall(0.1)."]),
    "alpha": (lambda: fm.PGD(LINF, alpha=0.1, steps=3), TypeError, ["'alpha'; use step_size=…"]),
    "num_steps": (lambda: fm.PGD(LINF, 0.1, num_steps=3), TypeError, ["'num_steps'; use steps=…"]),
    "iters": (lambda: fm.PGD(LINF, 0.1, iters=3), TypeError, ["use steps=…"]),
    "nb_iter": (lambda: fm.PGD(LINF, 0.1, nb_iter=3), TypeError, ["use steps=…"]),
    "steps twice": (lambda: fm.PGD(LINF, 0.1, nb_iter=3, steps=3), TypeError, ["PGD has no field 'nb_iter'. Its"]),
    "radius": (lambda: fm.L2Ball(radius=0.1), TypeError, ["use eps=…"]),
    "epsilon": (lambda: fm.L2Ball(epsilon=0.1), TypeError, ["use eps=…"]),
    "clip_min": (lambda: fm.FGSM(clip_min=0), TypeError, ["fm.LinfBall(0.1) & fm.Box(0, 1)"]),
    "clip_max beside a region": (
        lambda: fm.FGSM(LINF, clip_max=1),
        TypeError,
        ["it belongs to region=fm.LinfBall(0.1) & fm.Box(0, 1)."],
    ),
    "eps of an epsilon": (lambda: fm.models.LayerNorm(3, eps=1e-5), TypeError, ["use epsilon=…"]),
    "steps of robustness": (
        lambda: fm.robustness(fm.init(classifier(), jax.random.key(0)), (X, Y), LINF, steps=3),
        TypeError,
        ["steps is no option of `robustness`", "fm.PGD(region, step_size=…, steps=…)"],
    ),
    "swapped": (
        lambda: fm.Adversarial(fm.FGSM(LINF), classifier()),
        TypeError,
        ["got the attack FGSM", "fm.Adversarial(system, attack)"],
    ),
    # methods
    "training_step": (method("training_step"), NameError, ["`training_step` is not a verb", "`loss(", "`losses("]),
    "validation_step": (method("validation_step"), NameError, ["`metrics("]),
    "test_step": (method("test_step"), NameError, ["`metrics("]),
    "predict_step": (method("predict_step"), NameError, ["`forward("]),
    "optimizer_step": (method("optimizer_step"), NameError, ["`update("]),
    "configure_callbacks": (method("configure_callbacks"), NameError, ["callbacks=[…]"]),
    "train_dataloader": (method("train_dataloader"), NameError, ["fm.fit(system, data, validation=…)"]),
    "on_train_epoch_end": (method("on_train_epoch_end"), NameError, ["`on(event: fm.EpochEnd, callback: Mine, run)`"]),
    # components
    "game without losses": (
        unfit(Duel(Linear(4, 1), Linear(4, 1)), X),
        TypeError,
        ["Duel has no method of `losses`", "'one', a Linear,", "`losses(system: Duel, batch, mode)`"],
    ),
    "losses of a model": (
        unfit(Lossy(Linear(4, 3))),
        TypeError,
        ["Lossy has a method of `losses`", "`class Lossy(fm.System)`"],
    ),
    "assignment in forward": (
        lambda: fm.init(Keeping(Linear(4, 3)), jax.random.key(0))(X),
        dataclasses.FrozenInstanceError,
        ["Keeping.last", "a tree is immutable", "fm.Buffer", "fm.record(", "no field 'last'"],
    ),
    "undeclared part": (
        undeclared(fm.models.Dense(4, 3)),
        dataclasses.FrozenInstanceError,
        ["no field 'part'", "`part: fm.models.Dense`."],
    ),
    "undeclared array": (undeclared(X), dataclasses.FrozenInstanceError, ["`part: jax.Array`."]),
    "undeclared list": (undeclared([net()]), dataclasses.FrozenInstanceError, ["`part: list[Net]`."]),
    "undeclared number": (undeclared({"a": 1.0}), dataclasses.FrozenInstanceError, ["`part: dict[str, float]`."]),
    "undeclared in __post_init__": (
        keeping_in_post_init,
        dataclasses.FrozenInstanceError,
        ["no field 'part'", "`part: fm.models.Flatten`", "`__post_init__`"],
    ),
    # calls of `fit`, callbacks and schedules
    "fit(system, train, val)": (unfit(classifier(), (X, Y), (X, Y)), TypeError, ["fm.fit(state, data, validation=…)"]),
    "monitor": (lambda: fm.EarlyStopping(monitor="loss"), TypeError, ["EarlyStopping has no", "'monitor'; use metric=…"]),
    "monitor of ReduceOnPlateau": (lambda: fm.callbacks.ReduceOnPlateau(monitor="loss"), TypeError, ["use metric=…"]),
    "dirpath": (lambda: fm.Checkpoint(dirpath="a"), TypeError, ["Checkpoint has no", "use directory=…"]),
    "monitor of Checkpoint": (lambda: fm.Checkpoint("a", monitor="loss"), TypeError, ['keep=fm.Best("validation/loss")']),
    "save_top_k": (lambda: fm.Checkpoint("a", save_top_k=2), TypeError, ['keep=fm.Best("validation/loss")']),
    "warmup_steps": (lambda: fm.warmup(1e-3, warmup_steps=2), TypeError, ["warmup has no", "use steps=…"]),
    "warmup_steps of cosine": (lambda: fm.cosine(1e-3, warmup_steps=2), TypeError, ["use warmup=…"]),
    # namespaces
    "Linear": (lambda: fm.models.Linear, AttributeError, ["'fulmen.models'", "use fm.models.Dense."]),
    "ReLU": (lambda: fm.models.ReLU, AttributeError, ["use jax.nn.relu."]),
    "Sequential": (lambda: fm.models.Sequential, AttributeError, ["use fm.models.Chain."]),
    "Conv2d": (lambda: fm.models.Conv2d, AttributeError, ["use fm.models.Conv."]),
    "misspelt": (lambda: fm.metric_types.Calibratoin, AttributeError, ["dir(fm.metric_types)"]),
    "LightningModule": (lambda: fm.LightningModule, AttributeError, ["fm.Model", "`loss`", "fm.System for several"]),
    # optimizers
    "no lr of a plan's": (
        optimized(net(), planned),
        TypeError,
        ["planned needs a learning rate", "`def optimizer(plan: fm.Plan)`"],
    ),
    "missing player": (
        optimized(Fair(Linear(4, 1), Linear(4, 1)), {"two": optax.adam}, X, lr=1e-3),
        ValueError,
        ["'one.", "'one': optax.adam"],
    ),
    "missing part of a part": (
        optimized(fm.Classifier(Net(Linear(4, 3))), {"model.layer.bias": optax.adam}, lr=1e-3),
        ValueError,
        ["'model.layer.weight': optax.adam"],
    ),
    "schedule in optax": (
        optimized(net(), chained()),
        TypeError,
        ["Cosine(peak=0.001", "lambda lr: optax.chain(…, optax.adam(lr))", "lr=fm.cosine(1e-3)"],
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), WRONG.values(), ids=WRONG)
def test_a_name_of_another_library_is_answered_with_what_to_write(call, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_answer(call, error, words)


@pytest.mark.parametrize("space", [fm, fm.models], ids=lambda space: space.__name__)
def test_names_that_tools_look_for_are_not_searched_for(space, monkeypatch):
    monkeypatch.setattr(difflib, "get_close_matches", None)
    assert not hasattr(space, "__wrapped__")


def test_the_plan_is_not_mentioned_to_a_constructor_without_learning_rate():
    with pytest.raises(TypeError, match=r"adam needs a learning rate: write lr=1e-3") as caught:
        optimized(net(), optax.adam)()
    assert "plan" not in str(caught.value)


def test_float64_labels_are_refused_without_a_warning_that_advises_float32():
    with pytest.raises(TypeError, match=r"Write y\.astype\(np\.int32\)"):
        fm.setup(classifier(), (X, Y.astype(np.float64)), **{k: RUN[k] for k in ("optimizer", "lr")}, steps=1)
