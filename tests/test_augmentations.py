"""Augmentations: what they do to inputs and targets, each example by itself, and in the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch

N, CLASSES = 200, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, 3, 5, 2)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
apply = jax.jit(fm.augment)


def batch(x=IMAGES, y=LABELS, **options):
    return fm.Labeled(x, y, **options)


def mode(seed=0):
    return fm.Train(jax.random.key(seed))


@pytest.mark.parametrize("x", [IMAGES, (IMAGES > 0).astype(np.uint8)])
def test_flip_mirrors_about_half_of_the_images(x):
    found = apply(fm.augmentations.Flip(), batch(x, weight=np.ones(N, np.float32)), mode())
    kept = (found.x == x).all((1, 2, 3))
    mirrored = (found.x == x[:, :, ::-1]).all((1, 2, 3))
    assert (kept | mirrored).all()
    assert 0.35 < kept.mean() < 0.65
    assert found.x.dtype == x.dtype and isinstance(found, fm.Labeled)
    np.testing.assert_array_equal(found.y, LABELS)
    np.testing.assert_array_equal(found.weight, np.ones(N))


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), jnp.asarray(0.5)])
def test_noise_has_its_scale_and_no_mean(scale):
    added = apply(fm.augmentations.Noise(scale), batch(), mode()).x - IMAGES
    assert float(added.std()) == pytest.approx(0.5, rel=0.05)
    assert abs(float(added.mean())) < 0.05
    # No two examples, and no two numbers of one, get the same.
    assert len(np.unique(np.round(added, 5))) > 0.9 * added.size


def test_mixup_mixes_inputs_and_targets_in_the_same_share():
    found = apply(fm.augmentations.Mixup(1.0, CLASSES), batch(), mode())
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    x, y = np.asarray(found.x), np.asarray(found.y)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
    shares = []
    for i in range(N):
        # The partner and the share that explain the input have to explain the target.
        mixed, flat, other = x[i].ravel(), IMAGES[i].ravel(), IMAGES.reshape(N, -1)
        direction = flat - other
        share = ((mixed - other) * direction).sum(1) / np.maximum((direction**2).sum(1), 1e-9)
        error = np.abs(share[:, None] * flat + (1 - share[:, None]) * other - mixed).max(1)
        error[i] = np.abs(mixed - flat).max()
        partner = int(error.argmin())
        assert error[partner] < 1e-5
        shares.append(1 if partner == i else share[partner])
        np.testing.assert_allclose(y[i], shares[-1] * one_hot[i] + (1 - shares[-1]) * one_hot[partner], atol=1e-4)
    # Beta(1, 1) is uniform, and each example has a share of its own.
    assert np.histogram(shares, 4, (0, 1))[0].min() > N / 8
    assert len(np.unique(np.round(shares, 4))) > 0.9 * N


def test_mixup_with_a_small_alpha_hardly_changes_most_examples():
    found = apply(fm.augmentations.Mixup(jnp.asarray(0.01), CLASSES), batch(), mode())
    sharp = np.asarray(found.y).max(1) > 0.99
    assert sharp.mean() > 0.9


def test_mixup_of_probabilities():
    y = RNG.dirichlet(np.ones(CLASSES), N).astype(np.float32)
    found = apply(fm.augmentations.Mixup(0.4, CLASSES), batch(y=y), mode())
    np.testing.assert_allclose(found.y.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.y.mean(0), y.mean(0), atol=0.05)


def test_mixup_of_inputs_in_half_precision():
    found = jax.eval_shape(
        fm.augment, fm.augmentations.Mixup(0.4, CLASSES), batch(jnp.asarray(IMAGES, jnp.bfloat16)), mode()
    )
    assert found.x.dtype == jnp.bfloat16 and found.y.dtype == np.float32


@pytest.mark.parametrize(
    "augmentation", [fm.augmentations.Flip(), fm.augmentations.Noise(0.1), fm.augmentations.Mixup(0.4, CLASSES)]
)
def test_results_depend_only_on_the_key(augmentation):
    first, again, other = (apply(augmentation, batch(), mode(seed)).x for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_scale_changes_without_compiling():
    before = apply._cache_size()
    apply(fm.augmentations.Noise(jnp.asarray(0.1)), batch(), mode())
    apply(fm.augmentations.Noise(jnp.asarray(0.2)), batch(), mode())
    assert apply._cache_size() <= before + 1


# In a system


def test_augmentations_of_a_classifier_have_separate_keys():
    system = fm.Classifier(Linear(4, CLASSES), augment=(fm.augmentations.Noise(1.0), fm.augmentations.Noise(1.0)))
    x = np.zeros((N, 4), np.float32)
    both = fm.augment(system, batch(x), mode())
    one = fm.augment(fm.replace(system, augment=(fm.augmentations.Noise(1.0),)), batch(x), mode())
    alone = fm.augment(fm.replace(system, augment=fm.augmentations.Noise(1.0)), batch(x), mode())
    np.testing.assert_array_equal(one.x, alone.x)
    second = both.x - one.x
    assert abs(np.corrcoef(second.ravel(), np.asarray(one.x).ravel())[0, 1]) < 0.1


def test_without_augmentations_the_batch_is_unchanged():
    whole = batch()
    assert fm.augment(fm.Classifier(Linear(4, CLASSES)), whole, mode()) is whole


def test_augmentations_run_in_order_in_training_only():
    seen = []

    class Wipe(fm.augmentations.Augmentation):
        value: float

    @dispatch
    def augment(wipe: Wipe, batch, mode):
        seen.append(batch.y.shape)
        return fm.replace(batch, x=jnp.full_like(batch.x, wipe.value), y=jnp.ones(len(batch), int))

    x, y = data()
    system = fm.Classifier(Linear(4, 3), augment=(fm.augmentations.Mixup(0.3, 3), Wipe(2.0)))
    state = fm.setup(system, (x, y), optimizer=optax.sgd(0.1), batch_size=50)
    new, logs = fm.train_step(state, (x, y))
    assert seen and set(seen) == {(50, 3)}  # what mixup left
    slope = np.asarray(jax.nn.softmax(state.system(np.full((1, 4), 2, np.float32))))[0] - [0, 1, 0]
    moved = (np.asarray(state.system.model.bias) - np.asarray(new.system.model.bias)) / 0.1
    np.testing.assert_allclose(moved, slope, atol=1e-5)
    assert float(logs["accuracy"]) in (0, 1)
    expected = optax.softmax_cross_entropy_with_integer_labels(state.system(x), y).mean()
    assert fm.evaluate(state, (x, y))["loss"] == pytest.approx(float(expected), rel=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (fm.augmentations.Noise(-0.1), "Noise.scale must be at least 0, got -0.1"),
        (fm.augmentations.Noise(float("nan")), "Noise.scale must be at least 0, got nan"),
        (fm.augmentations.Mixup(0.0, 3), "Mixup.alpha must be above 0, got 0"),
        (fm.augmentations.Mixup(0.4, 1), "Mixup.classes must be at least 2, got 1"),
    ],
)
def test_field_values_out_of_range(augmentation, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(augmentation)


@pytest.mark.parametrize(
    ("augmentation", "given", "error", "message"),
    [
        (
            fm.augmentations.Flip(),
            batch(IMAGES[0]),
            ValueError,
            r"Flip: x must be images of shape \(n, height, width, channels\), got \(3, 5, 2\)",
        ),
        (
            fm.augmentations.Noise(0.1),
            batch(LABELS),
            TypeError,
            r"Noise: x must be of floating-point numbers, got int32",
        ),
        (
            fm.augmentations.Mixup(0.1, 3),
            fm.Unlabeled(IMAGES),
            ValueError,
            "Mixup mixes targets too: the batch must have y, got Unlabeled",
        ),
        (
            fm.augmentations.Mixup(0.1, 3),
            batch(y=np.ones(N, np.float32)),
            ValueError,
            r"Mixup: y must be integer labels .* got float32 of shape \(200,\)",
        ),
        (
            fm.augmentations.Mixup(0.1, 3),
            batch(y=np.ones((N, 2), np.float32)),
            ValueError,
            r"\(n, 3\), got float32 of shape \(200, 2\)",
        ),
        (
            fm.augmentations.Flip(),
            batch({"a": IMAGES}),
            TypeError,
            "Flip changes batch.x, which must be an array, got Labeled without one",
        ),
    ],
)
def test_invalid_batches(augmentation, given, error, message):
    with pytest.raises(error, match=message):
        fm.augment(augmentation, given, mode())


def test_a_mode_without_a_key():
    with pytest.raises(ValueError, match="Noise draws at random and needs a mode with a key"):
        fm.augment(fm.augmentations.Noise(0.1), batch(), fm.Eval())
