"""Bad input gets an error that names the field, what was expected and what came."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net

import fulmen as fm
from fulmen import dispatch

X, Y = data(40)
ADAM = dict(optimizer=optax.adam, lr=1e-3)


def said(error, *words):
    """A context that expects an error whose message has all the words, and is short enough to be read."""

    class Expect:
        def __enter__(self):
            return self

        def __exit__(self, kind, value, trace):
            assert kind is not None and issubclass(kind, error), f"{error} was expected, {kind} came: {value}"
            text = "\n".join([str(value), *getattr(value, "__notes__", ())])
            for word in words:
                assert word in text, f"{word!r} is missing in: {text}"
            assert len(text.splitlines()) < 25
            return True

    return Expect()


def classifier():
    return fm.Classifier(fm.models.Dense(4, 3))


def with_nan(value):
    x = X.copy()
    x[3, 2] = value
    return x


DATA = [
    ("lengths", (X, Y[:-1]), ValueError, ["x 40", "y 39"]),
    ("empty", (X[:0], Y[:0]), ValueError, ["empty", "x, y"]),
    ("nan", (with_nan(np.nan), Y), ValueError, ["x", "finite", "nan", "[3, 2]"]),
    ("infinity", (with_nan(np.inf), Y), ValueError, ["x", "finite", "inf", "[3, 2]"]),
    ("out of range", (X, Y + 1), ValueError, ["y", "3", "0", "2"]),
    ("negative", (X, Y - 1), ValueError, ["y", "-1"]),
    ("float labels", (X, Y.astype(np.float32)), (TypeError, ValueError), ["y", "integer", "float32"]),
    ("shape of labels", (X, np.stack([Y, Y, Y, Y], 1)), ValueError, ["y", "(40, 4)", "3"]),
    ("object", (X.astype(object), Y), TypeError, ["x", "numbers", "object"]),
    ("string", (X, Y.astype(str)), TypeError, ["y", "numbers", "<U"]),
    ("no array", (X.tolist(), Y), TypeError, ["x", "array", "list"]),
    ("dict of inputs", (dict(a=X, b=X), Y), TypeError, ["x", "got dict", "fm.Labeled(dict(a=…, b=…), y)"]),
    ("tuple of inputs", ((X, X), Y), TypeError, ["x", "got tuple", "fm.Labeled((…, …), y)"]),
    ("size of input", (X[:, :3], Y), ValueError, ["4", "3", "Dense"]),
    ("no labels", X, (TypeError, ValueError), ["(x, y)", "an Unlabeled"]),
    ("four arrays", (X, Y, Y, Y), ValueError, ["(x, y)", "4"]),
]


@pytest.mark.parametrize("verb", [fm.setup, fm.fit], ids=["setup", "fit"])
@pytest.mark.parametrize(("raw", "error", "words"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_data(raw, error, words, verb):
    options = dict(epochs=1, progress=False, batch_size=8) if verb is fm.fit else {}
    with said(error, *words):
        verb(classifier(), raw, **ADAM, **options)


@pytest.mark.parametrize(("raw", "error", "words"), [d[1:] for d in DATA[:8]], ids=[d[0] for d in DATA[:8]])
def test_data_for_evaluation(raw, error, words):
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(error, *words):
        fm.evaluate(state, raw)


@pytest.mark.parametrize("verb", [fm.evaluate, fm.predict], ids=["evaluate", "predict"])
def test_a_fresh_component(verb):
    with said(ValueError, "weight", "fm.setup", "fm.init", "Classifier"):
        verb(classifier(), (X, Y))


def test_a_component_in_the_place_of_a_state():
    with said(TypeError, "Classifier", "fm.setup"):
        fm.train_step(classifier(), (X, Y))
    with said(TypeError, "fm.setup"):
        fm.steps(classifier(), (X, Y))
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(TypeError, "state.system"):
        fm.setup(state, (X, Y), **ADAM)
    with said(TypeError, "optimizer", "state.system"):
        fm.fit(state, (X, Y), epochs=1, optimizer=optax.adam)


def test_the_same_layer_at_two_paths():
    layer = Linear(4, 3)
    with said(ValueError, "'one.layer'", "'two.layer'", "Linear"):
        fm.setup(Pair(Net(layer), Net(layer)), (X, Y), **ADAM)


def test_the_same_array_at_two_paths():
    weight = jnp.zeros((4, 3))
    layers = [Linear(4, 3, weight, jnp.zeros(3)), Linear(4, 3, weight, jnp.zeros(3))]
    with said(ValueError, "'one.layer.weight'", "'two.layer.weight'"):
        fm.setup(Pair(*map(Net, layers)), (X, Y), **ADAM)


def test_a_field_whose_kind_is_unclear():
    class Unclear(fm.Model):
        layer: Linear
        thing: object

    with said(TypeError, "Unclear.thing", "fm.static()", "fm.hyper()"):
        fm.setup(Unclear(Linear(4, 3), 3), (X, Y), **ADAM)


def test_no_optimizer():
    with said(ValueError, "no optimizer", "optimizer=optax.adam, lr=1e-3", "configure_optimizers"):
        fm.setup(classifier(), (X, Y))


@pytest.mark.parametrize("axes", [2, 3])
def test_a_loss_that_is_no_number(axes):
    class Wide(Net):
        pass

    @dispatch
    def loss(wide: Wide, batch: fm.Labeled):
        z = wide(batch.x)
        return z if axes == 2 else z[None]

    with said(ValueError, "Wide", "one per example"):
        fm.setup(Wide(Linear(4, 3)), (X, Y), **ADAM)


def test_a_missing_method():
    class Silent(fm.Model):
        layer: Linear

    with said(
        TypeError,
        "loss(Silent, Labeled)",
        "@dispatch",
        "def loss(silent: Silent, batch: fm.Labeled)",
        "fm.Classifier(model)",
    ):
        fm.setup(Silent(Linear(4, 3)), (X, Y), **ADAM)


def test_a_method_for_another_batch():
    class Labelled(fm.Model):
        layer: Linear

    @dispatch
    def loss(model: Labelled, batch: fm.Labeled):
        return 0.0

    with said(TypeError, "loss(Labelled, Unlabeled)", "For Labelled there is loss(Labelled, Labeled).", "Write one"):
        fm.loss(Labelled(Linear(4, 3)), X)


@pytest.mark.parametrize("name", ["train_step", "evaluate", "predict", "losses"])
def test_the_data_before_the_component(name):
    verb = getattr(fm, name)
    with pytest.raises(TypeError) as caught:
        verb((X, Y), net())
    assert f"The order of the arguments is {name}(" in str(caught.value) and "Write one" not in str(caught.value)


def test_an_ambiguous_method(verbs_restored):
    class Picture(fm.Labeled):
        pass

    class Special(Net):
        pass

    @dispatch
    def loss(net: Special, batch: fm.Labeled):
        return 0.0

    @dispatch
    def loss(net: Net, batch: Picture):
        return 1.0

    component = fm.init(Special(Linear(4, 3)), jax.random.key(0))
    with said(TypeError, "ambiguous", "test_bad_input.py:", "special: Special", "Picture"):
        fm.loss(component, Picture(X, Y))


def test_a_verb_misspelt():
    with said(NameError, "`forwad`", "did you mean `forward`"):

        @dispatch
        def forwad(net: Net, x):
            return x


def test_a_keyword_where_dispatch_needs_a_position():
    with said(TypeError, "position", "`batch=`", "loss(component, batch"):
        fm.loss(net(), batch=fm.Labeled(X, Y))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fm.FGSM(fm.LinfBall(-0.1)), ["eps", "-0.1"]),
        (lambda: fm.PGD(fm.LinfBall(0.1), step_size=0.01, steps=0), ["steps", "0"]),
        (lambda: fm.PGD(fm.LinfBall(0.1), step_size=-0.01, steps=3), ["step_size", "-0.01"]),
        (lambda: fm.FGSM(fm.LinfBall(0.1) & fm.Box(1.0, 0.0)), ["lo", "hi"]),
    ],
)
def test_attacks_that_make_no_sense(make, words):
    with said(ValueError, *words):
        fm.setup(fm.Adversarial(classifier(), make()), (X, Y), **ADAM)
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(ValueError, *words):
        fm.evaluate(state, (X, Y), attack=make())


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (fm.LinfBall(0.1), ["got LinfBall(eps=0.1)", "fm.autoattack(region)"]),
        ("pgd", ["got 'pgd'", "fm.PGD(region"]),
        (fm.FGSM, ["write FGSM(…)"]),
    ],
    ids=["region", "name", "class"],
)
def test_what_is_no_attack(attack, words):
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(TypeError, "evaluate: attack must be an Attack", *words):
        fm.evaluate(state, (X, Y), attack=attack)


def test_an_image_outside_the_box():
    attack = fm.FGSM(fm.LinfBall(0.1) & fm.Box(0.0, 1.0))
    with said(ValueError, "0", "1", "x"):
        fm.setup(fm.Adversarial(classifier(), attack), (X, Y), **ADAM)
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(ValueError, "0", "1", "x"):
        fm.evaluate(state, (X, Y), attack=attack)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(epochs=1, batch_size=41), ValueError, ["batch_size", "40", "got 41"]),
        (dict(epochs=1, batch_size=0), ValueError, ["batch_size", "0"]),
        (dict(epochs=0), ValueError, ["epochs", "0"]),
        (dict(epochs=1.5), TypeError, ["epochs", "positive integer", "1.5"]),
        (dict(steps=-1), ValueError, ["steps", "-1"]),
        (dict(), ValueError, ["epochs=", "steps=", "neither"]),
        (dict(epochs=1, steps=1), ValueError, ["epochs", "steps", "both"]),
    ],
)
@pytest.mark.parametrize("of", ["component", "state"])
def test_run_lengths_that_are_not_possible(options, error, words, of):
    component = classifier()
    given = ADAM if of == "component" else {}
    if of == "state":
        component = fm.setup(component, (X, Y), **ADAM)
    with said(error, *words):
        fm.fit(component, (X, Y), progress=False, **given, **options)


def test_a_state_of_another_system(tmp_path):
    state = fm.setup(classifier(), (X, Y), **ADAM)
    fm.save(tmp_path / "state", state)
    other = fm.setup(fm.Classifier(fm.models.Dense(4, 5)), (X, Y), **ADAM)
    with said(ValueError, "weight", "3", "5"):
        fm.load(tmp_path / "state", like=other)
    with said(ValueError, "3", "2"):
        fm.evaluate(fm.setup(fm.Classifier(fm.models.Dense(3, 3)), (X[:, :3], Y), **ADAM), (X[:, :2], Y))


@pytest.mark.parametrize("part", [0.0, 1.0, 0.001])
def test_splits_with_an_empty_part_are_refused(part):
    with said(ValueError, "split", str(part)):
        fm.split((X, Y), part)


def test_paths_that_are_not_there():
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(KeyError, "'wieght'", "weight"):
        fm.replace(state, {"system.model.wieght": 0})


# What methods of the user's own return, and where they are written


class Solo(fm.System):
    """One model; its methods are given in each test."""

    one: Net


def test_a_loss_that_returns_nothing():
    class Silent(Net):
        pass

    @dispatch
    def loss(silent: Silent, batch: fm.Labeled):
        fm.loss.invoke(Net, fm.Labeled)(silent, batch)

    with said(TypeError, "the loss of Silent must be", "got None", "return"):
        fm.setup(Silent(Linear(4, 3)), (X, Y), **ADAM)
    with said(TypeError, "the loss 'one' of Solo must be", "got None", "return"):
        fm.setup(Solo(Silent(Linear(4, 3))), (X, Y), **ADAM)


@pytest.mark.parametrize(("made", "kind"), [(lambda z: dict(one=z), "dict"), (lambda z: (z, z), "tuple")])
def test_a_loss_that_returns_several(made, kind):
    class Several(Net):
        pass

    @dispatch
    def loss(several: Several, batch: fm.Labeled):
        return made(several(batch.x).mean(1))

    with said(TypeError, "the loss of Several must be", f"got a {kind}", "one per example", "`losses`"):
        fm.setup(Several(Linear(4, 3)), (X, Y), **ADAM)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda entry: None, "None"),
        (lambda entry: entry, "f32[32]"),
        (lambda entry: [entry], "[f32[32]]"),
        (lambda entry: dict(main=None), "the loss 'main'"),
    ],
    ids=["none", "array", "list", "entry"],
)
@pytest.mark.parametrize("kind", [fm.System, fm.Game])
def test_losses_that_are_no_dict_of_numbers(made, words, kind):
    class Odd(kind):
        main: Net

    @dispatch
    def losses(odd: Odd, batch):
        return made(fm.loss(odd.main, batch))

    with said(TypeError, "Odd", words):
        fm.setup(Odd(net()), (X, Y), **ADAM)


@pytest.mark.parametrize(("made", "word"), [(lambda batch: None, "None"), (lambda batch: batch.x, "f32[32, 4]")])
def test_augmentations_that_give_no_batch(made, word):
    class Odd(Net):
        pass

    class OddSystem(Solo):
        pass

    class OddAugmentation(fm.augmentations.Augmentation):
        pass

    @dispatch
    def augment(odd: Odd | OddSystem | OddAugmentation, batch, mode):
        return made(batch)

    for component, name in (
        (Odd(Linear(4, 3)), "Odd"),
        (Pair(Odd(Linear(4, 3)), net()), "Odd"),
        (OddSystem(net()), "OddSystem"),
        (fm.Classifier(fm.models.Dense(4, 3), augment=OddAugmentation()), "OddAugmentation"),
    ):
        with said(TypeError, f"`augment` of {name} must return the batch", f"got {word}", "fm.replace(batch, x=…)"):
            fm.setup(component, (X, Y), **ADAM)


def test_methods_inside_the_class():
    class Inside(fm.Model):
        layer: Linear

        def forward(self, x):
            return self.layer(x)

    class Unseen(fm.Classifier):
        def metrics(self, batch):
            return {}

    with said(TypeError, "Inside.forward", "below the class", "@dispatch", "def forward(inside: Inside, …)"):
        fm.setup(fm.Classifier(Inside(Linear(4, 3))), (X, Y), **ADAM)
    report = fm.check(Unseen(fm.models.Dense(4, 3)), (X, Y), **ADAM)
    assert "Unseen.metrics is in the body of the class" in report.errors[0].what


def test_functions_inside_the_class_that_a_method_calls():
    class Both(Net):
        def loss(self, batch):
            return (self(batch.x) ** 2).mean(1)

        def predict(self, x):
            return self(x).argmax(1)

    @dispatch
    def loss(both: Both, batch: fm.Labeled):
        return both.loss(batch)

    state = fm.setup(Both(Linear(4, 3)), (X, Y), **ADAM)
    assert state.system.predict(X).shape == (40,)


def test_a_game_without_an_entry_for_a_player():
    class Half(fm.Game):
        one: Net
        two: Net | fm.Frozen

    @dispatch
    def losses(half: Half, batch):
        return dict(one=fm.loss(half.one, batch))

    with said(ValueError, "Half", "no entry 'two'", "fm.Frozen"):
        fm.setup(Half(net(), net()), (X, Y), **ADAM)
    assert fm.setup(Half(net(), fm.Frozen(net())), (X, Y), **ADAM)


# States and components


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (np.zeros((5, 3), np.float32), "f32[5, 3]"),
        (jnp.zeros(3), "f32[3]"),
        (np.zeros((4, 3), np.int32), "i32[4, 3]"),
        (0.0, "0.0"),
    ],
)
def test_an_array_of_another_shape_in_a_state(value, came):
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(ValueError, "system.model.weight", "f32[4, 3]", came, "fm.setup"):
        fm.replace(state, {"system.model.weight": value})
    assert (fm.replace(state, {"system.model.weight": jnp.ones((4, 3))}).system.model.weight == 1).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: net()(X),
        lambda: fm.loss(net(), (X, Y)),
        lambda: fm.losses(Pair(net(), net()), fm.Labeled(X, Y)),
        lambda: fm.loss(net(), (X, Y), fm.Train(jax.random.key(0))),
        lambda: jax.jit(lambda x: net()(x))(X),
    ],
    ids=["forward", "loss", "losses", "mode", "jit"],
)
def test_a_description_in_the_place_of_a_component(call):
    """The error is NumPy's or JAX's, with a note on the arrays that are not there."""
    with said((TypeError, ValueError), "Linear", "'weight'", "fm.setup", "fm.init"):
        call()


def test_a_models_error_is_kept_where_its_arrays_are_not_drawn():
    class Refuses(fm.Model):
        layer: Linear

    @dispatch
    def forward(model: Refuses, x):
        raise ValueError("x must be odd") from KeyError("even")

    with said(ValueError, "x must be odd", "Refuses", "'layer.layer.weight'", "fm.init"):
        Refuses(net())(X)
    with pytest.raises(ValueError, match="x must be odd") as caught:
        fm.forward(fm.models.Chain(Refuses(net()), net()), X)
    assert str(caught.value) == "x must be odd"
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__notes__[1:] == ["in 'layers.0' of Chain"]


def test_an_error_that_is_not_for_want_of_arrays_stays_as_it_is():
    drawn = fm.init(net(), jax.random.key(0))
    with pytest.raises((TypeError, ValueError), match=r"dot_general|matmul") as caught:
        drawn(X[:, :3])
    assert "fm.init" not in str(caught.value)


FITS = [
    (dict(optimizer="adam", lr=1e-3, steps=1), ["optimizer", "got 'adam'", "optax.adam"]),
    (dict(optimizer={"layer": "adam"}, lr=1e-3, steps=1), ["optimizer", "got 'adam'"]),
    (dict(optimizer=optax.adam, lr=1e-3, epoch=1), ["epoch is no option", "did you mean 'epochs'"]),
    (dict(optimizer=optax.adam, lr=1e-3, steps=1, val=(X, Y)), ["val is no option", "did you mean 'validation'"]),
    (
        dict(optimizer=optax.adam, lr=1e-3, steps=1, metrics=()),
        ["metrics is no option", "Classifier(model, metrics"],
    ),
    (dict(optimizer=optax.adam, learning_rate=1e-3, steps=1), ["learning_rate is no option", "write lr=0.001"]),
    (dict(optimizer=optax.adam, lr=1e-3, steps=1, callbacks=object()), ["callbacks", "a list", "callbacks=[…]"]),
]


@pytest.mark.parametrize(("options", "words"), FITS, ids=lambda v: next(iter(v)) if isinstance(v, list) else "")
def test_options_of_fit(options, words):
    with said(TypeError, *words):
        fm.fit(net(), (X, Y), progress=False, **options)


def test_a_misspelt_option_of_a_states_fit_is_not_taken_for_the_optimizers():
    with said(TypeError, "epoch is no option", "did you mean 'epochs'"):
        fm.fit(fm.setup(net(), (X, Y), **ADAM), (X, Y), epoch=1)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        ("1e-3", ["got '1e-3'", "lr=1e-3"]),
        (dict(layer=1e-4), ["got {'layer': 0.0001}", "optimizer={'layer': fm.optimizers.Optimizer(optax.adam, 0.0001)}"]),
        ([1e-3, 1e-4], ["[0.001, 0.0001]", "fm.Population"]),
    ],
    ids=["text", "dict", "list"],
)
def test_what_is_no_learning_rate(lr, words):
    for make in (
        lambda: fm.setup(net(), (X, Y), optimizer=optax.adam, lr=lr),
        lambda: fm.optimizers.Optimizer(optax.adam, lr),
    ):
        with said(TypeError, "lr", "number", *words):
            make()


def test_schedules_for_each_member_need_the_length_of_the_run():
    with said(ValueError, "cosine needs the length of the run", "steps="):
        fm.setup(fm.Population(net(), 2), (X, Y), optimizer=optax.adam, lr=[fm.cosine(1e-3), fm.cosine(1e-2)])


def test_fields_that_hold_no_component():
    with said(TypeError, "Classifier.metrics must be", "got ('accuracy',)", "write fm.Accuracy()"):
        fm.setup(fm.Classifier(net().layer, metrics=("accuracy",)), (X, Y), **ADAM)
    with said(TypeError, "Classifier.objective must be an Objective", "got sigmoid", "write fm.CrossEntropy()"):
        fm.setup(fm.Classifier(net().layer, jax.nn.sigmoid), (X, Y), **ADAM)


def test_a_number_for_a_key():
    with said(TypeError, "key must be a random key", "7", "jax.random.key(7)"):
        fm.init(net(), 7)


def test_a_figure_that_a_history_does_not_have():
    with said(KeyError, "no 'acuracy'", "did you mean 'accuracy'?", "loss, accuracy"):
        fm.History(loss=np.ones(1), accuracy=np.ones(1))["acuracy"]
    with said(KeyError, "no 'zzz' in the history. It has: loss"):
        fm.History(loss=np.ones(1))["zzz"]


def test_a_state_where_a_component_belongs():
    teacher = fm.setup(classifier(), (X, Y), **ADAM)
    with said(TypeError, "teacher.part must be a component", "state.system"):
        fm.setup(fm.Distillation(fm.Frozen(teacher), classifier()), (X, Y), **ADAM)


def test_a_list_where_a_component_belongs():
    with said(TypeError, "a component must be given, got list", "class Both(fm.System)"):
        fm.setup([net()], (X, Y), **ADAM)


def test_an_init_that_returns_nothing():
    class Forgetful(fm.Model):
        weight: jax.Array | None = None

    @dispatch
    def init(model: Forgetful, key):
        fm.replace(model, weight=jnp.ones(3))

    with said(TypeError, "init must return the component", "got None for a Forgetful", "return fm.replace"):
        fm.fit(fm.Classifier(Forgetful()), (X, Y), epochs=1, progress=False, **ADAM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"progress": "bar"}, ["progress must be True, False or a callback, got 'bar'"]),
        ({"devices": fm.FSDP}, ["got the class FSDP", "devices=fm.FSDP(fm.mesh())"]),
    ],
)
def test_options_of_a_run(options, words):
    with said(TypeError, *words):
        fm.fit(classifier(), (X, Y), epochs=1, **{"progress": False, **options}, **ADAM)


def test_a_list_for_a_tuple():
    with said(TypeError, "got [Accuracy()]", "write a tuple, (Accuracy(),)"):
        fm.setup(fm.Classifier(fm.models.Dense(4, 3), metrics=[fm.Accuracy()]), (X, Y), **ADAM)


def test_a_batch_size_that_a_generator_does_not_have_is_an_error_at_once():
    def batches():
        yield X[:16], Y[:16]

    with said(ValueError, "batch_size must be left out or 16", "got 8"):
        fm.fit(classifier(), batches, epochs=1, batch_size=8, progress=False, **ADAM)


def test_a_logger_that_would_write_nothing():
    class Silent(fm.loggers.Logger):
        pass

    @dispatch
    def log(logger: Silent, record: dict):
        raise AssertionError

    with said(TypeError, "Silent has no method of `log`", "record: fm.loggers.Scalars"):
        fm.fit(classifier(), (X, Y), epochs=1, progress=False, callbacks=[Silent()], **ADAM)


@pytest.mark.parametrize("layer", [fm.models.Dense(4, 3, bias=False), fm.models.Conv(4, 3, bias=True)])
def test_a_switch_for_an_array(layer):
    value = layer.bias
    with said(TypeError, "model.bias must be a number, an array or a component", f"got {value}", f"use_bias={value}"):
        fm.setup(fm.Classifier(layer), (X, Y), **ADAM)


def test_weights_in_a_column():
    with said(ValueError, "weight must have one number per example, (40,)", "(40, 1)"):
        fm.loss(fm.init(classifier(), jax.random.key(0)), (X, Y, np.ones((40, 1), np.float32)))


def test_a_list_of_arrays_that_may_be_a_pair_or_batches():
    model = fm.init(classifier(), jax.random.key(0))
    with said(ValueError, "data must be a tuple (x, y) or batches", "2 arrays", "fm.Unlabeled(x)"):
        fm.predict(model, [X[:20], X[20:]])
    assert fm.predict(model, [fm.Unlabeled(X[:20]), fm.Unlabeled(X[20:])]).shape == (40, 3)
    assert fm.evaluate(model, [X, Y]) == fm.evaluate(model, (X, Y))


def test_a_weight_of_another_shape():
    layer = fm.init(fm.models.Dense(4, 3, weight=jnp.ones((3, 4))), jax.random.key(0))
    with said(ValueError, "Dense(4, 3), weight must have the shape", "(4, 3), got (3, 4)"):
        layer(X)


def test_a_number_in_a_state_is_within_its_limits():
    state = fm.setup(fm.Classifier(net(), fm.CrossEntropy(smoothing=0.1)), (X, Y), **ADAM)
    assert fm.replace(state, {"system.objective.smoothing": 0.2}).system.objective.smoothing == np.float32(0.2)
    with said(ValueError, "CrossEntropy.smoothing must be at least 0 and below 1, got 1.5"):
        fm.replace(state, {"system.objective.smoothing": 1.5})


def test_a_protocol_does_not_dispatch():
    @typing.runtime_checkable
    class Scored(typing.Protocol):
        def score(self): ...

    before = fm.channels_first.methods if hasattr(fm, "channels_first") else fm.attacks.channels_first.methods
    try:
        with pytest.warns(UserWarning, match=r"is for every type, since a Protocol such as Scored does not dispatch"):

            @fm.attacks.channels_first.dispatch
            def first(model: Scored):
                return True
    finally:
        fm.attacks.channels_first.restore(before)


def test_a_contract_without_a_parameter_for_its_context():
    with said(TypeError, "must have a parameter that takes it, called 'mode'", "write mode=Mode()"):

        @fm.verb(context=fm.Mode)
        def act(model):
            """Nothing."""


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (dict(model=None), TypeError, ["generate takes a model or a state, got the system LanguageModel", "system.model"]),
        (dict(key=7), TypeError, ["key must be a random key, got the number 7", "jax.random.key(7)"]),
        (dict(temperature=-1.0), ValueError, ["temperature must be at least 0, got -1.0"]),
        (dict(temperature=np.nan), ValueError, ["temperature must be at least 0, got nan"]),
    ],
)
def test_arguments_of_generate(given, error, words):
    model = fm.models.Transformer(5, 8, 8, 2, 1)
    given = {"model": model, "key": jax.random.key(0), "temperature": 1.0, **given}
    given["model"] = given["model"] or fm.LanguageModel(model)
    with said(error, *words):
        fm.models.generate(given["model"], jnp.array([[1]]), 2, given["key"], temperature=given["temperature"])


def test_signs_as_a_switch():
    with said(TypeError, "signs must be a tuple", "got False", "signs=()"):
        fm.robustness(fm.init(classifier(), jax.random.key(0)), (X, Y), fm.LinfBall(0.1), signs=False, progress=False)
