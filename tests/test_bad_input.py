"""Bad input gets an error that names the field, what was expected and what came."""

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
            for word in words:
                assert word in str(value), f"{word!r} is missing in: {value}"
            assert len(str(value).splitlines()) < 25
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
    ("float64", (X.astype(np.float64), Y), TypeError, ["x", "float32", "float64", "astype"]),
    ("object", (X.astype(object), Y), TypeError, ["x", "numbers", "object"]),
    ("string", (X, Y.astype(str)), TypeError, ["y", "numbers", "<U"]),
    ("no array", (X.tolist(), Y), TypeError, ["x", "array", "list"]),
    ("size of input", (X[:, :3], Y), ValueError, ["4", "3", "Dense"]),
    ("no labels", X, (TypeError, ValueError), ["(x, y)", "Unlabeled"]),
    ("four arrays", (X, Y, Y, Y), ValueError, ["(x, y)", "4"]),
]


@pytest.mark.parametrize("verb", [fm.setup, fm.fit], ids=["setup", "fit"])
@pytest.mark.parametrize(("raw", "error", "words"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_data(raw, error, words, verb):
    options = dict(epochs=1, progress=False, batch_size=8) if verb is fm.fit else {}
    with said(error, *words):
        verb(classifier(), raw, **ADAM, **options)


@pytest.mark.parametrize(("raw", "error", "words"), [d[1:] for d in DATA[:9]], ids=[d[0] for d in DATA[:9]])
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

    with said(TypeError, "loss(Silent, Labeled)", "@dispatch", "def loss(silent: Silent, batch: Labeled)"):
        fm.setup(Silent(Linear(4, 3)), (X, Y), **ADAM)


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
        (dict(epochs=1, batch_size=41), ValueError, ["batch_size 41", "40"]),
        (dict(epochs=1, batch_size=0), ValueError, ["batch_size", "0"]),
        (dict(epochs=0), ValueError, ["epochs", "0"]),
        (dict(steps=-1), ValueError, ["steps", "-1"]),
        (dict(), ValueError, ["epochs=", "steps=", "neither"]),
        (dict(epochs=1, steps=1), ValueError, ["epochs", "steps", "both"]),
    ],
)
@pytest.mark.parametrize("of", ["component", "state"])
def test_how_long(options, error, words, of):
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
def test_splits_that_leave_nothing(part):
    with said(ValueError, "split", str(part)):
        fm.split((X, Y), part)


def test_paths_that_are_not_there():
    state = fm.setup(classifier(), (X, Y), **ADAM)
    with said(KeyError, "'wieght'", "weight"):
        fm.replace(state, {"system.model.wieght": 0})
