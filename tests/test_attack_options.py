"""The options of every attack: targets, restarts, samples; and `attempt`, which drops examples that are done."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Compilations, Perceptron

import fulmen as fm
from fulmen import attacks, dispatch
from fulmen.robust.attacks.attack_loop import SMALLEST, bucket

BOX = fm.Box(0.0, 1.0)
REGION = fm.LinfBall(0.1) & BOX
N = 32


def classifier(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return fm.Classifier(Perceptron(0.3 * draw(16, 32), draw(32, 10)))


def examples(n, dtype=np.float32):
    """Images and their predicted classes, of which some are replaced."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(64, 4, 4, 1)).astype(dtype)
    y = logits(classifier(dtype), x).argmax(1).astype(np.int32)
    y[::9] = (y[::9] + 1) % 10
    return x[:n], y[:n]


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def data():
    x, y = examples(N)
    return fm.Labeled(x, y, index=np.arange(N))


def logits(model, x):
    net, x = model.model, np.asarray(x)
    return np.tanh(x.reshape(len(x), -1) @ np.asarray(net.first)) @ np.asarray(net.second)


def near(a, b, atol=1e-6):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


# Targets


def test_a_target_makes_the_attack_lead_to_that_class(model, data, key):
    wide = fm.LinfBall(0.6) & BOX
    target = np.arange(N, dtype=np.int32) % 10
    towards = lambda target: fm.PGD(wide, 0.05, 30, attacks.Clean(), target=attacks.Target(target))
    reached = fm.perturb(towards(target), model, data, key)
    assert (logits(model, reached.x).argmax(1) == target).mean() > 0.95
    np.testing.assert_array_equal(reached.y, data.y)
    same = fm.perturb(towards(np.int32(3)), model, data, key)
    assert (logits(model, same.x).argmax(1) == 3).mean() > 0.95


def test_a_targeted_attack_succeeds_only_at_its_target(model, data, key):
    target = np.full(N, 3, np.int32)
    attack = fm.PGD(REGION, 0.02, 10, start=attacks.Clean(), target=attacks.Target(target))
    found = attacks.attempt(attack, model, data, key)
    np.testing.assert_array_equal(found.succeeded, logits(model, found.x).argmax(1) == 3)
    already = logits(model, data.x).argmax(1) == 3
    np.testing.assert_array_equal(np.asarray(found.first) == 0, already)
    assert already.sum() < np.asarray(found.succeeded).sum() < N


def test_predicted_label_ignores_the_true_label(model, data, key):
    pgd = functools.partial(fm.PGD, REGION, 0.02, 5, attacks.Clean())
    attack = pgd(target=attacks.PredictedLabel())
    wrong = fm.replace(data, y=(data.y + 1) % 10)
    one, other = (fm.perturb(attack, model, batch, key) for batch in (data, wrong))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(other.y, wrong.y)
    told = fm.perturb(pgd(), model, fm.replace(data, y=logits(model, data.x).argmax(1)), key)
    near(one.x, told.x, 0)
    knowing = fm.perturb(pgd(), model, wrong, key)
    assert np.abs(np.asarray(knowing.x) - np.asarray(one.x)).max() > 0.05


@pytest.mark.parametrize("rank", [1, 4])
def test_a_likely_target_has_the_given_rank(rank, model, data, key):
    z = logits(model, data.x).copy()
    z[np.arange(N), data.y] = -np.inf
    target = np.argsort(-z, axis=1)[:, rank - 1].astype(np.int32)
    pgd = functools.partial(fm.PGD, REGION, 0.02, 5, attacks.Clean())
    likely = fm.perturb(pgd(target=attacks.LikelyTarget(rank)), model, data, key)
    near(likely.x, fm.perturb(pgd(target=attacks.Target(target)), model, data, key).x, 0)


# Restarts


def test_restarts_keep_the_best_point_of_each_example(model, data, key):
    value = jax.jit(lambda x: fm.losses(model, fm.replace(data, x=x))["cross_entropy"])
    attack = fm.PGD(REGION, 0.02, 2)
    together = value(fm.perturb(fm.replace(attack, restarts=3), model, data, key).x)
    keys = [key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)]
    alone = np.stack([value(fm.perturb(attack, model, data, key).x) for key in keys])
    near(together, alone.max(0), 1e-5)
    assert len(np.unique(alone.argmax(0))) == 3


def test_restarts_attack_the_remaining_examples_only(model, data, key):
    attack = fm.PGD(REGION, 0.02, 3)
    once, often = (attacks.attempt(fm.replace(attack, restarts=n), model, data, key) for n in (1, 4))
    done = np.asarray(once.succeeded)
    assert 0 < done.sum() < np.asarray(often.succeeded).sum()
    near(np.asarray(often.x)[done], np.asarray(once.x)[done], 0)
    np.testing.assert_array_equal(np.asarray(often.first)[done], np.asarray(once.first)[done])


# Systems that draw at random


class Noisy(fm.Model):
    """Adds noise to the input, the same for every example of a call."""

    weight: jax.Array


@dispatch
def forward(net: Noisy, x, mode):
    noise = jax.random.uniform(mode.key, x.shape[1:], x.dtype, -0.9, 0.9)
    return jnp.tanh(3 * (x + noise[None])) @ net.weight


def noisy(n=6):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(n, 8)), rng.integers(0, 3, n).astype(np.int32)
    return fm.Classifier(Noisy(jnp.asarray(rng.normal(size=(8, 3))))), fm.Labeled(x, y, index=np.arange(n) + 3)


@pytest.mark.parametrize("attack", [fm.FGSM(REGION), attacks.DIFGSM(REGION, 0.02, 3, 1.0, views=())], ids=["FGSM", "MI"])
def test_samples_are_drawn_separately_for_each_example(attack, key):
    with jax.enable_x64(True):
        system, data = noisy()
        attack = fm.replace(attack, samples=4)
        together = np.asarray(fm.perturb(attack, system, data, key, best=False).x)
        assert np.abs(together - np.asarray(fm.perturb(attack, system, data, jax.random.key(1), best=False).x)).max() > 0.01
        order = np.array([3, 0, 5, 1, 4, 2])
        near(fm.perturb(attack, system, data[order], key, best=False).x, together[order], 1e-12)
        if type(attack) is not fm.FGSM:  # other sizes are other programs
            return
        near(fm.perturb(attack, system, data[2:3], key, best=False).x, together[2:3], 1e-12)
        # The same example with two indices has two draws.
        twice = fm.Labeled(np.repeat(data.x[:1], 2, 0), np.repeat(data.y[:1], 2), index=np.array([0, 1]))
        problem = attacks.Problem(attack, system, twice, key=key)
        value = jax.jit(lambda problem: problem.evaluate(problem.origin).value)(problem)
        assert abs(float(value[0] - value[1])) > 1e-3


def test_more_samples_approximate_the_expected_gradient_better(key):
    with jax.enable_x64(True):
        system, data = noisy()

        def gradients(samples, keys):
            problem = lambda key: attacks.Problem(fm.FGSM(REGION, samples=samples), system, data, key=key)
            gradient = jax.jit(lambda key: problem(key).gradient(jnp.asarray(data.x))[0])
            return np.stack([gradient(key) for key in keys])

        keys = jax.random.split(key, 44)
        often = gradients(128, keys)
        expected = often[4:].mean(0)  # of 5120 draws
        few, many = (np.mean((found - expected) ** 2) for found in (gradients(2, keys[:4]), often[:4]))
        assert 16 < few / many < 256  # 64 is expected


# Custom batches and systems


class Seen(fm.Batch):
    """Two inputs; one or both may be attacked."""

    image: jax.Array
    sound: jax.Array
    y: jax.Array
    attackable: ClassVar = ("image",)


class Both(Seen):
    attackable: ClassVar = ("image", "sound")


class Fused(fm.Model):
    weight: jax.Array
    other: jax.Array


@dispatch
def loss(net: Fused, batch: Seen):
    return ((batch.image @ net.weight + batch.sound.sum(-1) @ net.other - batch.y) ** 2).astype(jnp.float32)


def test_attackable_names_the_attacked_fields(key):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    net, arrays = Fused(jnp.asarray(draw(4)), jnp.asarray(draw(3))), (draw(5, 4), draw(5, 3, 2), draw(5))
    rest = arrays[0] @ np.asarray(net.weight) + arrays[1].sum(-1) @ np.asarray(net.other) - arrays[2]
    sign = np.sign(rest)[:, None] * np.sign(np.asarray(net.weight))[None]
    heard = (np.sign(rest)[:, None] * np.sign(np.asarray(net.other))[None])[:, :, None]
    attack = attacks.BIM(fm.LinfBall(0.3), 0.1, 3)
    one, both = (fm.perturb(attack, net, kind(*arrays), key) for kind in (Seen, Both))
    assert type(one) is Seen and type(both) is Both
    for attacked in (one, both):
        near(attacked.image, arrays[0] + 0.3 * sign)
        np.testing.assert_array_equal(attacked.y, arrays[2])
    np.testing.assert_array_equal(one.sound, arrays[1])
    near(both.sound, arrays[1] + 0.3 * heard)
    with pytest.raises(ValueError, match=r"APGD attacks one array, got a batch with 2.*fm.PGD.*attackable: ClassVar"):
        fm.perturb(fm.attacks.APGD(fm.LinfBall(0.3)), net, Both(*arrays), key)


class Twins(fm.System):
    """Two classifiers on one input."""

    one: fm.Classifier
    two: fm.Classifier


def test_both_parts_of_a_system_are_attacked(model, data, key):
    """The default objective is the sum of their losses; the attack succeeds if it fools both."""
    other = classifier(seed=5)
    twins = Twins(model, other)
    batch = data[:16]
    total = lambda x: sum(fm.losses(s, fm.replace(batch, x=x))["cross_entropy"].sum() for s in (model, other))
    expected = np.clip(batch.x + np.float32(0.1) * np.sign(jax.jit(jax.grad(total))(batch.x)), 0, 1)
    moved = fm.perturb(fm.FGSM(REGION), fm.Frozen(twins), batch, key, best=False).x
    assert (np.abs(np.asarray(moved) - expected) < 1e-5).mean() > 0.99
    found = attacks.attempt(fm.PGD(REGION, 0.02, 5, attacks.Clean()), twins, batch, key)
    right = [logits(s, found.x).argmax(1) == batch.y for s in (model, other)]
    np.testing.assert_array_equal(found.succeeded, ~right[0] & ~right[1])


def test_a_regressor_is_attacked_by_its_loss(key):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(7, 1)).astype(np.float32)
    regressor = fm.init(fm.Regressor(fm.models.Dense(4, 1)), key)
    weight = np.asarray(regressor.model.weight)[:, 0]
    rest = (x @ weight)[:, None] - y
    moved = fm.perturb(attacks.MIFGSM(fm.LinfBall(0.2), steps=4), regressor, (x, y), key)
    near(moved.x, x + 0.2 * np.sign(rest) * np.sign(weight)[None], 1e-5)


@pytest.mark.parametrize("attack", [attacks.APGD, attacks.DeepFool, attacks.Square])
def test_an_objective_that_does_not_fit_the_system_is_refused(attack, key):
    """An attack on a regression that maximises a classification loss is no evidence of robustness."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(7, 1)).astype(np.float32)
    regressor = fm.init(fm.Regressor(fm.models.Dense(4, 1)), key)
    for call in (fm.evaluate, lambda system, data, attack: fm.perturb(attack, system, data, key)):
        with pytest.raises(ValueError, match=rf"{attack.__name__}.objective.*objective=fm.MSE\(\).*fm.PGD"):
            call(regressor, (x, y), attack=attack(attacks.L2Ball(0.1)))
    if attack is attacks.APGD:
        fitting = attack(attacks.L2Ball(0.1), steps=3, objective=fm.MSE())
        figures = fm.evaluate(regressor, (x, y), attack=fitting)
        assert figures["robust/loss"] > figures["loss"]


# Attempts


MANY = {
    "PGD": fm.PGD(REGION, 0.02, 12),
    "MI-NI-DI": attacks.NIFGSM(REGION, 0.02, 6, views=(attacks.Diverse(),)),
    "of several": fm.WorstOf(fm.FGSM(REGION), fm.PGD(REGION, 0.02, 8, restarts=2)),
}


@pytest.mark.parametrize("attack", MANY.values(), ids=MANY)
def test_an_attempt_does_not_depend_on_the_other_examples_exactly(attack, key):
    with jax.enable_x64(True):
        x, y = examples(N + 8, np.float64)
        data = fm.Labeled(x, y, index=np.arange(N + 8) + 100)
        # The same examples among others and in other rows; batches of one size share their programs.
        rows, others = np.arange(N), np.arange(N + 7, 7, -1)
        one, other = (attacks.attempt(attack, classifier(np.float64), data[each], key) for each in (rows, others))
        assert 0 < np.asarray(one.succeeded).sum() < N
        assert len(np.unique(one.first)) > 2
        for name, atol in (("x", 1e-10), ("succeeded", 0), ("first", 0)):
            near(np.asarray(getattr(one, name))[8:], np.asarray(getattr(other, name))[:7:-1], atol)


def test_an_attempt_does_not_depend_on_the_other_examples_in_single_precision(model, key):
    x, y = examples(N)
    data, attack = fm.Labeled(x, y, index=np.arange(N)), fm.PGD(REGION, 0.02, 12)
    whole, order = attacks.attempt(attack, model, data, key), np.random.default_rng(0).permutation(N)
    again = attacks.attempt(attack, model, data[order], key)
    parts = [attacks.attempt(attack, model, data[i : i + SMALLEST], key) for i in range(0, N, SMALLEST)]
    for other in (np.asarray(again.x)[np.argsort(order)], np.concatenate([part.x for part in parts])):
        alike = np.abs(np.asarray(whole.x) - other).max((1, 2, 3)) <= 1e-3
        assert alike.mean() >= 0.99


def test_attempt_attacks_the_remaining_examples_like_perturb(key):
    """Examples that never succeed get the same best points as without dropping the others."""
    with jax.enable_x64(True):
        model = classifier(np.float64)
        x, y = examples(N, np.float64)
        data, attack = fm.Labeled(x, y, index=np.arange(N)), fm.PGD(REGION, 0.02, 12)
        found, whole = attacks.attempt(attack, model, data, key), fm.perturb(attack, model, data, key)
        left = ~np.asarray(found.succeeded)
        assert bucket(left.sum(), N) == 16 and left.sum() > 5
        near(np.asarray(found.x)[left], np.asarray(whole.x)[left], 1e-10)
        fooled = logits(model, found.x).argmax(1) != y
        np.testing.assert_array_equal(found.succeeded, fooled)
        assert (np.asarray(found.first)[left] == -1).all()
        # The first success, not the best point after it.
        steps = np.asarray(found.first)
        one = int(steps[steps > 1].min())
        shorter = attacks.attempt(fm.replace(attack, steps=one - 1), model, data, key)
        assert not np.asarray(shorter.succeeded)[steps == one].any()


def test_few_programs_are_compiled(model, data, key):
    attack = fm.PGD(REGION, 0.02, 12)
    attacks.attempt(attack, model, data, key)
    with Compilations() as seen:
        attacks.attempt(attack, model, fm.replace(data, x=data.x[::-1], y=data.y[::-1]), jax.random.key(3))
        attacks.attempt(fm.PGD(fm.LinfBall(0.08) & BOX, 0.01, 20), model, data, key)
        fewer = [name for name in seen.names if "_advance" in name or "_begin" in name or "_finish" in name]
    assert len(fewer) <= 2
    assert not {"jit(_where)", "jit(gather)"} & {*seen.names}  # for another number of remaining examples
    assert bucket(SMALLEST, 10**6) < 2 * SMALLEST
    assert len({bucket(n, 512) for n in range(1, 513)}) <= 6


# Bad input


BAD = {
    "labels out of range": (lambda y: np.resize(np.int32([5, 14]), len(y)), None, "labels from 0 to 9.* from 5 to 14"),
    "a class that is not there": (lambda y: y, fm.attacks.Target(np.int32(12)), "labels from 0 to 9.* 12"),
}


@pytest.mark.parametrize(("change", "target", "message"), BAD.values(), ids=BAD)
def test_labels_out_of_range_are_refused(change, target, message, model, data, key):
    options = {} if target is None else {"target": target}
    with pytest.raises(ValueError, match=message):
        fm.perturb(fm.PGD(REGION, 0.02, 2, **options), model, fm.replace(data, y=change(data.y)), key)


class Plane(fm.Model):
    """A boundary at 0.5 in the first coordinate."""

    weight: jax.Array


@dispatch
def forward(plane: Plane, x):
    return x @ plane.weight + jnp.array([[0.5, 0.0]])


def test_the_step_of_the_first_success_is_counted(key):
    """Also at the last step of a program that serves any number of steps."""
    system = fm.Classifier(Plane(jnp.array([[0.0, 1.0], [0.0, 0.0]])))
    x = np.array([[0.0, 0.0], [0.35, 0.0], [0.9, 0.0]], np.float32)
    data = fm.Labeled(x, np.zeros(3, np.int32))
    attack = fm.PGD(fm.LinfBall(1.0), step_size=0.2, steps=3, start=fm.attacks.Clean())
    found = fm.attacks.attempt(attack, system, data, key)
    assert np.asarray(found.first).tolist() == [3, 1, 0]
