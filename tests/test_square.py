"""Square: its changes, its progress, and independence of examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks import Square, attack_loop, attempt
from fulmen.robust.attacks.region import L1Ball, L2Ball
from fulmen.robust.attacks.square import _peaks, _sides, changed, pattern

BOX, SHAPE = fm.Box(0.0, 1.0), (9, 8, 2)
BALLS = {"Linf": fm.LinfBall(0.05), "L2": L2Ball(0.3), "L1": L1Ball(1.0)}


class Affine(fm.Model):
    """Logits: products with one image per class."""

    weight: jax.Array


@dispatch
def forward(model: Affine, x):
    return x.reshape(len(x), -1) @ model.weight


def problem(dtype=np.float32, n=10, classes=3, shape=SHAPE):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(int(np.prod(shape)), classes)).astype(dtype)
    x = rng.uniform(0.2, 0.8, size=(n, *shape)).astype(dtype)
    y = (x.reshape(n, -1) @ weight).argmax(1).astype(np.int32)
    return fm.Classifier(Affine(weight), fm.CrossEntropy()), fm.Labeled(x, y)


def margins(system, batch):
    x = np.asarray(batch.x)
    logits = x.reshape(len(x), -1) @ np.asarray(system.model.weight)
    others = np.where(np.arange(logits.shape[1]) == batch.y[:, None], -np.inf, logits)
    return others.max(1) - logits[np.arange(len(x)), batch.y]


def norm(name, offset):
    flat = np.asarray(offset).reshape(len(offset), -1)
    return np.linalg.norm(flat, {"Linf": np.inf, "L2": 2, "L1": 1}[name], axis=1)


def test_steps_without_gradients_loop_in_a_program_until_the_next_check(key, monkeypatch):
    system, batch = problem()
    calls, advance = [], attack_loop._advance
    monkeypatch.setattr(attack_loop, "_advance", lambda *a: calls.append(int(a[4] - a[3])) or advance(*a))
    attack = Square(fm.LinfBall(0.05) & BOX, 300)
    together = attempt(attack, system, batch, key)
    assert 0 < together.succeeded.sum() < len(batch) and sum(calls) == 300 and len(calls) < 60
    monkeypatch.setattr(Square, "uses_gradients", True)
    one_by_one = attempt(attack, system, batch, key)
    assert len(calls) > 300
    for name in ("x", "value", "succeeded", "first"):
        np.testing.assert_array_equal(getattr(together, name), getattr(one_by_one, name))


@pytest.mark.parametrize(("name", "dtype"), [("Linf", np.float32), ("L2", np.float64), ("L1", np.float32)])
def test_square_increases_the_loss_inside_the_region(name, dtype, key):
    system, batch = problem(dtype)
    batch = fm.replace(batch, index=np.arange(10))  # so that the programs are those of the last tests
    gained = {}
    for queries in (1, 300):
        with jax.enable_x64(dtype is np.float64):
            attacked = fm.perturb(Square(BALLS[name] & BOX, queries), system, batch, key)
        offset = np.asarray(attacked.x) - batch.x
        assert (norm(name, offset) <= BALLS[name].eps * (1 + 1e-5)).all()
        assert ((np.asarray(attacked.x) >= 0) & (np.asarray(attacked.x) <= 1)).all()
        gained[queries] = margins(system, attacked) - margins(system, batch)
    weight = np.asarray(system.model.weight)
    best = max(
        np.linalg.norm(weight[:, a] - weight[:, b], {"Linf": 1, "L2": 2, "L1": np.inf}[name])
        for a in range(3)
        for b in range(3)
    )
    most = BALLS[name].eps * best
    assert (gained[300] <= most * 1.001).all()
    assert (gained[300] > gained[1]).all()
    assert gained[300].mean() > {"Linf": 0.3, "L2": 0.25, "L1": 0.2}[name] * most


def test_square_approaches_the_worst_case(key):
    system, batch = problem(classes=2, shape=(4, 4, 1))
    attacked = fm.perturb(Square(fm.LinfBall(0.05) & BOX, 1000), system, batch, key)
    weight = np.asarray(system.model.weight)
    most = 0.05 * np.abs(weight[:, 0] - weight[:, 1]).sum()
    assert ((margins(system, attacked) - margins(system, batch)) > 0.97 * most).all()


def test_the_squares_follow_the_schedule_of_the_paper():
    attack = Square(fm.LinfBall(0.1))
    p = [0.8 / 2 ** sum(i > h for h in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)) for i in range(9000)]
    rows, columns = jax.jit(jax.vmap(lambda i: _sides(attack, (28, 28, 1), i, 1)))(np.arange(9000, dtype=np.int32))
    expected = [max(round((v * 28 * 28) ** 0.5), 1) for v in p]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(columns, expected)
    odd, _ = jax.jit(jax.vmap(lambda i: _sides(attack, (28, 28, 1), i, 3)))(np.arange(9000, dtype=np.int32))
    np.testing.assert_array_equal(odd, [s + 1 - s % 2 for s in np.maximum(expected, 3)])
    of_a_vector = jax.jit(lambda i: _sides(attack, (1, 64, 1), i, 1))(0)
    assert [int(v) for v in of_a_vector] == [1, 51]  # a run of features


def test_the_first_point_has_stripes_at_full_size(key):
    draw = jax.jit(pattern, static_argnums=1)
    first = np.asarray(draw(fm.LinfBall(0.05), SHAPE, key))
    assert (np.abs(first) == np.float32(0.05)).all() and (first == first[:1]).all()
    assert len(np.unique(first)) == 2
    for name, ball in (("L2", L2Ball(0.3)), ("L1", L1Ball(1.0))):
        np.testing.assert_allclose(norm(name, draw(ball, (28, 28, 3), key)[None]), ball.eps, rtol=5e-5)  # a sum of 2352


@pytest.mark.parametrize("name", ["L2", "L1"])
def test_a_change_moves_the_budget_to_one_square(name, key):
    offset = np.random.default_rng(0).normal(size=(10, 12, 2)).astype(np.float32)
    offset *= np.float32(BALLS[name].eps / norm(name, offset[None])[0])
    change = jax.jit(lambda offset, key: changed(BALLS[name], offset, jnp.int32(3), jnp.int32(3), key))
    after = np.asarray(change(offset, jax.random.key(2)))
    np.testing.assert_allclose(norm(name, after[None]), BALLS[name].eps, rtol=1e-5)
    moved = np.abs(after - offset).max(2) > 1e-4
    assert 9 <= moved.sum() <= 18
    assert moved.sum() == 9 or ((np.abs(after).max(2) == 0) & moved).any()  # the other square is set to 0


def test_peaks_have_opposite_signs_and_norm_one():
    inside = jnp.ones((7, 7), bool)
    i, j = jnp.arange(7)[:, None], jnp.arange(7)[None]
    peaks = jax.jit(lambda flip: _peaks(L2Ball(1.0), i, j, 7, 7, inside, flip))
    upright, flipped = (np.asarray(peaks(flip)) for flip in (False, True))
    np.testing.assert_allclose(upright.T, flipped)
    assert (upright[:3] > 0).all() and (upright[3:] < 0).all()
    np.testing.assert_allclose([(upright[:3] ** 2).sum(), (upright[3:] ** 2).sum()], 0.5, rtol=1e-5)
    assert upright[:3].argmax() == upright[:3, 3].argmax() * 7 + 3  # highest in the middle


@pytest.mark.parametrize("name", ["Linf", "L2"])
def test_an_attack_on_an_example_does_not_depend_on_the_others(name, key):
    attack = Square(BALLS[name] & BOX, 20)
    with jax.enable_x64(True):
        system, batch = problem(np.float64, n=14)
        batch = fm.replace(batch, index=np.arange(14) + 3)
        batch, other = batch[np.arange(10)], batch[np.arange(13, 3, -1)]  # of one size, so that they share their programs
        x, others = (np.asarray(fm.perturb(attack, system, each, key).x) for each in (batch, other))
        np.testing.assert_allclose(others[:3:-1], x[4:], rtol=0, atol=1e-12)
        if name == "Linf":
            traced = jax.jit(lambda s, b, k: fm.perturb(attack, s, b, k).x)(system, batch, key)
            np.testing.assert_allclose(traced, x, rtol=0, atol=1e-9)
        assert len(np.unique((x - batch.x).round(9).reshape(10, -1), axis=0)) == 10


def test_square_stops_at_the_first_success(key):
    system, batch = problem()
    outcome = attempt(Square(fm.LinfBall(0.2) & BOX, 60), system, batch, key)
    done, first = np.asarray(outcome.succeeded), np.asarray(outcome.first)
    assert done.any() and (first[done] >= 1).all() and (first[~done] == -1).all()
    np.testing.assert_array_equal(margins(system, fm.replace(batch, x=outcome.x)) >= 0, done)
    late = int(np.argmax(np.where(done, first, 0)))
    early = attempt(Square(fm.LinfBall(0.2) & BOX, int(first[late]) - 1), system, batch, key)
    assert not np.asarray(early.succeeded)[late]


def test_another_number_of_queries_compiles_nothing(key):
    from tiny import Compilations

    system, batch = problem()
    batch = fm.replace(batch, index=np.arange(10))
    fm.perturb(Square(fm.LinfBall(0.05) & BOX, 2), system, batch, key)
    with Compilations() as compiled:
        fm.perturb(Square(fm.LinfBall(0.01) & BOX, 5, fraction=0.3), system, batch, key)
    assert compiled.names == []


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (lambda: Square(BOX), ValueError, "region must contain one ball"),
        (lambda: Square(fm.LinfBall(0.1), 0), ValueError, "Square.queries .* got 0"),
        (lambda: Square(fm.LinfBall(0.1), fraction=0.0), ValueError, "Square.fraction .* got 0"),
        (lambda: Square(fm.LinfBall(0.1), fraction=1.5), ValueError, "Square.fraction .* got 1.5"),
    ],
)
def test_invalid_attacks_are_refused(attack, error, message, key):
    with pytest.raises(error, match=message):
        fm.perturb(attack(), *problem(), key)


def test_inputs_with_too_many_axes_are_refused(key):
    system, batch = problem(shape=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"Square, x: must be images .* got shape \(10, 2, 2, 2, 2\)"):
        fm.perturb(Square(fm.LinfBall(0.1), 3), system, batch, key)
