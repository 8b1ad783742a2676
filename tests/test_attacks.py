"""Regions, attacks and `perturb` against formulas and hand-written loops."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Compilations

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks.attack_loop import UNROLL
from fulmen.robust.attacks.attack_runs import last_point

N, WIDTH, CLASSES = 6, 5, 3
BOX = fm.Box(0.0, 1.0)


class Perceptron(fm.Model):
    """Two layers with a custom loss, one value per example."""

    first: jax.Array
    second: jax.Array


@dispatch
def forward(net: Perceptron, x):
    return jnp.tanh(x @ net.first) @ net.second


@dispatch
def loss(net: Perceptron, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch.x), batch.y)


class Declared(fm.System):
    """The same with `per_example = True`."""

    per_example: ClassVar[bool] = True
    net: Perceptron


@dispatch
def losses(system: Declared, batch: fm.Labeled):
    return {"net": loss(system.net, batch), "decay": 0.5 * (system.net.first**2).sum()}


class Coupled(fm.Model):
    """A loss of the whole batch; its gradient at one example depends on the others."""

    net: Perceptron


@dispatch
def loss(system: Coupled, batch: fm.Labeled):
    return loss(system.net, batch).mean() + 9 * ((batch.x - batch.x.mean(0)[None]) ** 2).sum()


class Curve(fm.Model):
    """A loss that depends on the input only."""

    function: Any = fm.static()


@dispatch
def loss(curve: Curve, batch):
    return curve.function(batch.x).sum(1)


def net(dtype=np.float32):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(2 * rng.normal(size=shape), dtype)
    return Perceptron(draw(WIDTH, 8), draw(8, CLASSES))


def batch(n=N, dtype=np.float32, **options):
    rng = np.random.default_rng(2)
    x, y = rng.uniform(size=(64, WIDTH))[:n].astype(dtype), rng.integers(0, CLASSES, 64)[:n].astype(np.int32)
    return fm.Labeled(x, y, **options)


def slope(net, x, y):
    """The gradient of each example's loss at its input."""
    return np.asarray(slopes(net, x, y))


@jax.jit
def slopes(net, x, y):
    return jax.grad(lambda x: loss(net, fm.Labeled(x, y)).sum())(x)


def pgd_by_hand(net, x, y, eps, step_size, steps, start=None, box=(0, 1)):
    """The attack as in the paper: ascend the loss."""
    point = x if start is None else start
    for _ in range(steps):
        point = point + np.asarray(step_size, x.dtype) * np.sign(slope(net, point, y))
        point = np.clip(np.clip(point, x - x.dtype.type(eps), x + x.dtype.type(eps)), *np.asarray(box, x.dtype))
    return point


def near(a, b, atol=1e-6):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@functools.partial(jax.jit, static_argnames="best")
def perturb_traced(attack, system, batch, key, best=True):
    return fm.perturb(attack, system, batch, key, best=best)


# The step


@pytest.mark.parametrize("rate", [0.1, optax.linear_schedule(0.3, 0.1, 3)], ids=["number", "schedule"])
def test_fgsm_is_sign_sgd(rate):
    ours, theirs = fm.attacks.fgsm(rate), optax.sign_sgd(rate)
    x = np.zeros(7, np.float32)
    one, other = ours.init(x), theirs.init(x)
    for gradient in np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32):
        gradient[0] = 0
        a, one = ours.update(jnp.asarray(gradient), one)
        b, other = theirs.update(jnp.asarray(gradient), other)
        np.testing.assert_array_equal(a, b)
        assert np.abs(np.asarray(a)).max() > 0.05


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("eps", [1, 0.5, np.float64(0.5), jnp.float32(0.5)], ids=["int", "float", "numpy", "jax"])
def test_fgsm_keeps_the_type_of_the_gradient(dtype, eps):
    step, _ = fm.attacks.fgsm(eps).update(jnp.ones(2, dtype), fm.attacks.fgsm(eps).init(jnp.ones(2, dtype)))
    assert step.dtype == dtype
    near(step.astype(jnp.float32), [-float(eps)] * 2)


def test_transformation_of_attacks():
    region = BOX & fm.LinfBall(0.3)
    gradient = jnp.array([2.0, -1.0])
    for attack, size in [(fm.FGSM(region), 0.3), (fm.FGSM(region, step_size=0.2), 0.2), (fm.PGD(region, 0.1, 7), 0.1)]:
        chain = fm.attacks.transformation(attack)
        near(chain.update(gradient, chain.init(gradient))[0], [-size, size])
    mine = optax.sgd(1.0)
    assert fm.attacks.transformation(fm.Attack(mine, BOX)) is mine


# Regions


numbers = functools.partial(st.floats, width=16, allow_subnormal=False)  # XLA takes subnormal numbers for 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from([0.03, 1.0, 50.0]), numbers(0, 2), numbers(-2, 0))
def test_projection_is_inside_idempotent_and_nearest(dtype, seed, size, eps, low):
    with jax.enable_x64(True):
        rng, dtype = np.random.default_rng(seed), jnp.dtype(dtype)
        origin = np.clip(rng.normal(size=(4, 50)) * size, low, low + 2).astype(dtype)
        x = (rng.normal(size=(4, 50)) * 2 * size).astype(dtype)
        eps, low, high = (np.asarray(v).astype(dtype) for v in (eps, low, low + 2))
        origin = np.clip(origin, low, high).astype(dtype)
        ball, box = fm.LinfBall(eps), fm.Box(low, high)
        for region in (ball, box, ball & box, box & ball):
            there = np.asarray(nearest(region, x, origin))
            assert there.dtype == dtype
            np.testing.assert_array_equal(nearest(region, there, origin), there)
            np.testing.assert_array_equal(nearest(region, origin, origin), origin)
            # Checked in a wider type: float64, or long double for float64.
            wide = np.longdouble if dtype == np.float64 else np.float64
            w_there, w_x, w_origin, w_eps = (np.asarray(v).astype(wide) for v in (there, x, origin, eps))
            lo, hi = w_origin * 0 - np.inf, w_origin * 0 + np.inf
            if region is not box:
                assert (np.abs(w_there - w_origin) <= w_eps).all()
                assert (np.abs(there - np.asarray(origin)) <= np.asarray(eps)).all()
                lo, hi = w_origin - w_eps, w_origin + w_eps
            if region is not ball:
                assert (there >= np.asarray(low)).all() and (there <= np.asarray(high)).all()
                lo, hi = np.maximum(lo, wide(low)), np.minimum(hi, wide(high))
            inside = (w_x >= lo) & (w_x <= hi)
            np.testing.assert_array_equal(w_there[inside], w_x[inside])
            spacing = float(jnp.finfo(dtype).eps) * (np.abs(w_origin) + np.abs(w_eps)) + float(jnp.finfo(dtype).tiny)
            assert (np.abs(w_there - np.clip(w_x, lo, hi)) <= spacing).all()


@jax.jit
def nearest(region, x, origin):
    return fm.attacks.project(region, x, origin)


def test_clipping_without_rounding_down_leaves_the_ball():
    origin, eps = np.linspace(0, 1, 1000, dtype=np.float32), np.float32(0.1)
    naive = np.clip(origin + 1, origin - eps, origin + eps)
    assert (np.abs(naive - origin) > eps).any()
    assert (np.abs(np.asarray(nearest(fm.LinfBall(0.1), origin + 1, origin)) - origin) <= eps).all()


def test_intersections_are_flat_and_project_balls_first():
    a, b, c = fm.LinfBall(0.1), fm.Box(0, 1), fm.Box(0.2, 2)
    both = (b & a) & (c & a)
    assert both.regions == (b, a, c, a)
    assert repr(b & a) == "Box(lo=0, hi=1) & LinfBall(eps=0.1)"
    # The ball around 0.15 ends at 0.25 and intersects both boxes from 0.2 on; the one around 0.05 intersects neither.
    origin, x = jnp.array([[0.15, 0.15, 0.15, 0.05]]), jnp.array([[-1.0, 0.22, 9.0, 0.5]])
    for region in (both, fm.attacks.Intersection((fm.attacks.Intersection((c, b)), a))):
        near(nearest(region, x, origin), [[0.2, 0.22, 0.25, 0.2]])


# Attacks


@pytest.mark.parametrize("perturb", [fm.perturb, perturb_traced], ids=["from the host", "traced"])
def test_fgsm_is_the_formula(perturb, key):
    data, eps = batch(), 0.3
    attacked = perturb(fm.FGSM(fm.LinfBall(eps) & BOX), net(), data, key, best=False)
    assert type(attacked) is fm.Labeled
    near(attacked.x, np.clip(data.x + np.float32(eps) * np.sign(slope(net(), data.x, data.y)), 0, 1))
    np.testing.assert_array_equal(attacked.y, data.y)


@pytest.mark.parametrize("steps", [2, UNROLL + 2])
@pytest.mark.parametrize("perturb", [fm.perturb, perturb_traced], ids=["from the host", "traced"])
def test_pgd_is_the_loop(perturb, steps, key):
    data = batch()
    attack = fm.PGD(fm.LinfBall(0.2) & BOX, step_size=0.07, steps=steps, start=fm.attacks.Clean())
    expected = pgd_by_hand(net(), data.x, data.y, 0.2, 0.07, steps)
    near(perturb(attack, net(), data, key, best=False).x, expected)


@pytest.mark.parametrize(
    "system", [lambda n: n, Declared, lambda n: fm.Frozen(Declared(n))], ids=["model", "system", "wrapper"]
)
def test_each_example_is_attacked_by_its_own_loss_only(system, key):
    data = batch(weight=np.arange(N, dtype=np.float32))  # includes an example of weight 0
    attack = fm.PGD(fm.LinfBall(0.2) & BOX, step_size=0.07, steps=3, start=fm.attacks.Clean())
    expected = pgd_by_hand(net(), data.x, data.y, 0.2, 0.07, 3)
    attacked = fm.perturb(attack, system(net()), data, key, best=False)
    near(attacked.x, expected)
    np.testing.assert_array_equal(attacked.weight, data.weight)


def test_pgd_starts_at_random_in_the_ball(key):
    data = batch()
    still = fm.PGD(fm.LinfBall(0.2) & BOX, step_size=0.0, steps=1)
    start = np.asarray(fm.perturb(still, net(), data, key, best=False).x)
    offsets = start - data.x
    assert np.abs(offsets).max() <= 0.2 and np.abs(offsets).max() > 0.15
    assert len(np.unique(offsets.round(4))) > N * WIDTH - 8  # except for clipped coordinates
    expected = pgd_by_hand(net(), data.x, data.y, 0.2, 0.07, 4, start=start)
    near(fm.perturb(fm.PGD(fm.LinfBall(0.2) & BOX, 0.07, 4), net(), data, key, best=False).x, expected)
    wide = fm.Labeled(np.full((200, 20), 0.5, np.float32), np.zeros(200, np.int32))
    flat = Curve(jnp.zeros_like)
    drawn = np.asarray(fm.perturb(still, flat, wide, key, best=False).x) - 0.5
    assert abs(drawn.mean()) < 0.005
    assert abs(drawn.std() - 0.4 / 12**0.5) < 0.003
    other = np.asarray(fm.perturb(still, flat, wide, jax.random.key(1), best=False).x) - 0.5
    assert (drawn != other).mean() > 0.99


@pytest.mark.parametrize("perturb", [fm.perturb, perturb_traced], ids=["from the host", "traced"])
@pytest.mark.parametrize("attack", [fm.FGSM(fm.LinfBall(0.25)), fm.PGD(fm.LinfBall(0.25), 0.1, 5)], ids=["FGSM", "PGD"])
def test_a_linear_model_reaches_its_closed_form_worst_case(perturb, attack, key):
    w = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)
    data = fm.Unlabeled(batch().x)
    linear = Curve(lambda x: x * w[None])
    gained = loss(linear, perturb(attack, linear, data, key)) - loss(linear, data)
    near(gained, np.full(N, 0.25 * np.abs(w).sum()), 1e-5)  # ε ‖w‖₁


@pytest.mark.parametrize(
    ("make", "best"), [(fm.FGSM, True), (lambda r: fm.PGD(r, 0.1, 3), False)], ids=["FGSM, best", "PGD, last"]
)
def test_a_radius_of_zero_returns_the_input(make, best, key):
    data = batch()
    attacked = fm.perturb(make(fm.LinfBall(0.0) & BOX), net(), data, key, best=best)
    np.testing.assert_array_equal(attacked.x, data.x)


def test_momentum_can_be_composed_from_optax_parts(key):
    data, eps, steps = batch(), 0.1, 3
    chain = optax.chain(optax.normalize_by_update_norm(), optax.trace(decay=1.0), fm.attacks.fgsm(0.02))
    x, m = data.x, 0.0
    for _ in range(steps):
        g = -slope(net(), x, data.y)
        m = m + g / np.linalg.norm(g, axis=1, keepdims=True)
        x = np.clip(np.clip(x - np.float32(0.02) * np.sign(m), data.x - np.float32(eps), data.x + np.float32(eps)), 0, 1)
    attack = fm.Attack(chain, fm.LinfBall(eps) & BOX, steps=steps)
    near(fm.perturb(attack, net(), data, key, best=False).x, x)
    near(perturb_traced(attack, net(), data, key, best=False).x, x)


CLIPPED = optax.chain(optax.clip_by_global_norm(0.05), optax.trace(decay=0.9), optax.scale(-1.0))
MOMENTUM = optax.chain(optax.normalize_by_update_norm(), optax.trace(decay=1.0), fm.attacks.fgsm(0.02))


COMPANY = {
    "model, PGD": (lambda n: n, lambda r: fm.PGD(r, 0.03, 5)),
    "model, clipped": (lambda n: n, lambda r: fm.Attack(CLIPPED, r, steps=5, start=fm.attacks.Uniform())),
    "per example, clipped": (Declared, lambda r: fm.Attack(CLIPPED, r, steps=5)),
    "coupled, momentum": (Coupled, lambda r: fm.Attack(MOMENTUM, r, steps=5, start=fm.attacks.Uniform())),
}


@pytest.mark.parametrize(("system", "make"), COMPANY.values(), ids=COMPANY)
def test_an_attack_on_an_example_does_not_depend_on_the_others(system, make, key):
    with jax.enable_x64(True):
        attack, whole = make(fm.LinfBall(0.1) & BOX), system(net(np.float64))
        data = batch(9, dtype=np.float64, index=np.arange(9) + 7)
        together = np.asarray(fm.perturb(attack, whole, data[:N], key).x)
        assert together.dtype == np.float64
        assert np.abs(together - data.x[:N]).max() > 0.01
        # Four of them among others and in other rows; batches of one size share their programs.
        order = np.array([3, 8, 5, 1, 7, 2])
        near(np.asarray(fm.perturb(attack, whole, data[order], key).x)[[0, 2, 3, 5]], together[[3, 5, 1, 2]], 1e-12)
        for i in (0, 4) if type(attack) is fm.PGD else ():
            near(fm.perturb(attack, whole, data[i : i + 1], key).x, together[i : i + 1], 1e-12)


def test_without_an_index_examples_draw_by_position(key):
    attack, data = fm.PGD(fm.LinfBall(0.1), 0.01, 1), batch()
    drawn = np.asarray(fm.perturb(attack, net(), data, key, best=False).x)
    same, others = (fm.perturb(attack, net(), batch(index=np.arange(N) + i), key, best=False).x for i in (0, 1))
    np.testing.assert_array_equal(drawn, same)
    assert (drawn != np.asarray(others)).any()


@pytest.mark.parametrize("perturb", [fm.perturb, perturb_traced], ids=["from the host", "traced"])
def test_the_best_point_is_kept(perturb, key):
    hill = Curve(lambda x: -((x - 0.35) ** 2))  # from 0 by steps of 0.2: 0.2, 0.4, 0.2, 0.4, …
    data = fm.Unlabeled(np.zeros((2, 1), np.float32))
    attack = functools.partial(fm.PGD, fm.LinfBall(1.0), 0.2, start=fm.attacks.Clean())
    for steps, last in [(3, 0.2), (UNROLL + 3, 0.2)]:
        near(perturb(attack(steps=steps), hill, data, key, best=False).x, [[last]] * 2)
        near(perturb(attack(steps=steps), hill, data, key).x, [[0.4]] * 2)
    # The step is too long: the clean point is better.
    far = fm.FGSM(fm.LinfBall(1.0))
    near(perturb(far, hill, data, key, best=False).x, [[1.0]] * 2)
    near(perturb(far, hill, data, key).x, [[0.0]] * 2)


def test_the_best_point_is_kept_per_example(key):
    hill = Curve(lambda x: -((x - 0.35) ** 2))
    data = fm.Unlabeled(np.array([[0.0], [0.1], [0.35]], np.float32))
    attack = fm.PGD(fm.LinfBall(1.0), 0.2, 3, start=fm.attacks.Clean())
    near(fm.perturb(attack, hill, data, key).x, [[0.4], [0.3], [0.35]])


def test_gradients_that_are_not_finite_count_as_zero(key):
    root = Curve(jnp.sqrt)
    data = fm.Unlabeled(np.array([[0.0, 0.25], [0.25, 0.25]], np.float32))
    near(fm.perturb(fm.FGSM(fm.LinfBall(0.1)), root, data, key).x, [[0.0, 0.35], [0.35, 0.35]])


class Recording(fm.Model):
    """A model with running statistics and dropout in training."""

    weight: jax.Array
    mean: fm.Buffer


@dispatch
def forward(model: Recording, x):
    return x * model.weight[None]


@dispatch
def forward(model: Recording, x, mode: fm.Train):
    return fm.record(-x * model.weight[None], model.mean, x.mean(0))


@dispatch
def loss(model: Recording, batch):
    return model(batch.x).sum(1)


def test_the_mode_is_eval_unless_the_system_is_bound(key):
    model = Recording(jnp.ones(WIDTH), fm.Buffer(jnp.zeros(WIDTH)))
    data, attack = fm.Unlabeled(batch().x), fm.FGSM(fm.LinfBall(0.1))
    near(fm.perturb(attack, model, data, key).x, data.x + 0.1)
    near(fm.perturb(attack, fm.bind(model, fm.Train(key)), data, key).x, data.x - 0.1)
    state = fm.setup(model, data.x, optimizer=optax.sgd, lr=0.1)
    near(fm.perturb(attack, state, data.x, key).x, data.x + 0.1)
    assert not np.asarray(state.system.mean.value).any()


@pytest.mark.parametrize(
    ("attack", "best", "expected"),
    [
        (fm.FGSM(fm.LinfBall(0.1)), True, {"_only_step"}),
        (fm.PGD(fm.LinfBall(0.1), 0.02, 3), True, {"_begin", "_advance", "_finish"}),
        (fm.PGD(fm.LinfBall(0.1), 0.02, 3), False, {"_begin", "_advance"}),
        (fm.attacks.APGD(fm.LinfBall(0.1), 3), False, {"_begin", "_advance"}),
        (fm.attacks.Square(fm.LinfBall(0.1), 3), True, {"_begin", "_advance"}),
    ],
    ids=["one step", "best point", "last point", "APGD", "Square"],
)
def test_only_programs_that_compute_something_are_compiled(attack, best, expected, key):
    system, data = net(), batch(13)
    with Compilations() as compiled:
        found = fm.perturb(attack, system, data, key, best=best).x
    names = {name.removeprefix("jit(").removesuffix(")") for name in compiled.names}
    assert names & {"_only_step", "_begin", "_advance", "_finish"} == expected
    traced = jax.jit(lambda system, data: fm.perturb(attack, system, data, key, best=best).x)(system, data)
    np.testing.assert_allclose(found, traced, rtol=0, atol=1e-6)


def test_numbers_and_steps_change_without_compiling(key):
    attack = lambda eps, size, steps: fm.PGD(fm.LinfBall(eps) & fm.Box(0.0, 1.0), size, steps)
    data, other = batch(17), fm.replace(net(), first=net().first * 2)
    with Compilations() as first:
        fm.perturb(attack(0.1, 0.02, 3), net(), data, key)
    assert sum("_advance" in name for name in first.names) == 1
    with Compilations() as compiled:
        fm.perturb(attack(0.1, 0.02, 3), net(), data, jax.random.key(5))
        fm.perturb(attack(0.2, 0.02, 3), net(), data, key)
        fm.perturb(attack(0.2, 0.05, 3), net(), data, key)
        fm.perturb(attack(0.2, 0.05, 30), net(), data, key)
        fm.perturb(attack(0.2, 0.05, 30), other, data, key)
    assert compiled.names == []


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("system", "steps"), [(lambda n: n, 1), (Declared, 1), (Declared, 3)], ids=["model", "one", "three"]
)
def test_the_gradient_of_the_parameters_is_not_computed(system, steps, key):
    shaped = lambda *shape: jnp.asarray(np.ones(shape, np.float32))
    big = Perceptron(shaped(64, 512), shaped(512, 10))
    data = fm.Labeled(shaped(32, 64), np.zeros(32, np.int32))
    one = flops(lambda s, b: loss(s, b).mean(), big, data)
    attack = fm.PGD(fm.LinfBall(0.1) & BOX, 0.02, steps, fm.attacks.Clean())
    last = flops(lambda s, b, k: last_point(attack, s, b, k), system(big), data, key)
    assert 1.9 * steps * one < last <= 1.05 * 2 * steps * one  # with the parameters' gradient it would be 3
    if steps == 1:
        best = flops(lambda s, b, k: fm.perturb(attack, s, b, k), system(big), data, key)
        assert best <= 1.05 * 3 * one


# Plain functions


def per_example_loss(params, x, y, scale=1.0, *, flip=False):
    return scale * optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(x @ params["w"]), y)


def test_a_plain_function_is_attacked(key):
    params = {"w": np.random.default_rng(3).normal(size=(WIDTH, CLASSES)).astype(np.float32)}
    data = batch()
    mean = lambda f: lambda p, x: (f(p, x, data.y).mean(), f(p, x, data.y))
    both = lambda f: jax.jit(jax.grad(mean(f), (0, 1), has_aux=True))
    direction = np.sign(jax.jit(jax.grad(lambda x: per_example_loss(params, x, data.y).sum()))(data.x))
    there = np.clip(data.x + np.float32(0.2) * direction, 0, 1)
    (expected, _), expected_values = both(per_example_loss)(params, there)
    for function, of_values in ((per_example_loss, np.asarray), (lambda *a: per_example_loss(*a).mean(), np.mean)):
        attacked = fm.attacks.adversarial(function, fm.FGSM(fm.LinfBall(0.2) & BOX))
        (through, direct), values = both(attacked)(params, data.x)
        near(values, of_values(expected_values))
        near(through["w"], expected["w"])
        assert not np.asarray(direct).any()
    doubled = jax.jit(lambda p, x, there: (attacked(p, x, data.y, 2.0), function(p, there, data.y, 2.0)))
    near(*doubled(params, data.x, there))
    compiled = jax.jit(per_example_loss)
    random = fm.attacks.adversarial(compiled, fm.PGD(fm.LinfBall(0.2), 0.05, 3))
    with pytest.raises(ValueError, match="key: a random start needs a random key, got None"):
        random(params, data.x, data.y)
    one, two = (np.asarray(random(params, data.x, data.y, key=jax.random.key(seed))) for seed in (0, 1))
    assert (one > np.asarray(compiled(params, data.x, data.y))).all() and (one != two).any()


def test_the_gradient_of_a_scalar_loss_is_not_scaled(key):
    attack = fm.Attack(optax.scale(-0.5), fm.LinfBall(9.0))
    f = fm.attacks.adversarial(lambda w, x: ((x @ w) ** 2).mean(), attack)
    x, w = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, -2.0])
    there = x + 0.5 * 2 * (x @ w)[:, None] * w[None] / 3
    near(f(w, x), ((there @ w) ** 2).mean(), 1e-4)


# Custom types


class L2Ball(fm.attacks.Ball):
    """A ball in another norm."""


class OrderOne(L2Ball):
    """A norm that is declared to be of order 1, where `PGD` takes other steps in the library's own ball."""

    norm_order = 1


@dispatch
def project(region: L2Ball, x, origin):
    length = jnp.linalg.norm(x - origin, axis=1, keepdims=True)
    return origin + (x - origin) * jnp.minimum(1, region.eps / jnp.maximum(length, 1e-12))


@dispatch
def transformation(ball: L2Ball, step_size):
    return optax.chain(optax.normalize_by_update_norm(), optax.scale_by_learning_rate(step_size))


def test_a_custom_norm_needs_a_few_methods(key):
    w = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)
    linear, data = Curve(lambda x: x * w[None]), fm.Unlabeled(batch().x)
    repeated = [fm.PGD(ball(0.3), 0.1, 5, fm.attacks.Clean()) for ball in (L2Ball, OrderOne)]
    for attack in (fm.FGSM(L2Ball(0.3)), *repeated):
        near(
            loss(linear, fm.perturb(attack, linear, data, key)) - loss(linear, data),
            np.full(N, 0.3 * np.linalg.norm(w)),
            1e-5,
        )
    with pytest.raises(fm.MissingMethodError, match=r"start_point"):
        fm.perturb(fm.PGD(L2Ball(0.3), 0.1, 5), linear, data, key)


class Decaying(fm.Attack):
    """Step sizes that decay during the attack."""

    size: float = 0.1


@dispatch
def transformation(attack: Decaying):
    return fm.attacks.fgsm(optax.linear_schedule(attack.size, 0.0, attack.steps))


class Momentum(fm.PGD):
    decay: float = 1.0


@dispatch
def transformation(attack: Momentum):
    return optax.chain(optax.normalize_by_update_norm(), optax.trace(attack.decay), fm.attacks.fgsm(attack.step_size))


class Noise(fm.Attack):
    """No gradient, and no option `best`."""


@dispatch
def perturb(attack: Noise, system, batch, key):
    return fm.replace(batch, x=fm.attacks.project(attack.region, batch.x + jax.random.normal(key, batch.x.shape), batch.x))


def test_custom_attacks(key):
    linear, data = Curve(lambda x: x), fm.Unlabeled(batch().x)
    for steps, perturb in ((2, fm.perturb), (3, fm.perturb), (3, perturb_traced)):
        attack = Decaying(fm.LinfBall(1.0), size=0.1, steps=steps)
        near(perturb(attack, linear, data, key).x, data.x + sum(0.1 * (1 - i / steps) for i in range(steps)))
    attack = Momentum(fm.LinfBall(0.1) & BOX, 0.02, 6, fm.attacks.Clean(), 1.0)
    assert (attack.step_size, attack.steps, attack.decay) == (0.02, 6, 1.0)
    parts = fm.Attack(MOMENTUM, fm.LinfBall(0.1) & BOX, steps=6)
    near(fm.perturb(attack, net(), batch(), key).x, fm.perturb(parts, net(), batch(), key).x)
    noisy = Noise(fm.LinfBall(0.1))
    moved = fm.perturb(
        noisy, fm.setup(net(), (batch().x, batch().y), optimizer=optax.sgd, lr=1.0), (batch().x, batch().y), key
    ).x
    assert 0.09 < np.abs(np.asarray(moved) - batch().x).max() <= 0.1
    near(last_point(noisy, net(), batch(), key).x, moved)
    with pytest.raises(ValueError, match=r"Noise.steps must be at least 1, got 0"):
        fm.perturb(Noise(fm.LinfBall(0.1), steps=0), net(), batch(), key)


def test_attacks_are_components():
    attack = fm.PGD(fm.LinfBall(0.1) & BOX, 0.02, 10)
    assert [(leaf.path, leaf.role) for leaf in fm.leaves(attack)] == [
        ("region.regions.0.eps", "hyperparameter"),
        ("region.regions.1.lo", "hyperparameter"),
        ("region.regions.1.hi", "hyperparameter"),
        ("step_size", "hyperparameter"),
    ]
    assert isinstance(attack, fm.Attack) and isinstance(fm.FGSM(BOX), fm.Attack)
    assert fm.replace(attack, {"region.regions.0.eps": 0.5}).region.regions[0].eps == 0.5
    assert fm.FGSM(fm.LinfBall(0.1)).steps == 1
    with pytest.raises(TypeError):
        fm.FGSM(fm.LinfBall(0.1), steps=3)


# Bad input


BALL = fm.LinfBall(0.1)


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (lambda: fm.FGSM(fm.LinfBall(-0.1)), ValueError, "LinfBall.eps must be at least 0, got -0.1"),
        (lambda: fm.FGSM(fm.LinfBall(jnp.nan)), ValueError, "LinfBall.eps .* got nan"),
        (lambda: fm.FGSM(fm.LinfBall(np.float32(np.inf)) & BOX), ValueError, "LinfBall.eps must be finite, got inf"),
        (lambda: fm.FGSM(fm.LinfBall("0.1")), TypeError, "LinfBall.eps must be a number, got '0.1'"),
        (lambda: fm.FGSM(BALL & fm.Box(1, 0)), ValueError, "Box.lo must be below Box.hi, got lo = 1 and hi = 0"),
        (lambda: fm.FGSM(BALL & fm.Box(0.5, 0.5)), ValueError, "Box.lo must be below Box.hi"),
        (lambda: fm.FGSM(BALL & fm.Box(np.nan, 0.5)), ValueError, "Box.lo must be below Box.hi, got lo = nan"),
        (
            lambda: fm.FGSM(fm.attacks.Intersection((BALL, 3))),
            TypeError,
            "Intersection.regions must be a tuple of Regions, got .*3",
        ),
        (lambda: fm.FGSM(BALL, step_size=-1.0), ValueError, "FGSM.step_size .* got -1"),
        (lambda: fm.PGD(BALL, -0.5, 3), ValueError, "PGD.step_size .* got -0.5"),
        (lambda: fm.PGD(BALL, 0.1, 0), ValueError, "PGD.steps must be at least 1, got 0"),
        (lambda: fm.PGD(BALL, 0.1, 2.5), TypeError, "PGD.steps must be an integer, got 2.5"),
        (lambda: fm.Attack(fm.attacks.fgsm(0.1), BALL, steps=-3), ValueError, "Attack.steps .* got -3"),
        (
            lambda: fm.PGD(BALL, 0.1, 3, "random"),
            TypeError,
            r"PGD.start must be a Start, got 'random'; write fm.attacks.Uniform\(\)",
        ),
        (lambda: fm.FGSM(0.1), TypeError, "FGSM.region must be a Region, got 0.1; write fm.LinfBall"),
        (lambda: fm.Attack(BALL, fm.attacks.fgsm(0.1)), TypeError, "Attack.region must be a Region"),
        (
            lambda: fm.Attack(0.1, BALL),
            TypeError,
            "Attack.transform must be a GradientTransformation.* got 0.1; write fm.attacks.fgsm",
        ),
        (lambda: fm.FGSM(BOX), ValueError, "region must contain one ball, .* got 0 in .*fm.LinfBall"),
        (lambda: fm.FGSM(BALL & fm.LinfBall(0.2)), ValueError, "region must contain one ball, .* got 2 in"),
    ],
)
def test_invalid_attacks_are_refused(attack, error, message, key):
    with pytest.raises(error, match=message):
        fm.perturb(attack(), net(), batch(), key)


def test_invalid_inputs_are_refused(key):
    data, attack = batch(), fm.FGSM(BALL & BOX)
    with pytest.raises(ValueError, match=r"x must be in Box\(lo=0.0, hi=1.0\).* got values from 0\.\d+ to 255.*fm.Box"):
        fm.perturb(attack, net(), fm.replace(data, x=np.where(data.x == data.x.max(), np.float32(255), data.x)), key)
    with pytest.raises(ValueError, match=r"x must be floating-point.* got uint8 from \d+ to \d+.*x / 255"):
        fm.perturb(attack, net(), fm.replace(data, x=(data.x * 255).astype(np.uint8)), key)
    with pytest.raises(TypeError, match="batch must have an `x`"):
        fm.perturb(attack, net(), fm.Labeled(None, data.y), key)
    with pytest.raises(TypeError, match=r"key must be a random key .* got 0"):
        fm.perturb(attack, net(), data, 0)
    with pytest.raises(fm.MissingMethodError, match=r"transformation\(attack: Bare\)"):
        fm.perturb(Bare(BALL), net(), data, key)
    fm.perturb(fm.FGSM(BALL & fm.Box(0.0, float(np.float32(data.x.max())))), net(), data, key)


class Bare(fm.Attack):
    """An attack without methods."""
