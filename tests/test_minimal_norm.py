"""`L0Ball` and the minimal-norm attacks DDN, FMN, σ-zero and PDPGD: adv-lib's points, independence of examples, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity import attacks_model
from test_minimal_attacks import Perceptron, affine, classes_at, common, left_by_a_broken_model, nearest_plane, two_batches

import fulmen as fm
from fulmen import attacks

BOX = fm.Box(0.0, 1.0)
BALLS = {"L0": attacks.L0Ball(5), "L1": attacks.L1Ball(2.0), "L2": attacks.L2Ball(0.5), "Linf": fm.LinfBall(0.1)}
ORDERS = {"L0": 0, "L1": 1, "L2": 2, "Linf": np.inf}
KINDS = {"ddn": attacks.DDN, "fmn": attacks.FMN, "sigma_zero": attacks.SigmaZero, "pdpgd": attacks.PDPGD}

with np.load(attacks_model.PATH.with_name("adv_lib.npz")) as stored:
    RECORDED = dict(stored)
N = len(RECORDED["ddn/L2/short"])


def norms(offset, norm):
    return np.linalg.norm(np.asarray(offset, np.float64).reshape(len(offset), -1), ORDERS[norm], axis=1)


# The ball of few changed coordinates


project = jax.jit(lambda region, x, origin: attacks.project(region, x, origin))


def fewest_by_search(x, origin, k, lo, hi):
    """The nearest point, by trying every set of `k` coordinates."""
    clipped = np.clip(x, lo, hi)
    sets = itertools.combinations(range(len(x)), min(k, len(x)))
    points = [np.where(np.isin(np.arange(len(x)), chosen), clipped, origin) for chosen in sets]
    return min(points, key=lambda point: ((point - x) ** 2).sum())


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_projection_onto_few_coordinates_is_the_nearest_point(k, dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(k)
        origin = rng.uniform(size=(8, 6)).round(2).astype(jnp.dtype(dtype))
        x = origin + rng.normal(size=(8, 6)).round(2).astype(origin.dtype)
        region = attacks.L0Ball(k) & BOX
        there = np.asarray(project(region, x, origin))
        assert there.dtype == x.dtype and ((there >= 0) & (there <= 1)).all()
        assert ((there != origin).sum(1) <= k).all()
        wide = [np.asarray(v, np.float64) for v in (x, origin, there)]
        for row, start, found in zip(*wide, strict=True):
            best = fewest_by_search(row, start, k, 0, 1)
            assert ((found - row) ** 2).sum() == pytest.approx(((best - row) ** 2).sum(), rel=1e-6)
        np.testing.assert_array_equal(project(region, there, origin), there)


def test_few_coordinates_have_a_radius_per_example_and_combine_with_other_intervals():
    x, origin = np.random.default_rng(0).normal(size=(3, 4, 2, 1)).astype(np.float32), np.zeros((3, 4, 2, 1), np.float32)
    counts = attacks.L0Ball(np.array([0, 2, 5]))
    there = np.asarray(project(counts & fm.LinfBall(0.1), x, origin))
    np.testing.assert_array_equal((there != 0).sum((1, 2, 3)), [0, 2, 5])
    assert np.abs(there).max() == pytest.approx(0.1)
    tiny = np.float32([[0, 0, 1e-30, 0]])
    np.testing.assert_array_equal(project(attacks.L0Ball(1), tiny, 0 * tiny), tiny)


def test_attacks_of_a_fixed_budget_support_few_coordinates(key):
    system, batch = affine(dtype=np.float32)
    region = attacks.L0Ball(2) & BOX
    x = np.asarray(fm.perturb(fm.PGD(region, 1.0, 10), system, batch, key).x)
    assert ((x != batch.x).sum(1) <= 2).all() and ((x >= 0) & (x <= 1)).all()
    assert (classes_at(system, x) != batch.y).sum() > 8


# Recorded points of adv-lib

SHORT = [name for name in RECORDED if name.endswith("/short") and name[:6] not in ("fmn/L0", "fmn/L1", "fmn/L2")]
EXACT = [*SHORT, "ddn/L2/target", "ddn/L2/long", "sigma_zero/L0/long", "pdpgd/L1/long"]


def found(name, dtype):
    kind, norm, length = name.split("/")
    x, y = attacks_model.examples(N, dtype)
    steps = RECORDED["short_steps" if length == "target" else f"{length}_steps"]
    options = {"target": attacks.Target(np.int32((y + 1) % 10))} if length == "target" else {}
    attack = KINDS[kind](BALLS[norm] & BOX, int(steps), **options)
    there = np.asarray(fm.perturb(attack, attacks_model.classifier(dtype), (x, y), jax.random.key(0)).x)
    assert there.dtype == dtype and ((there >= 0) & (there <= 1)).all()
    return there, x


@pytest.mark.parametrize("name", EXACT)
def test_in_float64_coordinates_equal_those_of_adv_lib(name):
    with jax.enable_x64(True):
        x, clean = found(name, np.float64)
    assert np.abs(x - clean).max() > 0.09
    np.testing.assert_allclose(x, RECORDED[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", ["L0", "L1", "L2"])
def test_fmn_finds_nearer_points_than_adv_lib_within_the_box(norm):
    """adv-lib clips after the projection; then most digits have no adversarial point in L2."""
    x, clean = found(f"fmn/{norm}/long", np.float32)
    theirs = RECORDED[f"fmn/{norm}/long"]
    wrong = [np.abs(v - clean).reshape(N, -1).max(1) > 0 for v in (x, theirs)]
    assert (wrong[0].sum(), wrong[1].sum()) == (N - 1, 5 if norm == "L2" else N - 1)  # one is misclassified
    both = wrong[0] & wrong[1]
    assert np.median(norms(x - clean, norm)[both]) <= 1.01 * np.median(norms(theirs - clean, norm)[both])


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
def test_fmn_crosses_the_boundary_of_a_linear_model(norm, key):
    """The linearised distance alone ends at the boundary, a rounding error before it."""
    system, batch = affine(dtype=np.float32)
    x = fm.perturb(attacks.FMN(BALLS[norm] & fm.Box(-9.0, 9.0), 60), system, batch, key).x
    far, least = norms(x - batch.x, norm), nearest_plane(norm, system, batch)
    assert ((far > 0) & (far <= 1.005 * least)).all()


# Independence, agreement of `perturb` and `attempt`, cost

MADE = {
    "ddn": lambda: attacks.DDN(attacks.L2Ball(0.08) & BOX, 12, radius=0.1),
    "fmn L0": lambda: attacks.FMN(attacks.L0Ball(1) & BOX, 12),
    "fmn L1": lambda: attacks.FMN(attacks.L1Ball(0.1) & BOX, 12),
    "fmn L2": lambda: attacks.FMN(attacks.L2Ball(0.1) & BOX, 12),
    "fmn Linf": lambda: attacks.FMN(fm.LinfBall(0.03) & BOX, 12),
    "sigma-zero": lambda: attacks.SigmaZero(attacks.L0Ball(2) & BOX, 30),
    "pdpgd": lambda: attacks.PDPGD(attacks.L1Ball(0.3) & BOX, 40, step_size=0.02),
}


def rows(name):
    """Where no example is dropped there are fewer programs; of one attack this is for one norm."""
    return 16 if name in ("fmn L0", "fmn L1", "fmn L2") else 32


@pytest.mark.parametrize("name", MADE)
def test_an_attack_on_an_example_does_not_depend_on_the_others(name, key):
    attack = MADE[name]()
    ball = attack.region.regions[0]
    norm = "Linf" if ball.norm_order == np.inf else f"L{ball.norm_order}"
    with jax.enable_x64(True):
        system, batch, other = two_batches(rows(name))
        x, others = (np.asarray(fm.perturb(attack, system, each, key).x) for each in (batch, other))
        np.testing.assert_allclose(*common(x, others), rtol=0, atol=1e-9)
        whole = attacks.attempt(attack, system, batch, key)
        wrong = classes_at(system, x) != batch.y
    far, reached = norms(x - batch.x, norm), norms(np.asarray(whole.x) - batch.x, norm)
    succeeded = np.asarray(whole.succeeded)
    assert 3 < succeeded.sum() < len(x) and ((x >= 0) & (x <= 1)).all()
    np.testing.assert_array_equal(succeeded, (far > 0) & (far <= ball.eps))
    assert (reached[succeeded] <= ball.eps).all() and (reached[~succeeded] == 0).all()
    np.testing.assert_array_equal(wrong, far > 0)


def test_steps_take_a_forward_and_a_backward_pass(key):
    ones = lambda *shape: np.ones(shape, np.float32)
    big, data = Perceptron(ones(64, 512), ones(512, 10)), fm.Labeled(ones(32, 64), np.zeros(32, np.int32))
    flops = lambda f, *a: jax.jit(f).lower(*a).cost_analysis()["flops"]
    one, system = flops(lambda s, x: s(x), big, data.x), fm.Classifier(big, fm.CrossEntropy())
    for name in set(MADE) - {"fmn L1", "fmn L2"}:  # the passes of FMN are the same in all norms
        problem = attacks.Problem(MADE[name](), system, data)
        state = jax.eval_shape(lambda problem: attacks.begin(problem.attack, problem), problem)
        step = flops(lambda problem, state: attacks.advance(problem.attack, problem, state, 0), problem, state)
        assert 1.8 < step / one < 2.3, problem.attack


@pytest.mark.parametrize("name", MADE)
def test_gradients_that_are_not_finite_leave_the_input_unchanged(name, key):
    clean, x = left_by_a_broken_model(MADE[name](), rows(name), key)
    np.testing.assert_array_equal(x, clean)


# Bad input


class OfL2Balls(attacks.MinimalNorm):
    norms = (2,)


def test_the_norms_of_an_attack_limit_its_ball_whether_it_needs_one_or_not():
    fm.validate(OfL2Balls(BALLS["L2"]))
    with pytest.raises(ValueError, match="must contain an L2Ball, got L1Ball"):
        fm.validate(OfL2Balls(BALLS["L1"]))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: attacks.DDN(BALLS["L1"]), "DDN, region: must contain an L2Ball, got L1Ball"),
        (lambda: attacks.SigmaZero(BALLS["L2"]), "SigmaZero, region: must contain an L0Ball, got L2Ball"),
        (
            lambda: attacks.PDPGD(BALLS["L0"]),
            "PDPGD, region: must contain an L1Ball or an L2Ball or an LinfBall, got L0Ball",
        ),
        (lambda: attacks.FMN(BOX), "region must contain one ball, .* got 0"),
        (lambda: attacks.FMN(attacks.L0Ball(13)), "L0Ball.eps must be at most the number of coordinates.*, 12, got 13"),
        (lambda: attacks.FMN(BALLS["L2"], change=1.0), "FMN.change must be .*below 1, got 1"),
        (lambda: attacks.DDN(BALLS["L2"], radius=0.0), "DDN.radius must be above 0, got 0"),
        (lambda: attacks.SigmaZero(BALLS["L0"], sigma=0.0), "SigmaZero.sigma must be above 0, got 0"),
        (lambda: attacks.PDPGD(BALLS["L1"], ratio=1.0), "PDPGD.ratio must be .*below 1, got 1"),
        (lambda: attacks.APGD(BALLS["L0"]), "APGD, region: must contain a LinfBall, an L2Ball or an L1Ball, got L0Ball"),
        (lambda: fm.PGD(attacks.L0Ball(-1), 0.1, 2), "L0Ball.eps must be at least 0, got -1"),
    ],
)
def test_invalid_attacks_are_refused(attack, message, key):
    with pytest.raises((ValueError, TypeError), match=message):
        fm.perturb(attack(), *affine(dtype=np.float32), key)


def test_the_optimizer_of_sigma_zero_is_a_method(key):
    system, batch = affine(dtype=np.float32)
    x = fm.perturb(Plain(attacks.L0Ball(2) & BOX, 30), system, batch, key).x
    assert (np.abs(x - batch.x).max(1) > 0).sum() > 0


class Plain(attacks.SigmaZero):
    """σ-zero by gradient descent."""


@fm.dispatch
def transformation(attack: Plain):
    return optax.identity()
