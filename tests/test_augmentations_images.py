"""Augmentations of images: where they cut, shift and cover, how often, and with what targets; one after another; per batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm

N, H, W, CLASSES = 400, 6, 5, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(1, 2, size=(N, H, W, 2)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
apply = jax.jit(fm.augment)


def batch(x=IMAGES, y=LABELS, **options):
    return fm.Labeled(x, y, **options)


def mode(seed=0):
    return fm.Train(jax.random.key(seed))


def roughly_even(counts, of=N):
    """Whether counts may come from a uniform distribution: five standard deviations."""
    expected = of / len(counts)
    return len(counts) and max(abs(c - expected) for c in counts) < 5 * expected**0.5


# Shift and crop


def shifts(found, pixels, fill):
    """By how much each image was moved, found by trying all moves."""
    padded = np.pad(IMAGES, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), constant_values=fill)
    moves = [(i, j) for i in range(2 * pixels + 1) for j in range(2 * pixels + 1)]
    hits = np.stack([(found == padded[:, i : i + H, j : j + W]).all((1, 2, 3)) for i, j in moves])
    assert (hits.sum(0) == 1).all()
    return hits.argmax(0)


@pytest.mark.parametrize(("pixels", "fill"), [(1, 0.0), (2, -1.0)])
def test_shift_crop_shifts_each_image(pixels, fill):
    found = apply(fm.augmentations.ShiftCrop(pixels, fill), batch(weight=np.ones(N, np.float32)), mode())
    moved = shifts(np.asarray(found.x), pixels, fill)
    assert roughly_even(np.bincount(moved, minlength=(2 * pixels + 1) ** 2))
    np.testing.assert_array_equal(found.y, LABELS)
    np.testing.assert_array_equal(found.weight, np.ones(N))


def test_shift_crop_of_bytes_and_of_a_whole_batch():
    pixels = (IMAGES * 100).astype(np.uint8)
    assert apply(fm.augmentations.ShiftCrop(2), batch(pixels), mode()).x.dtype == np.uint8
    moved = [
        shifts(np.asarray(apply(fm.augmentations.ShiftCrop(2, per_batch=True), batch(), mode(s)).x), 2, 0) for s in range(6)
    ]
    assert all(len(set(m)) == 1 for m in moved) and len({m[0] for m in moved}) > 2


# Cutout


def box(covered):
    """The rows and columns of a covered rectangle, as first and beyond the last; a check that it is one."""
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    if not len(rows):
        return None
    assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert covered.sum() == len(rows) * len(columns)
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_covers_a_square_around_any_pixel(size):
    found = np.asarray(apply(fm.augmentations.Cutout(size, fill=-3.0), batch(), mode()).x)
    covered = (found == -3).all(3)
    np.testing.assert_array_equal(np.where(covered[..., None], IMAGES, found), IMAGES)
    expected = np.zeros((H, W))
    for i in range(H):
        for j in range(W):
            rows, columns = (slice(max(c - size // 2, 0), c - size // 2 + size) for c in (i, j))
            expected[rows, columns] += N / (H * W)
    assert (np.abs(covered.sum(0) - expected) < 5 * expected**0.5).all()
    for each in covered:
        top, bottom, left, right = box(each)
        assert bottom - top <= size and right - left <= size
        assert bottom - top == size or top == 0 or bottom == H


def test_cutout_of_a_whole_batch_covers_the_same_square():
    found = np.asarray(apply(fm.augmentations.Cutout(2, per_batch=True), batch(), mode()).x)
    covered = (found == 0).all(3)
    assert (covered == covered[0]).all() and covered[0].any()


def test_the_value_that_covers_is_data():
    before = apply._cache_size()
    for fill in (0.0, 1.0):
        apply(fm.augmentations.Cutout(2, jnp.asarray(fill)), batch(), mode())
    assert apply._cache_size() == before + 1


# CutMix


def test_cutmix_copies_a_rectangle_and_mixes_targets_by_area():
    found = apply(fm.augmentations.CutMix(1.0, CLASSES), batch(), mode())
    x, y = np.asarray(found.x), np.asarray(found.y)
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    shares = []
    for i in range(N):
        foreign = (x[i] != IMAGES[i]).any(2)
        if not foreign.any():  # no area, or itself
            np.testing.assert_allclose(y[i], one_hot[i], atol=1e-6)
            continue
        box(foreign)
        partner = np.flatnonzero((IMAGES[:, foreign] == x[i][foreign]).all((1, 2)))
        assert len(partner) == 1
        shares.append(1 - foreign.mean())
        np.testing.assert_allclose(y[i], shares[-1] * one_hot[i] + (1 - shares[-1]) * one_hot[partner[0]], atol=1e-5)
    # A uniform λ, and cutting off only adds to what is left.
    assert len(set(shares)) > 10 and min(shares) < 0.2 and max(shares) > 0.9 and 0.5 < np.mean(shares) < 0.8
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)


def test_cutmix_of_a_whole_batch_has_one_rectangle():
    found = apply(fm.augmentations.CutMix(1.0, CLASSES, per_batch=True), batch(), mode(3))
    foreign = (np.asarray(found.x) != IMAGES).any(3)
    changed = foreign[foreign.any((1, 2))]
    assert len(changed) > N / 2 and (changed == changed[0]).all()
    assert np.asarray(found.y).max(1).min() >= 0.5 - 1e-6


# The ones that there were, per batch


def test_flip_of_a_whole_batch():
    found = [np.asarray(apply(fm.augmentations.Flip(per_batch=True), batch(), mode(s)).x) for s in range(8)]
    flipped = [(x == IMAGES[:, :, ::-1]).all() for x in found]
    assert all(a or (x == IMAGES).all() for a, x in zip(flipped, found, strict=True))
    assert 0 < sum(flipped) < 8


def test_noise_and_mixup_of_a_whole_batch():
    added = np.asarray(apply(fm.augmentations.Noise(0.5, per_batch=True), batch(), mode()).x) - IMAGES
    np.testing.assert_allclose(added, np.broadcast_to(added[:1], added.shape), atol=1e-6)
    assert added[0].std() > 0.2
    mixed = np.asarray(apply(fm.augmentations.Mixup(1.0, CLASSES, per_batch=True), batch(), mode()).y).max(1)
    assert len(np.unique(np.round(mixed, 4))) <= 2


# One after another


def test_a_sequence_applies_each_with_a_separate_key():
    several = (
        fm.augmentations.Flip() >> (fm.augmentations.Cutout(2) >> fm.augmentations.Cutout(2)) >> fm.augmentations.Noise(0.1)
    )
    assert [type(step).__name__ for step in several.steps] == ["Flip", "Cutout", "Cutout", "Noise"]
    assert repr(several) == "Flip() >> Cutout(size=2) >> Cutout(size=2) >> Noise(scale=0.1)"
    assert repr(fm.augmentations.Flip(per_batch=True)) == "Flip(per_batch=True)"
    found = apply(several, batch(), mode())
    by_hand = batch()
    for i, each in enumerate(several.steps):
        by_hand = apply(each, by_hand, mode().at(str(i)))
    np.testing.assert_allclose(found.x, by_hand.x, rtol=1e-6)
    np.testing.assert_array_equal(found.y, by_hand.y)
    twice = np.asarray(apply(fm.augmentations.Cutout(1) >> fm.augmentations.Cutout(1), batch(), mode()).x)
    assert ((twice == 0).all(3).sum((1, 2)) == 2).mean() > 0.9


def test_it_trains():
    several = fm.augmentations.ShiftCrop(1) >> fm.augmentations.CutMix(1.0, CLASSES)
    net = fm.models.Chain(fm.models.Flatten(), fm.models.Dense(H * W * 2, CLASSES))
    state = fm.setup(fm.Classifier(net, augment=several), (IMAGES, LABELS), optimizer=optax.sgd, lr=0.1)
    state, logs = fm.train_step(state, (IMAGES[:32], LABELS[:32]))
    assert np.isfinite(logs["loss"])


# Bad input


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (fm.augmentations.ShiftCrop(0), "ShiftCrop.pixels must be at least 1, got 0"),
        (fm.augmentations.Cutout(0), "Cutout.size must be at least 1, got 0"),
        (fm.augmentations.CutMix(-1.0, 3), "CutMix.alpha must be above 0, got -1"),
        (fm.augmentations.CutMix(1.0, 1), "CutMix.classes must be at least 2, got 1"),
    ],
)
def test_field_values_out_of_range(augmentation, message):
    with pytest.raises(ValueError, match=message):
        fm.validate(augmentation)


@pytest.mark.parametrize(
    "augmentation", [fm.augmentations.ShiftCrop(1), fm.augmentations.Cutout(1), fm.augmentations.CutMix(1.0, 3)]
)
def test_images_have_four_axes(augmentation):
    with pytest.raises(
        ValueError, match=rf"{type(augmentation).__name__}: x must be images of shape \(n, height, width, channels\)"
    ):
        fm.augment(augmentation, batch(IMAGES[..., 0]), mode())


def test_only_augmentations_can_be_chained():
    with pytest.raises(TypeError):
        fm.augmentations.Flip() >> 3
    with pytest.raises(TypeError, match=r"Augmentations.steps must be a tuple of Augmentations, got .*3\)"):
        fm.validate(fm.augmentations.Augmentations((fm.augmentations.Flip(), 3)))
    with pytest.raises(ValueError, match="CutMix: y must be integer labels"):
        fm.augment(fm.augmentations.CutMix(1.0, 3), batch(y=np.ones(N, np.float32)), mode())
