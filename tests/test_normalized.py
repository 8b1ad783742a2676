"""`Normalized`: a model of normalized inputs, in the units of the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen.models import Dense, Flatten

MEAN, STD = jnp.array([0.4, 0.5, 0.6]), jnp.array([0.1, 0.2, 0.3])
IMAGES = np.random.default_rng(0).random((12, 4, 4, 3)).astype(np.float32)
LABELS = np.arange(12) % 3


def net(**options):
    return fm.models.Normalized(fm.models.Chain(Flatten(), Dense(48, 3)), **{"mean": MEAN, "std": STD, **options})


def test_inputs_are_normalized_by_channel():
    assert fm.Normalized is fm.models.Normalized
    flat = fm.Normalized(Flatten(), MEAN, STD)
    expected = ((IMAGES - np.array(MEAN)) / np.array(STD)).reshape(12, -1)
    np.testing.assert_allclose(flat(IMAGES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        fm.Normalized(Flatten(), 0.5, 0.25)(IMAGES), ((IMAGES - 0.5) / 0.25).reshape(12, -1), rtol=1e-5
    )
    bytes_ = (255 * IMAGES).astype(np.uint8)
    np.testing.assert_allclose(fm.Normalized(Flatten(), 127.5, 127.5)(bytes_), bytes_.reshape(12, -1) / 127.5 - 1, atol=1e-5)


def test_it_equals_training_on_normalized_data():
    options = {"optimizer": optax.sgd, "lr": 0.1, "epochs": 2, "batch_size": 4, "progress": False}
    start = fm.init(net(), jax.random.key(0))
    inside, history = fm.fit(fm.Classifier(start), (IMAGES, LABELS), **options)
    normal = (IMAGES - np.array(MEAN)) / np.array(STD)
    outside, other = fm.fit(fm.Classifier(start.model), (normal, LABELS), **options)
    np.testing.assert_allclose(history["loss"], other["loss"], rtol=1e-4)
    np.testing.assert_array_equal(inside.system.model.mean, MEAN)  # not trained
    assert fm.count_parameters(inside.system) == fm.count_parameters(outside.system)


def test_attacks_are_in_the_units_of_the_data():
    region = fm.LinfBall(0.05) & fm.Box(0, 1)
    state, _ = fm.fit(fm.Classifier(net()), (IMAGES, LABELS), optimizer=optax.adam, lr=0.01, epochs=1, progress=False)
    attacked = fm.perturb(fm.PGD(region, step_size=0.02, steps=5), state, fm.Labeled(IMAGES, LABELS), jax.random.key(0)).x
    moved = np.abs(np.asarray(attacked) - IMAGES)
    assert 0.9 * 0.05 < moved.max() <= 0.0501 and attacked.min() >= 0 and attacked.max() <= 1
    assert np.allclose(moved.max((0, 1, 2)), 0.05, atol=1e-3)  # in every channel, whatever its std


def test_it_takes_half_precision_layers_and_modules_of_other_libraries():
    half = jax.eval_shape(fm.forward, fm.Normalized(Flatten(), MEAN, STD), jnp.asarray(IMAGES, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    module = fm.Normalized(eqx.nn.Linear(3, 3, key=jax.random.key(0)), MEAN, STD)
    raw = IMAGES[:, 0, 0], LABELS
    for system in (fm.Classifier(module), fm.MixedPrecision(fm.Classifier(net()))):
        _, history = fm.fit(
            system,
            raw if system.__class__ is fm.Classifier else (IMAGES, LABELS),
            optimizer=optax.sgd,
            lr=0.1,
            steps=3,
            progress=False,
        )
        assert np.isfinite(history["loss"]).all()
    deep = fm.Normalized(fm.models.MLP(3, 4, 4, 3), MEAN, STD)
    depths = fm.optimizers.depths(fm.init(deep, jax.random.key(0)))
    assert depths["model.layers.0.weight"] == 2 and depths["model.layers.4.bias"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"std": jnp.array([0.1, 0.0, 0.1])}, r"Normalized\.std must be .*0"),
        ({"mean": jnp.zeros(4)}, r"Normalized\.mean must .*last axes of x, \(4, 4, 3\), got \(4,\)"),
        ({"mean": jnp.zeros((1, 4, 4, 3))}, r"Normalized\.mean must .*got \(1, 4, 4, 3\)"),
    ],
)
def test_wrong_arrays_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        fm.setup(fm.Classifier(net(**options)), (IMAGES, LABELS), optimizer=optax.sgd, lr=0.1)
