"""Objectives: their values and gradients, the algebra of terms, names, and what they say of bad input."""

import functools
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
from fulmen.core.naming import snake_case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sklearn.metrics

N, CLASSES = 7, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, CLASSES)).astype(np.float32) * 3
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
PROBABILITIES = RNG.dirichlet(np.ones(CLASSES), N).astype(np.float32)


class Nets(fm.Model):
    one: Linear
    two: Linear
    running: fm.Buffer
    rate: float = 0.1


class Constant(fm.Objective):
    """A term of the tests' own: a number, whatever came."""

    value: float
    times: int = 1


@dispatch
def loss(term: Constant, prediction):
    return term.value * term.times


@pytest.fixture(scope="module")
def nets():
    layers = fm.init(Linear(4, 3), jax.random.key(1)), fm.init(Linear(3, 2), jax.random.key(2))
    layers = [fm.replace(layer, bias=layer.bias + 1) for layer in layers]
    return Nets(*layers, fm.Buffer(jnp.ones((5, 5))))


def predict(outputs=LOGITS, y=LABELS, model=None, x=None):
    return fm.Prediction(model, outputs, fm.Labeled(x, y))


def sizes(outputs, y):
    """What is known before a run: the shape of the outputs, and all the targets."""
    return predict(jax.ShapeDtypeStruct(outputs, np.float32), y)


# Values


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32])
def test_cross_entropy_of_labels_of_any_integer_type(dtype):
    found = jax.jit(fm.loss)(fm.CrossEntropy(), predict(y=LABELS.astype(dtype)))
    expected = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(LOGITS, LABELS)
    assert found.shape == (N,) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    probabilities = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    np.testing.assert_allclose(
        found.mean(),
        sklearn.metrics.log_loss(LABELS, probabilities / probabilities.sum(1, keepdims=True), labels=range(CLASSES)),
        rtol=1e-5,
    )


def test_cross_entropy_of_probabilities():
    found = fm.loss(fm.CrossEntropy(), predict(y=PROBABILITIES))
    log_softmax = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    np.testing.assert_allclose(found, -(PROBABILITIES * log_softmax).sum(1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, jnp.asarray(0.1), np.float32(0.1)])
def test_smoothing_of_labels_equals_smoothing_of_probabilities(smoothing):
    term = fm.CrossEntropy(smoothing=smoothing)
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    expected = optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(one_hot, float(smoothing)))
    np.testing.assert_allclose(fm.loss(term, predict()), expected, rtol=1e-5)
    np.testing.assert_allclose(fm.loss(term, predict(y=one_hot)), expected, rtol=1e-5)


def test_smoothing_of_zero_is_none_bit_for_bit():
    with_zero, without = (jax.jit(fm.loss)(fm.CrossEntropy(s), predict()) for s in (0.0, None))
    np.testing.assert_array_equal(with_zero, without)


def test_cross_entropy_of_a_label_out_of_range_is_nan():
    assert np.isnan(fm.loss(fm.CrossEntropy(), predict(y=LABELS + 50))).all()


def test_huge_logits_give_finite_losses():
    found = fm.loss(fm.CrossEntropy(smoothing=0.1), predict(LOGITS * 1e30))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3), (N, 2, 3)])
def test_mse_is_the_mean_over_all_but_the_first_axis(shape):
    outputs, y = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape).astype(np.float32)
    found = fm.loss(fm.MSE(), predict(outputs, y))
    assert found.shape == (N,)
    np.testing.assert_allclose(found, ((outputs - y) ** 2).reshape(N, -1).mean(1), rtol=1e-5)
    if len(shape) == 2:
        np.testing.assert_allclose(found.mean(), sklearn.metrics.mean_squared_error(y, outputs), rtol=1e-5)


def test_l2_is_half_the_sum_of_squares_of_the_kernels(nets):
    kernels = sum(float((np.asarray(layer.weight) ** 2).sum()) for layer in (nets.one, nets.two))
    biases = sum(float((np.asarray(layer.bias) ** 2).sum()) for layer in (nets.one, nets.two))
    loss = jax.jit(fm.loss)
    np.testing.assert_allclose(loss(fm.L2(), predict(model=nets)), kernels / 2, rtol=1e-6)
    np.testing.assert_allclose(loss(fm.L2(kernels_only=False), predict(model=nets)), (kernels + biases) / 2, rtol=1e-6)


def test_l2_ignores_frozen_parameters_and_is_zero_without_any(nets):
    assert float(fm.loss(fm.L2(), predict(model=fm.Frozen(nets)))) == 0


def test_the_gradient_of_l2_is_the_weights_themselves(nets):
    def of(weight):
        return fm.loss(fm.L2(), predict(model=fm.replace(nets, {"one.weight": weight})))

    np.testing.assert_allclose(jax.jit(jax.grad(of))(nets.one.weight), nets.one.weight, rtol=1e-6)


def test_the_gradient_of_cross_entropy_is_softmax_minus_target():
    smoothing = 0.2
    slopes = jax.jit(jax.grad(lambda z: fm.loss(fm.CrossEntropy(smoothing), predict(z)).sum()))(LOGITS)
    target = (1 - smoothing) * np.eye(CLASSES)[LABELS] + smoothing / CLASSES
    np.testing.assert_allclose(slopes, jax.nn.softmax(LOGITS) - target, atol=1e-6)


def test_half_precision_is_computed_in_single():
    found = fm.loss(fm.CrossEntropy(0.1) + fm.MSE(), predict(jnp.asarray(LOGITS, jnp.bfloat16), PROBABILITIES))
    assert found.dtype == np.float32


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        logits = jnp.asarray(LOGITS, jnp.float64)
        term = fm.CrossEntropy(smoothing=0.1) + 0.5 * fm.CrossEntropy(smoothing=jnp.asarray(0.1, jnp.float32))
        labels, probabilities = predict(logits, LABELS.astype(np.int64)), predict(logits, PROBABILITIES)
        with_model = predict(logits, PROBABILITIES, Linear(1, 1, jnp.ones((1, 1))))
        for each, prediction in ((term, labels), (term, probabilities), (fm.MSE() + fm.L2(), with_model)):
            assert jax.eval_shape(fm.loss, each, prediction).dtype == np.float64


def test_numbers_change_without_compiling():
    objective = fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.MSE()
    step = jax.jit(fm.loss)
    as_arrays = functools.partial(jax.tree.map, jnp.asarray)
    before = step(as_arrays(objective), predict(y=PROBABILITIES))
    changed = as_arrays(fm.replace(objective, {"terms.0.smoothing": 0.3, "terms.1.weight": 2.0}))
    with Compilations() as compiled:
        after = step(changed, predict(y=PROBABILITIES))
    assert len(compiled) == 0
    assert not np.allclose(before, after)


# Algebra


BASES = st.sampled_from(
    [fm.CrossEntropy(), fm.CrossEntropy(0.25), fm.MSE(), Constant(3.0), Constant(0.5, 2), fm.MSE().named("m")]
)
OBJECTIVES = st.recursive(
    BASES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, w: a * w, inner, st.sampled_from([0.5, 2, -1.5, np.float32(0.25)])),
        st.builds(lambda a: (a + a).named("both"), inner),
    ),
    max_leaves=5,
)
PREDICTION = predict(y=PROBABILITIES)


@settings(max_examples=30, deadline=None)
@given(OBJECTIVES, OBJECTIVES)
def test_values_of_sums_and_products(a, b):
    def value(objective):
        return np.broadcast_to(fm.loss(objective, PREDICTION), (N,))

    np.testing.assert_allclose(value(a + b), value(a) + value(b), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value(0.5 * a), 0.5 * value(a), rtol=1e-5, atol=1e-5)
    for objective in (a, 2 * (a + b)):
        terms = list(objective.by_name().values())
        np.testing.assert_allclose(sum(map(value, terms)), value(objective), rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(OBJECTIVES, OBJECTIVES, OBJECTIVES)
def test_sums_are_flat_and_prints_can_be_read_back(a, b, c):
    assert repr((a + b) + c) == repr(a + (b + c)) == repr(sum([a, b, c]))
    assert not any(isinstance(term, fm.objectives.Sum) and not term.name for term in (a + b + c).terms)
    assert repr(a * 2 * 3) == repr(6 * a)
    names = {**vars(fm), "Constant": Constant}
    assert repr(eval(repr(a + b), names)) == repr(a + b)


def test_scaling_is_from_both_sides_and_multiplies():
    for weight in (0.1, np.float32(0.1), np.float64(0.1), np.array(0.1), jnp.float32(0.1)):
        assert repr(weight * fm.L2()) == repr(fm.L2() * weight) == "0.1 * L2()"
    scaled = 0.5 * (4 * fm.L2())
    assert isinstance(scaled, fm.objectives.Scaled) and isinstance(scaled.objective, fm.L2) and scaled.weight == 2.0


def test_a_weight_may_be_traced():
    found = jax.jit(lambda w: fm.loss(w * (fm.MSE() + fm.CrossEntropy()), PREDICTION))(2.0)
    np.testing.assert_allclose(found, 2 * fm.loss(fm.MSE() + fm.CrossEntropy(), PREDICTION), rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: fm.L2() * np.ones(3),
        lambda: jnp.ones(3) * fm.L2(),
        lambda: fm.L2() * "2",
        lambda: fm.L2() + 1,
        lambda: 1 + fm.L2(),
        lambda: fm.L2() * fm.MSE(),
        lambda: fm.L2() * True,
    ],
)
def test_other_operands_are_refused(bad):
    with pytest.raises(TypeError):
        bad()


def test_differences_and_quotients():
    made = fm.MSE() - 0.5 * fm.L2() / 2
    assert repr(made) == repr(fm.MSE() + -0.25 * fm.L2()) and repr(-fm.MSE()) == repr(-1.0 * fm.MSE())


# Names and prints


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2(), "CrossEntropy(smoothing=0.1) + 0.0001 * L2()"),
        (fm.L2(kernels_only=False), "L2(kernels_only=False)"),
        (2 * (fm.MSE() + fm.L2()), "2 * (MSE() + L2())"),
        (1e-7 * fm.MSE() + fm.L2() + fm.MSE(), "1e-07 * MSE() + L2() + MSE()"),
        (fm.MSE().named("pixels"), "MSE().named('pixels')"),
        ((0.5 * fm.MSE()).named("pixels"), "(0.5 * MSE()).named('pixels')"),
        ((fm.MSE() + fm.L2()).named("both") + fm.L2(), "(MSE() + L2()).named('both') + L2()"),
        (0.5 * (fm.MSE() + fm.L2()).named("both"), "0.5 * (MSE() + L2()).named('both')"),
        (Constant(3.0, times=2), "Constant(value=3, times=2)"),
    ],
)
def test_an_objective_prints_as_its_formula(objective, text):
    assert repr(objective) == text
    # As it lies in a state, where numbers are arrays in single precision.
    assert repr(jax.tree.map(jnp.asarray, objective)) == text


def test_an_objective_prints_while_it_is_traced():
    seen = []
    jax.jit(lambda objective: seen.append(repr(objective)))(0.1 * fm.CrossEntropy(smoothing=0.1))
    assert seen == ["f32[] * CrossEntropy(smoothing=f32[])"]


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (fm.CrossEntropy(), ["cross_entropy"]),
        (fm.MSE() + fm.L2() + 0.1 * fm.MSE(), ["mse", "l2", "mse_2"]),
        (fm.MSE().named("a") + fm.MSE() + fm.L2().named("a"), ["a", "mse", "a_2"]),
        (fm.MSE() + fm.L2().named("mse_2") + fm.MSE(), ["mse", "mse_2", "mse_3"]),
        (0.1 * fm.MSE().named("a"), ["a"]),
        ((0.1 * fm.MSE()).named("a") * 2, ["a"]),
        (0.1 * (fm.MSE() + fm.L2()), ["mse", "l2"]),
        (0.1 * (fm.MSE() + fm.L2()).named("both") + fm.L2(), ["both", "l2"]),
        (fm.objectives.Scaled(fm.objectives.Scaled(fm.MSE() + fm.L2(), 2.0), 3.0), ["mse", "l2"]),
    ],
)
def test_terms_have_names(objective, names):
    assert list(objective.by_name()) == names


def test_scaling_a_sum_scales_its_terms():
    assert (
        repr(fm.objectives.Scaled(fm.objectives.Scaled(fm.MSE() + fm.L2(), 2.0), 3.0).by_name())
        == "{'mse': 6 * MSE(), 'l2': 6 * L2()}"
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CrossEntropy", "cross_entropy"),
        ("L2", "l2"),
        ("MSE", "mse"),
        ("KLDivergence", "kl_divergence"),
        ("Top5Error", "top5_error"),
    ],
)
def test_a_class_name_as_a_key(name, key):
    assert snake_case(name) == key


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match=r"name must be a string such as 'reconstruction', got 3"):
        fm.MSE().named(3)


# Bad input


@pytest.mark.parametrize("smoothing", [1.0, -0.1, float("nan"), np.array([0.1, 1.5])])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=r"smoothing must be at least 0 and below 1, got"):
        fm.validate(fm.CrossEntropy(smoothing=smoothing))


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_a_weight_is_finite(weight):
    with pytest.raises(ValueError, match=rf"weight must be finite, got {weight}"):
        fm.validate(weight * fm.L2())


def test_sums_are_of_objectives():
    with pytest.raises(TypeError, match=r"terms must be a tuple of Objectives, got .*3\).*fm.CrossEntropy\(\)"):
        fm.validate(fm.objectives.Sum((fm.MSE(), 3)))


@pytest.mark.parametrize("objective", [fm.CrossEntropy(), fm.CrossEntropy(0.0), -0.1 * fm.MSE(), fm.MSE() + fm.L2()])
def test_valid_objectives(objective):
    fm.validate(objective)


BAD_TARGETS = [
    (
        (6, 4),
        np.arange(6),
        ValueError,
        "y must be labels from 0 to 3.* outputs have 4 classes.* labels from 0 to 5",
    ),
    ((4, 4), np.arange(4) + 1, ValueError, "labels from 1 to 4.*y - 1"),
    ((4, 4), np.arange(4) - 1, ValueError, "labels from -1 to 2"),
    ((4, 4), np.ones(4, np.float32), TypeError, r"y must be integer labels.* got float32.*y.astype\(np.int32\)"),
    ((4, 4), np.ones(4, bool), TypeError, r"y must be integer labels.* got bool.*y.astype\(np.int32\)"),
    (
        (4, 3),
        np.ones((4, 1), np.int32),
        ValueError,
        r"y must be integer labels of shape \(4,\) .* got int32 of shape \(4, 1\).*y\[:, 0\]",
    ),
    (
        (4, 3),
        np.ones((4, 3), np.int32),
        ValueError,
        r"probabilities of shape \(4, 3\).*Several labels.*fm.BinaryCrossEntropy\(\)",
    ),
    ((4, 3), np.eye(3, dtype=np.int32)[[0, 1, 2, 0]], ValueError, r"One-hot vectors.*y.astype\(np.float32\)"),
    (
        (4, 3),
        np.ones((4, 2, 2), np.int32),
        ValueError,
        r"y must be integer labels of shape \(4,\).* got int32 of shape \(4, 2, 2\)",
    ),
    ((4, 3), np.ones(5, np.int32), ValueError, r"labels of shape \(4,\).* got int32 of shape \(5,\)"),
    ((4, 3), np.ones((4, 2), np.float32), ValueError, r"outputs have 3 classes, got float32 of shape \(4, 2\)"),
    ((4, 3), np.ones((4, 3), bool), TypeError, r"y must be .*probabilities of shape \(4, 3\).* got bool"),
    (
        (4, 3),
        np.ones((4, 3), np.float32),
        ValueError,
        "each row adding up to 1, got a smallest of 1 and rows that add up to 3 to 3",
    ),
    ((2, 2), np.array([[-1, 2], [1, 0]], np.float32), ValueError, "none negative.* got a smallest of -1"),
    ((4,), np.ones(4, np.int32), ValueError, r"outputs must have shape \(n, classes\), got \(4,\)"),
    ((4, 8, 3), np.ones(4, np.int32), ValueError, r"\(n, classes\), got \(4, 8, 3\)"),
    ((4, 3), [1, 2, 0, 1], TypeError, "y must be an array, got a list"),
    ((4, 3), None, ValueError, r"needs a batch with targets, got a Labeled without y. Give pairs \(x, y\)"),
]


@pytest.mark.parametrize(("outputs", "y", "error", "message"), BAD_TARGETS)
@pytest.mark.parametrize("objective", [fm.CrossEntropy(), 0.1 * (fm.CrossEntropy(smoothing=0.1) + fm.L2())])
def test_targets_that_do_not_fit_a_classification(objective, outputs, y, error, message):
    with pytest.raises(error, match=f"CrossEntropy.*{message}"):
        fm.validate(objective, sizes(outputs, y))


FITTING = [
    np.arange(4) % 3,
    np.uint8([0, 2, 1, 0]),
    jnp.zeros(4, int),
    np.full((4, 3), 1 / 3, np.float16),
    np.eye(3)[[0, 2, 1, 0]],
]


@pytest.mark.parametrize("y", FITTING)
def test_targets_that_fit_a_classification(y):
    fm.validate(fm.CrossEntropy() + fm.L2(), sizes((4, 3), y))


@pytest.mark.parametrize(
    ("outputs", "y", "message"),
    [
        (
            (5, 1),
            np.ones(5, np.float32),
            r"outputs, \(5, 1\), got \(5,\). Write y\[:, None\]",
        ),
        ((5,), np.ones((5, 1), np.float32), r"outputs, \(5,\), got \(5, 1\). Write y\[..., 0\]"),
        ((5, 2), np.ones((5, 3), np.float32), r"outputs, \(5, 2\), got \(5, 3\)"),
        ((5,), np.ones(1, np.float32), r"outputs, \(5,\), got \(1,\)"),
        ((), np.ones(5, np.float32), r"outputs, \(\), got \(5,\)"),
    ],
)
def test_targets_that_do_not_fit_a_regression(outputs, y, message):
    with pytest.raises(ValueError, match=f"MSE, y must have the shape of the model's {message}"):
        fm.validate(2 * fm.MSE(), sizes(outputs, y))
    with pytest.raises(ValueError, match=f"MSE, y must have the shape of the model's {message}"):
        fm.loss(fm.MSE(), predict(np.ones(outputs, np.float32), y))


def test_outputs_must_be_one_floating_point_array():
    with pytest.raises(TypeError, match="outputs must be floating-point numbers, got int32"):
        fm.loss(fm.CrossEntropy(), predict(np.ones((N, CLASSES), np.int32)))
    with pytest.raises(TypeError, match="outputs must be one array, got a dict"):
        fm.loss(fm.CrossEntropy(), predict({"a": LOGITS}))
    with pytest.raises(TypeError, match="must be real numbers, got complex64 and float32"):
        fm.loss(fm.MSE(), predict(np.ones(N, np.complex64), np.ones(N, np.float32)))


def test_an_objective_without_a_method_says_what_to_write():
    class Empty(fm.Objective): ...

    with pytest.raises(TypeError, match=r"def loss\(empty: Empty, \w+: fm.Prediction\)"):
        fm.loss(Empty(), predict())


@pytest.mark.parametrize("weights", [None, jnp.ones(3)])
def test_no_smoothing_of_an_excluded_class(weights):
    logits, y = jnp.array([[1.0, 2.0, -jnp.inf]]), jnp.array([0])
    value = lambda z, s: fm.loss(fm.CrossEntropy(smoothing=s, class_weights=weights), predict(z, y)).sum()
    found, slopes = jax.jit(jax.value_and_grad(lambda z: value(z, 0.0)))(logits)
    np.testing.assert_allclose(found, np.log1p(np.e), rtol=1e-6)
    np.testing.assert_allclose(slopes, [[-0.731059, 0.731059, 0]], rtol=1e-5)
    assert jax.jit(value)(logits, 0.1) == np.inf


@pytest.mark.parametrize(
    "objective", [fm.objectives.InfoNCE(), fm.objectives.NTXent(), fm.objectives.CosineDistance()], ids=str
)
def test_directions_do_not_depend_on_the_scale(objective):
    z, y = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    run = jax.jit(jax.value_and_grad(lambda z, y: fm.loss(objective, predict(z, y)).sum()))
    for scale in (1e-30, 1e-12, 1e25):
        expected, slopes = run(z, y * np.float32(scale))
        found, scaled = run(z * np.float32(scale), y * np.float32(scale))
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=scale)
        np.testing.assert_allclose(scaled * scale, slopes, rtol=1e-3, atol=1e-5, err_msg=scale)


def test_the_direction_of_a_zero_vector_is_zero():
    run = jax.value_and_grad(lambda z: fm.loss(fm.objectives.CosineDistance(), predict(z, jnp.ones((1, 2)))).sum())
    value, slopes = jax.jit(run)(jnp.zeros((1, 2)))
    assert value == 2 and np.isfinite(slopes).all()
