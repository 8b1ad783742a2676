"""Each term against PyTorch's and scikit-learn's, examples' and classes' weights, and weights that follow a schedule."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Compilations, Linear

import fulmen as fm
from fulmen import dispatch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sklearn.metrics

Z = np.array([[1, -2, 0.5], [0, 3, -1], [2, 2, -4], [-1, 0.25, 0.75]], np.float32)
Y = np.array([0, 2, 1, 2], np.int32)
P = np.array([[0.2, 0.5, 0.3], [0, 1, 0], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5]], np.float32)
CLASS_WEIGHTS = np.array([0.5, 1, 2], np.float32)
RNG = np.random.default_rng(0)


def predict(outputs, y, model=None, weight=None):
    return fm.Prediction(model, outputs, fm.Labeled(None, y, weight=weight))


def sizes(outputs, y):
    return predict(jax.ShapeDtypeStruct(outputs, np.float32), y)


def train(step):
    return fm.Train(jax.random.key(0), step)


# Values


@pytest.mark.parametrize(
    ("term", "y", "expected"),
    [
        (fm.CrossEntropy(class_weights=CLASS_WEIGHTS), Y, [0.252298, 8.131768, 0.694386, 1.153569]),
        (fm.CrossEntropy(0.2, CLASS_WEIGHTS), Y, [0.586245, 7.154121, 1.517532, 1.149105]),
        (fm.CrossEntropy(0.2, CLASS_WEIGHTS), P, [2.308819, 0.701413, 9.614164, 1.135713]),
        (fm.BinaryCrossEntropy(), P > 0.4, [1.471422, 0.351665, 2.757335, 0.508691]),
        (fm.BinaryCrossEntropy(positive_weight=3.0), P > 0.4, [2.889374, 0.384057, 5.436102, 0.766605]),
        (fm.MAE(), P, [1.166667, 1.0, 2.866667, 0.5]),
        (fm.objectives.Huber(delta=0.7), P, [0.613333, 0.536667, 1.761667, 0.220417]),
        (fm.objectives.KL(), P, [1.124944, 0.065884, 4.855354, 0.099564]),
    ],
)
def test_values_agree_with_pytorch(term, y, expected):
    """The figures are those of PyTorch 2.13, without reduction."""
    found = jax.jit(fm.loss)(term, predict(Z, y))
    assert found.shape == (4,) and found.dtype == np.float32 and type(term).per_example
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_binary_cross_entropy_of_one_output():
    z, y = Z[:, 0], (Y > 0).astype(np.int32)
    found = fm.loss(fm.BinaryCrossEntropy(), predict(z, y))
    assert found.shape == (4,)
    expected = sklearn.metrics.log_loss(y, np.asarray(jax.nn.sigmoid(z), np.float64))
    assert float(found.mean()) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(fm.loss(fm.BinaryCrossEntropy(), predict(z * 1e30, y))).all()


def test_hinge_of_several_classes_and_of_two():
    found = fm.loss(fm.objectives.Hinge(), predict(Z, Y.astype(np.uint8)))
    np.testing.assert_allclose(found, [0.5, 5, 1, 0.5])
    assert float(found.mean()) == pytest.approx(sklearn.metrics.hinge_loss(Y, Z, labels=[0, 1, 2]))
    signs = np.array([1, -1, -1, 1])
    found = fm.loss(fm.objectives.Hinge(), predict(Z[:, 0], signs))
    assert float(found.mean()) == pytest.approx(sklearn.metrics.hinge_loss(signs, Z[:, 0]))


def test_kl_is_cross_entropy_minus_entropy_with_the_same_gradient():
    slopes = [jax.grad(lambda z, t=t: fm.loss(t, predict(z, P)).sum())(Z) for t in (fm.objectives.KL(), fm.CrossEntropy())]
    np.testing.assert_allclose(*slopes, atol=1e-6)
    np.testing.assert_allclose(fm.loss(fm.objectives.KL(), predict(np.log(P + 1e-30), P)), 0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda p: fm.loss(fm.objectives.KL(), predict(Z, p)).sum())(P)).all()


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 5), st.floats(-8, 8))
def test_huber_is_a_square_near_and_a_line_beyond(delta, error):
    found = float(fm.loss(fm.objectives.Huber(delta), predict(np.float32([error]), np.zeros(1, np.float32)))[0])
    size = abs(error)
    expected = size**2 / 2 if size <= delta else delta * (size - delta / 2)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3)])
@pytest.mark.parametrize("term", [fm.MAE(), fm.objectives.Huber(), fm.BinaryCrossEntropy()])
def test_the_mean_is_over_all_but_the_first_axis(term, shape):
    z, y = RNG.normal(size=shape).astype(np.float32), RNG.uniform(size=shape).astype(np.float32)
    flat = fm.loss(term, predict(z.reshape(-1), y.reshape(-1)))
    np.testing.assert_allclose(fm.loss(term, predict(z, y)), np.asarray(flat).reshape(4, -1).mean(1), rtol=1e-5)


class Net(fm.Model):
    one: Linear
    gain: jax.Array


def test_l1_is_the_sum_of_sizes_of_the_kernels():
    model = Net(Linear(2, 2, jnp.array([[1.0, -2.0], [0.5, 0.0]]), jnp.array([3.0, -3.0])), jnp.float32(7.0))
    assert float(fm.loss(fm.L1(), predict(Z, Y, model))) == 3.5
    assert float(fm.loss(fm.L1(kernels_only=False), predict(Z, Y, model))) == 16.5
    assert float(fm.loss(fm.L1(), predict(Z, Y, fm.Frozen(model)))) == 0


class Several(fm.Model):
    """Two of a block, side by side along a leading axis."""

    leading_axes = 1
    block: Linear


def test_leading_axes_do_not_count_for_kernels():
    model = Net(Linear(2, 2, jnp.ones((2, 2)), jnp.ones(2)), jnp.float32(1.0))
    both = fm.models.Chain(model, Several(Linear(2, 2, jnp.ones((3, 2, 2)), jnp.ones((3, 2)))))
    assert float(fm.loss(fm.L1(), predict(Z, Y, both))) == 4 + 12
    assert float(fm.loss(fm.L2(), predict(Z, Y, both.layers[1]))) == 6
    marks = jax.tree.leaves(fm.objectives.kernels(both))
    assert {path: mark for (path, _), mark in zip(_arrays(both), marks, strict=True)} == {
        ".layers[0].one.weight": True,
        ".layers[0].one.bias": False,
        ".layers[0].gain": False,
        ".layers[1].block.weight": True,
        ".layers[1].block.bias": False,
    }
    assert jax.tree.structure(fm.objectives.kernels(both)) == jax.tree.structure(both)


def test_the_mask_of_kernels_keeps_empty_containers():
    block = fm.models.BasicBlock(2, 2)  # its shortcut is an empty chain
    assert jax.tree.structure(fm.objectives.kernels(block)) == jax.tree.structure(block)


def _arrays(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_weight_decay_with_the_mask_of_kernels_does_not_change_biases():
    system = fm.Classifier(Linear(3, 3), 0.0 * fm.CrossEntropy(), metrics=())
    state = fm.setup(system, (Z, Y), optimizer=optax.adamw, lr=0.1, weight_decay=0.5, mask=fm.objectives.kernels)
    state = fm.replace(state, {"system.model.bias": jnp.ones(3)})
    new, _ = fm.train_step(state, (Z, Y))
    np.testing.assert_allclose(new.system.model.weight, 0.95 * state.system.model.weight, rtol=1e-6)
    np.testing.assert_array_equal(new.system.model.bias, np.ones(3))


# Weights of examples and classes


TERMS = [
    (fm.CrossEntropy(0.1, CLASS_WEIGHTS), Y),
    (fm.objectives.KL(), P),
    (fm.objectives.Hinge(), Y),
    (fm.BinaryCrossEntropy(), P),
    (fm.MAE(), P),
    (fm.objectives.Huber(), P),
    (fm.MSE(), P),
]


@pytest.mark.parametrize(("term", "y"), TERMS)
def test_examples_are_weighted(term, y):
    weight = np.array([1, 0, 0.5, 2], np.float32)
    each = np.asarray(fm.loss(term, predict(Z, y)))
    system = fm.Classifier(fm.models.Flatten(), term, metrics=())
    loss = jax.jit(fm.loss)
    found = loss(system, fm.Labeled(Z, y, weight=weight))
    assert float(found) == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-5)
    padded = np.where(weight[:, None] == 0, np.nan, Z).astype(np.float32)
    assert float(loss(system, fm.Labeled(padded, y, weight=weight))) == pytest.approx(float(found), rel=1e-6)


def test_class_weights_are_data_and_equal_weights_are_none():
    np.testing.assert_allclose(
        fm.loss(fm.CrossEntropy(0.1, np.ones(3)), predict(Z, Y)), fm.loss(fm.CrossEntropy(0.1), predict(Z, Y)), rtol=1e-6
    )
    system = fm.Classifier(Linear(3, 3), fm.CrossEntropy(class_weights=CLASS_WEIGHTS))
    state = fm.setup(system, (Z, Y), optimizer=optax.sgd, lr=0.1)
    before = fm.train_step(state, (Z, Y))[1]["loss"]
    changed = fm.replace(state, {"system.objective.class_weights": jnp.array([4.0, 4, 4])})
    with Compilations() as compiled:
        after = fm.train_step(changed, (Z, Y))[1]["loss"]
    assert len(compiled) == 0 and before != after
    assert [leaf.role for leaf in fm.leaves(state.system) if "class_weights" in leaf.path] == ["hyperparameter"]


# Weights that follow a schedule


RISING = optax.linear_schedule(0.0, 2.0, 10)


def test_a_schedule_of_the_step_as_a_weight():
    term = RISING * (fm.MSE() + 0.5 * fm.MAE())
    mse, mae = (fm.loss(each, predict(Z, P)) for each in (fm.MSE(), fm.MAE()))
    for step, weight in [(0, 0), (5, 1), (10, 2), (99, 2)]:
        found = fm.loss(term, predict(Z, P), train(step))
        np.testing.assert_allclose(found, weight * (mse + 0.5 * mae), rtol=1e-6)
    np.testing.assert_allclose(fm.loss(term, predict(Z, P), fm.Eval()), 2 * (mse + 0.5 * mae), rtol=1e-6)
    assert list((fm.objectives.KL() + term).by_name()) == ["kl", "mse", "mae"]
    np.testing.assert_allclose(fm.loss(fm.MSE() * RISING, predict(Z, P), train(5)), mse, rtol=1e-6)
    np.testing.assert_allclose(fm.loss(3 * (RISING * fm.MSE()), predict(Z, P), train(5)), 3 * mse, rtol=1e-6)


def test_a_weight_follows_the_step_in_training_and_is_the_limit_in_evaluation():
    system = fm.Classifier(Linear(3, 3), fm.CrossEntropy() + RISING * (2 * fm.L2() + fm.MSE()).named("rest"), metrics=())
    state = fm.setup(system, (Z, P), optimizer=fm.frozen)
    seen = []
    for _ in range(3):
        state, logs = fm.train_step(state, (Z, P))
        seen.append(float(logs["loss/rest"]))
    assert seen[0] == 0 and seen[2] == pytest.approx(2 * seen[1], rel=1e-6)
    assert fm.evaluate(state, (Z, P))["loss/rest"] == pytest.approx(10 * seen[1], rel=1e-5)
    _, history = fm.fit(state, (Z, P), epochs=2, progress=False)
    np.testing.assert_allclose(history["loss/rest"], [3 * seen[1], 4 * seen[1]], rtol=1e-5)


def test_the_weight_outside_training_can_be_given():
    term = fm.objectives.Scheduled(fm.MSE(), lambda step: 0.1 * step, evaluation=0.25)
    fm.validate(term)
    np.testing.assert_allclose(fm.loss(term, predict(Z, P)), 0.25 * fm.loss(fm.MSE(), predict(Z, P)), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"does not converge .* Give it: fm.objectives.Scheduled\(objective, schedule, evaluation="
    ):
        fm.validate((lambda step: 0.1 * step) * fm.MSE())
    fm.validate((lambda step: 0.5**step) * fm.MSE())
    fm.validate(optax.cosine_decay_schedule(1.0, 1000) * fm.MSE())


def test_a_custom_term_may_use_the_step():
    class Late(fm.Objective):
        """0 before step 3."""

    @dispatch
    def loss(term: Late, prediction, mode):
        return jnp.where(getattr(mode, "step", 0) < 3, 0.0, 1.0)

    term = fm.MSE() + 2 * Late()
    mse = fm.loss(fm.MSE(), predict(Z, P))
    np.testing.assert_allclose(fm.loss(term, predict(Z, P), train(2)), mse)
    np.testing.assert_allclose(fm.loss(term, predict(Z, P), train(3)), mse + 2)


def test_scheduled_terms_print():
    def rising(step):
        return step

    assert repr(rising * fm.L2()) == "rising * L2()"
    assert repr(rising * (fm.L2() + fm.L1())) == "rising * (L2() + L1())"
    assert repr(0.5 * (rising * fm.L2())) == "0.5 * rising * L2()"
    assert (
        repr(fm.objectives.Scheduled(fm.L2(), rising, 0.5)) == "Scheduled(objective=L2(), schedule=rising, evaluation=0.5)"
    )


# Bad input


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            fm.CrossEntropy(class_weights=np.array([1, -1.0])),
            r"class_weights must be at least 0, got -1 in",
        ),
        (fm.BinaryCrossEntropy(positive_weight=0.0), "positive_weight must be above 0, got 0"),
        (fm.objectives.Huber(delta=-1.0), "delta must be above 0, got -1"),
        (
            fm.objectives.Scheduled(fm.MSE(), lambda step: jnp.log(step)),
            "schedule must be a finite number at step 0, got -inf",
        ),
    ],
)
def test_field_values_out_of_range(term, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(term)


def test_a_schedule_of_the_plan_is_refused_as_a_weight():
    with pytest.raises(
        TypeError, match=r"got Cosine, a function of the plan: write `schedule\(fm.Plan\(total_steps=…\)\) \* term`"
    ):
        fm.cosine(1.0) * fm.MSE()
    with pytest.raises(TypeError):
        fm.MSE() * np.float32


def test_class_weights_in_a_list():
    with pytest.raises(TypeError, match=r"class_weights must be .*an array, got .*jnp.array"):
        fm.validate(fm.CrossEntropy(class_weights=[1.0, 2.0]))


@pytest.mark.parametrize(
    ("term", "outputs", "y", "error", "message"),
    [
        (
            fm.CrossEntropy(class_weights=np.ones(2)),
            (4, 3),
            Y,
            ValueError,
            r"class_weights must have .*\(3,\), got shape \(2,\)",
        ),
        (fm.BinaryCrossEntropy(), (4,), np.array([1, -1, 1, 1]), ValueError, r"got numbers from -1 to 1\. .*\(y \+ 1\) / 2"),
        (
            fm.BinaryCrossEntropy(),
            (4, 1),
            np.ones(4, int),
            ValueError,
            r"BinaryCrossEntropy, y must have .*\(4, 1\), .* outputs\[..., 0\]",
        ),
        (fm.BinaryCrossEntropy(), (4,), np.full(4, np.nan), ValueError, "BinaryCrossEntropy: y must be from 0 to 1"),
        (
            fm.objectives.KL(),
            (4, 3),
            Y,
            TypeError,
            r"KL: y must be probabilities, got integer labels: use CrossEntropy\(\)",
        ),
        (fm.objectives.KL(), (4, 3), 2 * P, ValueError, "KL.* y must be probabilities.* add up to 2 to 2"),
        (
            fm.objectives.Hinge(),
            (4, 3),
            P,
            TypeError,
            r"y must be integer labels, got probabilities: write y.argmax\(1\)",
        ),
        (fm.objectives.Hinge(), (4, 3), Y + 1, ValueError, "Hinge.*y.* labels from 0 to 2"),
        (
            fm.objectives.Hinge(),
            (4,),
            np.array([0, 1, 1, 0]),
            ValueError,
            r"y must be −1 or 1.* labels of 0 and 1: 2 \* y - 1",
        ),
        (0.1 * fm.MAE(), (4, 3), Y, ValueError, r"MAE, y must have the shape .*\(4, 3\), got \(4,\)"),
        (RISING * fm.objectives.Huber(), (4, 3), None, ValueError, "Huber needs a batch with targets"),
    ],
)
def test_invalid_targets(term, outputs, y, error, message):
    with pytest.raises(error, match=message):
        fm.validate(term, sizes(outputs, y))


@pytest.mark.parametrize(("term", "y"), [*TERMS, (fm.BinaryCrossEntropy(), P > 0.5)])
def test_valid_targets(term, y):
    fm.validate(2 * term, sizes((4, 3), y))
