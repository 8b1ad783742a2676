"""Regions: projections against a solver of quadratic programs and exact arithmetic; steps and starts of the balls."""

import functools
import math
import types
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, lsq_linear, minimize

import fulmen as fm
from fulmen import dispatch
from fulmen.robust.attacks import L1Ball, L2Ball, bounds, fgm, slide

BOX = fm.Box(0.0, 1.0)
DTYPES = ["float32", "float64", "bfloat16", "float16"]
NORMS = {L1Ball: 1, L2Ball: 2}


def kinds(eps, low, high, narrow):
    """A region of each kind."""
    box, linf = fm.Box(low, high), fm.LinfBall(narrow)
    return {
        "L2": L2Ball(eps),
        "L1": L1Ball(eps),
        "L2, Linf, box": L2Ball(eps) & linf & box,
        "L1, box, Linf": L1Ball(2 * eps) & box & linf & L1Ball(eps),
    }


KINDS = list(kinds(1.0, 0.0, 1.0, 1.0))
nearest = jax.jit(fm.attacks.project)  # one program, where each operation alone would be another


def single(*numbers):
    """Numbers as arrays in single precision."""
    return (np.asarray(v, np.float32) for v in numbers)


def limits(region, origin, wide=np.float64):
    """The bounds and the radii of a region by definition, in a wider type."""
    lo, hi, radii = np.full(origin.shape, -np.inf, wide), np.full(origin.shape, np.inf, wide), []
    for part in getattr(region, "regions", (region,)):
        if isinstance(part, fm.Box):
            lo, hi = np.maximum(lo, wide(part.lo)), np.minimum(hi, wide(part.hi))
        elif isinstance(part, fm.LinfBall):
            lo, hi = np.maximum(lo, origin - wide(part.eps)), np.minimum(hi, origin + wide(part.eps))
        else:
            radii.append((NORMS[type(part)], wide(part.eps)))
    return lo, hi, radii


def problem(dtype, seed, n=4, size=12, scale=1.0):
    """Points around clean inputs in [low, low + 2]; some coordinates are on the bounds."""
    rng, dtype = np.random.default_rng(seed), jnp.dtype(dtype)
    low = rng.uniform(-2, 0)
    origin = np.clip(low + rng.uniform(-0.2, 2.2, (n, size)), low, low + 2)
    x = (origin + rng.normal(size=(n, size)) * scale * rng.choice([0, 0.1, 1, 3], (n, size))).astype(dtype)
    low, high = np.asarray(low, dtype), np.asarray(low + 2, dtype)
    return x, np.clip(origin.astype(dtype), low, high).astype(dtype), low, high


# Nearest


def solve(x, origin, lo, hi, radii):
    """The nearest point, in units of the radius, by solvers of quadratic programs with bounds."""
    (norm, eps), size = min(radii, key=lambda r: r[1]), len(x)
    wanted, (least, most) = (x - origin) / eps, (np.clip((v - origin) / eps, -99, 99) for v in (lo, hi))
    if norm == 1:
        # The variables are the moves up and down of each coordinate, so that the problem is smooth.
        signs, scale = np.concatenate([np.eye(size), -np.eye(size)], 1), np.abs(wanted).max()
        inside = {"type": "ineq", "fun": lambda p: 1 - p.sum(), "jac": lambda p: -np.ones(2 * size)}
        found = minimize(
            lambda p: ((signs @ p - wanted) ** 2).sum() / scale,
            np.zeros(2 * size),
            jac=lambda p: 2 * (signs @ p - wanted) @ signs / scale,
            bounds=[(0, v) for v in (*most, *-least)],
            constraints=[inside],
            method="SLSQP",
            options={"maxiter": 300, "ftol": 1e-15},
        )
        return origin + eps * (signs @ found.x)

    def penalised(multiplier):
        system = np.concatenate([np.eye(size), np.sqrt(multiplier) * np.eye(size)])
        return lsq_linear(system, np.concatenate([wanted, 0 * wanted]), (least, most), method="bvls").x

    excess = lambda multiplier: penalised(multiplier) @ penalised(multiplier) - 1
    return origin + eps * penalised(0 if excess(0) <= 0 else brentq(excess, 0, 1e4, xtol=1e-12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.05, 0.8])
def test_projections_agree_with_a_solver(kind, eps):
    with jax.enable_x64(True):
        x, origin, low, high = problem("float64", 3)
        region = kinds(np.asarray(eps), low, high, np.asarray(0.4 * eps))[kind]  # arrays share a program
        there = np.asarray(nearest(region, x, origin))
        lo, hi, radii = limits(region, origin)
        for i in (0, 2):  # the solver takes long
            solved = solve(x[i], origin[i], lo[i], hi[i], radii)
            np.testing.assert_allclose(there[i], solved, rtol=0, atol=1e-6)
            # The solver is nearer at most by its violation of the constraints.
            assert ((there[i] - x[i]) ** 2).sum() <= ((solved - x[i]) ** 2).sum() + 1e-6
        assert (np.abs(there - x).max(1) > 1e-3).sum() >= 3  # not all were inside


@pytest.mark.parametrize(
    ("kind", "dtype"), [*[(kind, "float64") for kind in KINDS], *[(kind, "float32") for kind in KINDS[2:]]]
)
def test_large_examples_satisfy_the_conditions_of_optimality(kind, dtype):
    with jax.enable_x64(True):
        x, origin, low, high = problem(dtype, 5, n=3, size=3000)
        eps = 20.0 if "L1" in kind else 2.0
        region = kinds(eps, low, high, 0.15)[kind]
        there = np.asarray(nearest(region, x, origin), np.float64)
        x, origin = np.asarray(x, np.float64), np.asarray(origin, np.float64)
        lo, hi, radii = limits(region, origin)
        close = 2e-6 if dtype == "float32" else 1e-13
        moved, wanted = there - origin, x - origin
        free = (there > lo + close) & (there < hi - close)
        for i in range(len(x)):
            norm = np.linalg.norm(moved[i], radii[0][0])
            np.testing.assert_allclose(norm, eps, rtol=2e-5 if dtype == "float32" else 1e-13)
            a, b = moved[i][free[i]], wanted[i][free[i]]
            if "L1" in kind:
                on = np.abs(a) > close
                level = (np.abs(b) - np.abs(a))[on]
                np.testing.assert_allclose(level, level.mean(), rtol=0, atol=10 * close)
                assert (np.abs(b[~on]) <= level.mean() + 10 * close).all()
            else:
                np.testing.assert_allclose(a, b * (a @ b) / (b @ b), rtol=0, atol=close)


# Inside and idempotent


def exactly_inside(there, origin, norm, eps):
    """Exact: in fractions for float64, in float64 for the other types."""
    if there.dtype != np.float64:
        gaps = np.asarray(there, np.float64) - np.asarray(origin, np.float64)
        return (np.linalg.norm(gaps, norm, axis=1) <= np.float64(eps) * (1 + 1e-14)).all()
    gaps = [[Fraction(a) - Fraction(b) for a, b in zip(*rows)] for rows in zip(there.tolist(), origin.tolist())]
    return all(sum(abs(gap) ** norm for gap in row) <= Fraction(float(eps)) ** norm for row in gaps)


# In 16 bits the numbers are those of float32 but for the first and the last rounding, with and without bounds.
@pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, dtype) for kind in KINDS for dtype in (DTYPES[:2] if kind in KINDS[:2] else DTYPES)]
)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**30),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    eps=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 7.0]),
    narrow=st.floats(0, 1),
)
def test_projection_is_inside_idempotent_and_nearest(kind, dtype, seed, scale, eps, narrow):
    with jax.enable_x64(True):
        x, origin, low, high = problem(dtype, seed, scale=scale)
        cast = lambda v: np.asarray(v).astype(x.dtype)
        region = kinds(cast(eps), low, high, cast(narrow))[kind]
        there = np.asarray(nearest(region, x, origin))
        assert there.dtype == x.dtype
        np.testing.assert_array_equal(nearest(region, there, origin), there)
        np.testing.assert_array_equal(nearest(region, origin, origin), origin)
        wide = np.longdouble if dtype == "float64" else np.float64
        w_there, w_x, w_origin = (np.asarray(v).astype(wide) for v in (there, x, origin))
        lo, hi, radii = limits(region, w_origin, wide)
        assert (w_there >= lo).all() and (w_there <= hi).all()
        for norm, radius in radii:
            assert exactly_inside(np.asarray(there), np.asarray(origin), norm, radius)
        if eps == 0:
            np.testing.assert_array_equal(there, origin)
        # No other point of the region is nearer: points towards random points, and between them.
        norm, radius = min(radii, key=lambda r: r[1])
        rng = np.random.default_rng(seed)
        rounding = float(jnp.finfo(x.dtype).eps) * (np.abs(w_origin) + np.abs(w_there)).max() * x.shape[1] ** 0.5
        for spread in (0.01, 1.0):
            other = np.clip(w_there + spread * radius * rng.normal(size=x.shape), lo, hi) - w_origin
            length = np.array([np.linalg.norm(v.astype(np.float64), norm) for v in other], wide)[:, None]
            other = w_origin + other * np.minimum(1, radius / np.maximum(length, 1e-30))
            distance = lambda v: np.sqrt(((v - w_x) ** 2).sum(1))
            room = 8 * rounding + 1e-5 * float(radius) * (float(jnp.finfo(x.dtype).eps) / 1e-7)
            assert (distance(w_there) <= distance(other) + room).all()


def test_points_inside_stay_bit_for_bit():
    _, origin, low, high = problem("float32", 1)
    offset = np.random.default_rng(1).normal(size=origin.shape).astype(np.float32)
    x = np.clip(origin + np.float32(0.01) * offset, low, high)
    for kind in KINDS:
        eps, narrow = single(0.6 if "L1" in kind else 0.2, 0.1)
        np.testing.assert_array_equal(fm.attacks.project(kinds(eps, low, high, narrow)[kind], x, origin), x)


def around_zero(kind, eps, row, low=-99.0, high=99.0):
    """The projection of the first row, whose other coordinates are at the origin."""
    x = np.zeros((4, 12), np.float32)
    x[0, : len(row)] = row
    region = kinds(*single(eps, low, high, 99.0))[kind]
    return np.asarray(fm.attacks.project(region, x, np.zeros_like(x)))[0, : len(row)]


def test_simple_projections():
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    l2, l1 = "L2, Linf, box", "L1, box, Linf"
    near(around_zero("L2", 5.0, [6.0, 0.0, 8.0]), [3, 0, 4])
    near(around_zero("L1", 2.0, [3.0, 2.0, -0.5]), [1.5, 0.5, 0])
    near(around_zero(l2, 5.0, [4.0, -2.0, 9.0], -1, 3), [3, -1, 3])
    near(around_zero(l2, 3.0, [4.0, -2.0, 2.0], -1, 2), [2, -1, 2])
    # The smallest coordinate is 0, the largest at its bound; the middle one has the rest of the length.
    near(around_zero(l1, 1.0, [3.0, 0.9, 0.5], 0, 0.75), [0.75, 0.25, 0])
    assert around_zero(l2, 3.0, [4.0, -2.0, 2.0], -1, 2)[1] == -1


@pytest.mark.parametrize("kind", [fm.LinfBall, L2Ball, L1Ball])
def test_a_ball_of_radius_zero_is_its_origin(kind):
    origin = np.tile(np.float32([[0.0, 1.0, 0.3, 0.0], [1e-30, 1.0, 0.5, 0.0]]), (2, 3))
    zero, low, high = single(0, 0, 1)
    for step in np.float32([1, -0.01, 1e-25, 0]):
        for region in (kind(zero), kind(zero) & fm.Box(low, high)):
            np.testing.assert_array_equal(fm.attacks.project(region, origin + step, origin), origin)


def test_an_empty_intersection_keeps_the_bounds():
    origin = np.full((4, 12), 3, np.float32)
    for kind in ("L2, Linf, box", "L1, box, Linf"):
        there = np.asarray(fm.attacks.project(kinds(*single(0.5, 0, 1, 0.5))[kind], origin + 1, origin))
        assert ((there >= 0) & (there <= 1)).all()


# Shapes, batches, transformations


@pytest.mark.parametrize("shape", [(4,), (4, 2, 2, 3)], ids=len)
@pytest.mark.parametrize("kind", ["L2, Linf, box", "L1, box, Linf"])
def test_projections_do_not_depend_on_rank_or_other_examples(kind, shape):
    x, origin, low, high = problem("float32", 11, size=math.prod(shape[1:]))
    region = kinds(*single(0.3), low, high, *single(0.2))[kind]
    together = np.asarray(fm.attacks.project(region, x.reshape(shape), origin.reshape(shape)))
    assert together.shape == shape
    flat = together.reshape(x.shape)
    np.testing.assert_array_equal(flat, fm.attacks.project(region, x, origin))
    order = np.array([3, 0, 2, 1])
    np.testing.assert_array_equal(fm.attacks.project(region, x[order], origin[order]), flat[order])


@pytest.mark.parametrize("kind", ["L2, Linf, box", "L1, box, Linf"])
def test_projections_can_be_compiled_and_mapped(kind):
    x, origin, low, high = problem("float32", 12)
    region = kinds(*single(0.3), low, high, *single(0.2))[kind]
    there = fm.attacks.project(region, x, origin)
    alone = jax.vmap(lambda x, origin: fm.attacks.project(region, x[None], origin[None])[0])
    np.testing.assert_array_equal(jax.jit(alone)(x, origin), there)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(nearest(region, x, origin), there)
    assert (np.asarray(there) != np.asarray(x)).any()


def test_a_radius_for_each_example(key):
    """Also of the only example of a batch."""
    x, origin, low, high = problem("float32", 12)
    eps = np.array([0.0, 0.1, 0.7, 99.0], np.float32)
    for kind, region in kinds(eps, low, high, np.float32(0.5) * eps).items():
        together = np.asarray(fm.attacks.project(region, x, origin))
        deep = fm.attacks.project(region, x.reshape(4, 2, 3, 2), origin.reshape(4, 2, 3, 2))
        np.testing.assert_array_equal(np.asarray(deep).reshape(x.shape), together)
        for i in range(4):
            alone = kinds(*single(eps[i]), low, high, *single(np.float32(0.5) * eps[i]))[kind]
            there = np.asarray(fm.attacks.project(alone, x[i : i + 1], origin[i : i + 1]))[0]
            np.testing.assert_array_equal(together[i], there)
    for ball in (fm.LinfBall, L2Ball, L1Ball):
        with pytest.raises(ValueError, match=r"eps must be a number, or an array \(4,\) with one per example, got \(3,"):
            fm.attacks.project(ball(eps[:3]), x, origin)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty_batches(shape):
    for ball in (L2Ball(0.1), L1Ball(0.1) & BOX):
        assert fm.attacks.project(ball, np.ones(shape, np.float32), np.zeros(shape, np.float32)).shape == shape


def test_nan_does_not_affect_other_examples():
    x, origin, low, high = problem("float32", 11)
    broken = np.array(x)
    broken[1, 2], broken[2, 0] = np.nan, np.inf
    for kind in KINDS:
        region = kinds(*single(0.3), low, high, *single(0.2))[kind]
        there, expected = (np.asarray(fm.attacks.project(region, v, origin)) for v in (broken, x))
        np.testing.assert_array_equal(there[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("kind", ["L2, Linf, box", "L1, box, Linf"])
def test_derivatives_equal_finite_differences(kind):
    with jax.enable_x64(True):
        x, origin, low, high = problem("float64", 21)
        f = lambda x, eps: fm.attacks.project(kinds(eps, low, high, 0.6)[kind], x, origin)

        @jax.jit
        def derivatives(x, eps, g, d, c):
            """The value, its slope along (g, d), and the gradients of its product with c."""
            value, back = jax.vjp(f, x, eps)
            return value, jax.jvp(f, (x, eps), (g, d))[1], *back(c)

        step, eps, zero = 1e-6, np.asarray(0.8), np.asarray(0.0)
        g, c = np.random.default_rng(0).normal(size=(2, *x.shape))
        value = lambda x, eps: np.asarray(derivatives(x, np.asarray(eps), g, zero, c)[0])
        by_x = (value(x + step * g, eps) - value(x - step * g, eps)) / (2 * step)
        by_eps = (value(x, eps + step) - value(x, eps - step)) / (2 * step)
        _, slope, back_x, back_eps = map(np.asarray, derivatives(x, eps, g, zero, c))
        np.testing.assert_allclose(slope, by_x, atol=1e-6)
        np.testing.assert_allclose(derivatives(x, eps, 0 * g, np.asarray(1.0), c)[1], by_eps, atol=1e-6)
        np.testing.assert_allclose((back_x * g).sum(), (c * by_x).sum(), atol=1e-5)
        np.testing.assert_allclose(back_eps, (c * by_eps).sum(), atol=1e-5)
        assert np.abs(by_eps).max() > 0.1 and np.abs(by_x).max() > 0.1


@pytest.mark.parametrize("kind", ["L2, Linf, box", "L1, box, Linf"])
def test_derivatives_at_the_origin_are_finite(kind):
    _, origin, low, high = problem("float32", 22)
    total = lambda x, origin, eps: fm.attacks.project(kinds(eps, low, high, 0.2)[kind], x, origin).sum()
    slopes = jax.jit(jax.grad(total, (0, 1, 2)))
    for eps in (0.0, 0.1):
        for x in (origin, origin + 1, 0 * origin):
            assert all(np.isfinite(np.asarray(leaf)).all() for leaf in slopes(x, origin, eps))


# Several regions


def test_regions_of_both_norms_are_refused(key):
    region = L1Ball(1.0) & BOX & L2Ball(0.5)
    message = r"region must not contain both .* got L1Ball\(eps=1.0\) & L2Ball\(eps=0.5\)"
    with pytest.raises(ValueError, match=message):
        fm.validate(region)
    with pytest.raises(ValueError, match=message):
        fm.attacks.project(region, jnp.ones((1, 2)), jnp.zeros((1, 2)))


@pytest.mark.parametrize("ball", [L2Ball, L1Ball])
@pytest.mark.parametrize("eps", [-1.0, np.nan, np.inf])
def test_invalid_radii_are_refused(ball, eps):
    with pytest.raises(ValueError, match=rf"{ball.__name__}.eps must be (at least 0|finite), got"):
        fm.validate(ball(eps))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"x and origin must have the same shape \(n, …\), got \(2, 3\) and \(1, 3\)"):
        fm.attacks.project(L2Ball(1.0), jnp.ones((2, 3)), jnp.zeros((1, 3)))


def test_intervals_combine():
    origin, x = np.full((1, 4), 0.5, np.float32), np.float32([[-1.0, 0.45, 0.62, 2.0]])
    region = fm.Box(0.0, 0.7) & fm.LinfBall(0.3) & fm.Box(0.4, 1.0) & fm.LinfBall(0.25)
    np.testing.assert_allclose(nearest(region, x, origin), [[0.4, 0.45, 0.62, 0.7]], atol=1e-6)


class Patch(fm.attacks.PerCoordinate):
    """Only some coordinates may change."""

    mask: jax.Array = fm.hyper()


@dispatch
def bounds(region: Patch, origin):
    inside = jnp.broadcast_to(region.mask, origin.shape)
    return jnp.where(inside, -jnp.inf, origin), jnp.where(inside, jnp.inf, origin)


class Even(fm.attacks.Region):
    """All coordinates move by the same amount."""


@dispatch
def project(region: Even, x, origin):
    return origin + (x - origin).mean(1, keepdims=True)


def test_custom_regions():
    patch = Patch(np.array([True, True, False]))
    x, origin = jnp.array([[3.0, 4.0, 5.0]]), jnp.zeros((1, 3))
    np.testing.assert_array_equal(fm.attacks.project(patch, x, origin), [[3, 4, 0]])
    np.testing.assert_allclose(fm.attacks.project(L2Ball(1.0) & patch, x, origin), [[0.6, 0.8, 0]], atol=1e-5)
    np.testing.assert_allclose(fm.attacks.project(L1Ball(2.0) & patch, x, origin), [[0.5, 1.5, 0]], atol=1e-5)
    even = fm.attacks.project(L1Ball(3.0) & Even(), x, origin)
    np.testing.assert_allclose(even, [[1, 1, 1]], atol=1e-5)


# Steps


def step_of(chain, gradient):
    return jax.jit(lambda g: chain.update(g, chain.init(g))[0])(gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_steepest_steps(dtype):
    g = jnp.asarray([[3.0, 0.0], [-4.0, 1e-4]], dtype)
    for ball, expected in [(L2Ball(1.0), [[-0.3, 0], [0.4, -1e-5]]), (L1Ball(1.0), [[0, 0], [0.5, 0]])]:
        step = step_of(fm.attacks.transformation(ball, 0.5), g)
        assert step.dtype == g.dtype
        np.testing.assert_allclose(np.asarray(step, np.float32), expected, atol=2e-3, rtol=0)
    for chain in (fgm(0.5), slide(0.5, 0.1)):
        np.testing.assert_array_equal(step_of(chain, g * 0), np.zeros((2, 2)))


def test_steps_are_the_steepest_of_their_length(key):
    g = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    for ball, norm, dual in [(L2Ball(1.0), 2, 2), (L1Ball(1.0), 1, np.inf)]:
        step = np.asarray(step_of(fm.attacks.transformation(ball, 0.7), g))
        np.testing.assert_allclose(np.linalg.norm(np.ravel(step), norm), 0.7, rtol=1e-6)
        np.testing.assert_allclose(-(step * g).sum(), 0.7 * np.linalg.norm(np.ravel(g), dual), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e-10, 1.0, 1e25])
def test_steps_for_tiny_and_huge_gradients(size):
    g = np.full(4, size, np.float32)
    np.testing.assert_allclose(step_of(fgm(1.0), g), -0.5 * np.minimum(1, 2 * size / 1e-12) * np.ones(4), rtol=1e-5)


def test_slide_moves_the_coordinates_of_largest_gradient():
    g = np.float32([0.1, -5.0, 3.0, 0.2, 0.0, 1.0, -2.0, 0.3, 0.4, 0.5])
    moved = lambda q: np.flatnonzero(step_of(slide(1.0, q), g)).tolist()
    assert [moved(q) for q in (0.0, 0.1, 0.2, 0.3)] == [[1], [1], [1, 2], [1, 2, 6]]
    np.testing.assert_allclose(np.asarray(step_of(slide(1.0, 0.2), g))[[1, 2]], [0.5, -0.5])
    np.testing.assert_array_equal(np.asarray(step_of(slide(1.0, 1.0), g)) == 0, np.asarray(g) == 0)
    # Two coordinates of equal size share the step.
    np.testing.assert_allclose(step_of(slide(1.0, 0.0), np.float32([2.0, 1.0, -2.0])), [-0.5, 0, 0.5])
    for q in (-0.1, 1.5):
        with pytest.raises(ValueError, match="slide: q must be between 0 and 1"):
            slide(1.0, q)


@pytest.mark.parametrize("make", [fgm, functools.partial(slide, q=0.0)], ids=["fgm", "slide"])
def test_step_sizes_may_be_traced_or_scheduled(make):
    g = jnp.array([2.0, 0.0])
    np.testing.assert_allclose(jax.jit(lambda size: make(size).update(g, make(size).init(g))[0])(0.25), [-0.25, 0])
    chain = make(optax.linear_schedule(1.0, 0.0, 2))
    first, state = chain.update(g, chain.init(g))
    second, _ = chain.update(g, state)
    np.testing.assert_allclose([first[0], second[0]], [-1.0, -0.5])


# Starts


@pytest.mark.parametrize("ball", [L2Ball, L1Ball])
@pytest.mark.parametrize("shape", [(1,), (2, 2)], ids=str)
def test_starts_are_uniform_in_the_ball(ball, shape, key):
    x, eps, n, d = np.full(shape, 0.5, np.float32), 0.4, 20_000, math.prod(shape)
    draw = jax.vmap(lambda key: fm.attacks.start_point(fm.attacks.Uniform(), ball(eps), x, key))
    offsets = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, n)))(key), np.float64).reshape(n, d) - 0.5
    norms = np.linalg.norm(offsets, NORMS[ball], axis=1) / eps
    assert norms.max() <= 1 + 1e-5
    # The share of the volume within a radius r is rᵈ; 4 standard deviations.
    for r in (0.3, 0.6, 0.9):
        share = (norms <= r).mean()
        assert abs(share - r**d) <= 4 * np.sqrt(r**d * (1 - r**d) / n)
    # Of one coordinate: E|u|² = 1/(d + 2) in the ball of norm 2, 2/((d + 1)(d + 2)) in that of norm 1.
    variance = {2: 1 / (d + 2), 1: 2 / ((d + 1) * (d + 2))}[NORMS[ball]]
    np.testing.assert_allclose((offsets**2).mean(0) / eps**2, variance, rtol=0.06)
    assert (np.abs(offsets.mean(0)) <= 4 * eps * np.sqrt(variance / n)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ball", [L2Ball, L1Ball])
def test_starts_keep_the_type(ball, dtype, key):
    x = np.full((4, 4), 0.5, jnp.dtype(dtype))
    there = np.asarray(jax.jit(fm.attacks.start_point)(fm.attacks.Uniform(), ball(0.5) & BOX, x, key))
    assert there.dtype == x.dtype and there.shape == x.shape and (there != x).any()
    with pytest.raises(ValueError, match="key: a random start needs a random key, got None"):
        fm.attacks.start_point(fm.attacks.Uniform(), ball(0.5), x, None)


# Attacks in these balls


class Curve(fm.Model):
    """A loss that depends on the input only."""

    function: types.FunctionType = fm.static()


@dispatch
def loss(curve: Curve, batch):
    return curve.function(batch.x).sum(1)


@pytest.mark.parametrize(("ball", "dual"), [(L2Ball, 2), (L1Ball, np.inf)])
def test_attacks_reach_the_worst_case_of_a_linear_model(ball, dual, key):
    w = np.random.default_rng(4).normal(size=6).astype(np.float32)
    linear, data = Curve(lambda x: x * w[None]), fm.Unlabeled(np.full((4, 6), 0.5, np.float32))
    gaps = (
        np.asarray(fm.perturb(fm.PGD(ball(0.3) & BOX, 0.2, 12, fm.attacks.Clean()), linear, data, key).x, np.float64)
        - data.x
    )
    assert (np.linalg.norm(gaps, NORMS[ball], axis=1) <= np.float32(0.3)).all()
    gained = gaps @ w
    np.testing.assert_allclose(gained, 0.3 * np.linalg.norm(w, dual), rtol=1e-4)
