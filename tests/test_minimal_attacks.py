"""C&W, DeepFool and FAB against linear programs and other implementations, and independence of examples."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import attacks_model
from scipy import optimize

import fulmen as fm
from fulmen import attacks, dispatch
from fulmen.core.verbs import length
from fulmen.robust.attacks.boundary_attacks import FAB, DeepFool
from fulmen.robust.attacks.carlini_wagner import CarliniWagner
from fulmen.robust.attacks.minimal_norm import onto_hyperplane

BOX = fm.Box(0.0, 1.0)
BALLS = {"Linf": fm.LinfBall(0.1), "L2": attacks.L2Ball(0.5), "L1": attacks.L1Ball(2.0)}
NORMS = list(BALLS)

with np.load(attacks_model.PATH.with_name("minimal.npz")) as stored:
    RECORDED = dict(stored)
N = len(RECORDED["fab/L2/1"])


def norm_of(name, offset):
    flat = np.abs(np.asarray(offset)).reshape(len(offset), -1)
    return {"Linf": flat.max(1), "L2": (flat**2).sum(1) ** 0.5, "L1": flat.sum(1)}[name]


# The nearest point of a hyperplane within a box


PLANE = {norm: jax.jit(lambda *case, norm=norm: onto_hyperplane(BALLS[norm], *case)) for norm in NORMS}


def shortest_by_program(norm, x, slope, gap, lo, hi):
    """The length of the shortest offset by a general solver; infinite where the plane is out of reach."""
    d, bounds = len(x), np.stack([lo - x, hi - x], 1)
    if np.where(slope * gap > 0, hi - x, x - lo) @ np.abs(slope) < abs(gap) - 1e-9:
        return np.inf
    if norm == "L2":
        found = optimize.lsq_linear(
            np.vstack([np.eye(d), 1e5 * slope[None]]), np.r_[np.zeros(d), 1e5 * gap], bounds.T, tol=1e-14
        )
        return np.linalg.norm(found.x)
    # As u ≥ |r|, or t ≥ |r|: minimise Σ u, or t.
    extra = d if norm == "L1" else 1
    above = np.eye(d) if norm == "L1" else np.ones((d, 1))
    sides = np.vstack([np.hstack([np.eye(d), -above]), np.hstack([-np.eye(d), -above])])
    cost, equal = np.r_[np.zeros(d), np.ones(extra)], np.r_[slope, np.zeros(extra)][None]
    limits = [*map(tuple, bounds), *[(0, None)] * extra]
    return optimize.linprog(cost, sides, np.zeros(2 * d), equal, [gap], limits).fun


def planes(seed, n=12, d=7):
    rng = np.random.default_rng(seed)
    x, slope = rng.uniform(size=(n, d)), rng.normal(size=(n, d)) * (rng.uniform(size=(n, d)) < 0.8)
    x[0], x[1, :3], slope[2] = 1.0, 0.0, 0.0
    room = np.where(slope > 0, 1 - x, x)
    gap = (room * np.abs(slope)).sum(1) * np.resize([0.01, 0.3, 0.7, 0.99, 1.5], n)
    return x, slope, gap, np.zeros_like(x), np.ones_like(x)


@pytest.mark.parametrize("norm", NORMS)
def test_the_offset_to_the_plane_is_the_shortest(norm):
    with jax.enable_x64(True):
        for seed in range(3):
            x, slope, gap, lo, hi = case = planes(seed)
            offset = np.asarray(PLANE[norm](*case))
            least = np.array([shortest_by_program(norm, *row) for row in zip(*case, strict=True)])
            reached = np.isfinite(least)
            assert 5 < reached.sum() < len(x)
            np.testing.assert_allclose((slope * offset).sum(1)[reached], gap[reached], atol=1e-12)
            np.testing.assert_allclose(norm_of(norm, offset)[reached], least[reached], rtol=1e-6, atol=1e-9)
            np.testing.assert_array_equal(jax.jit(length)(BALLS[norm], offset), norm_of(norm, offset))
            furthest = np.where(slope == 0, 0, np.where(slope > 0, hi - x, lo - x))
            np.testing.assert_allclose(offset[~reached], furthest[~reached], atol=1e-12)
            mirrored = PLANE[norm](1 - x, slope, -gap, lo, hi)
            np.testing.assert_allclose(mirrored, -offset, atol=1e-12)
            np.testing.assert_allclose(x + offset, np.clip(x + offset, 0, 1), atol=1e-15)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(NORMS), st.sampled_from([1.0, np.inf]))
def test_projections_onto_planes_do_not_depend_on_other_examples(seed, norm, hi):
    with jax.enable_x64(True):
        x, slope, gap, lo, _ = planes(seed)
        whole = PLANE[norm](x, slope, gap, lo, np.full_like(x, hi))
        order = np.random.default_rng(seed).permutation(len(x))
        np.testing.assert_array_equal(
            PLANE[norm](*(v[order] for v in (x, slope, gap, lo, np.full_like(x, hi)))), whole[order]
        )
        assert np.isfinite(whole).all() and (whole[~slope.any(1)] == 0).all()


# Linear models


class Affine(fm.Model):
    """x W"""

    weight: jax.Array


@dispatch
def forward(model: Affine, x):
    return x @ model.weight


def affine(classes=5, features=12, n=16, dtype=np.float64, low=0.3):
    rng = np.random.default_rng(3)
    weight = jnp.asarray(rng.normal(size=(features, classes)), dtype)
    x = rng.uniform(low, 1 - low, size=(n, features)).clip(0, 1).astype(dtype)
    return fm.Classifier(Affine(weight), fm.CrossEntropy()), fm.Labeled(x, np.asarray(x @ weight).argmax(1).astype(np.int32))


def nearest_plane(norm, system, batch, boxed=False):
    """The distance to the nearest boundary between the label and another class."""
    weight, x = np.asarray(system.model.weight), np.asarray(batch.x)
    lo, hi = (np.zeros_like(x[0]), np.ones_like(x[0])) if boxed else (np.full_like(x[0], -1e3), np.full_like(x[0], 1e3))
    found = np.full(len(x), np.inf)
    for i, y in enumerate(batch.y):
        for k in set(range(weight.shape[1])) - {int(y)}:
            slope = weight[:, k] - weight[:, y]
            gap = -x[i] @ slope
            dual = {"Linf": np.abs(slope).sum(), "L2": np.linalg.norm(slope), "L1": np.abs(slope).max()}[norm]
            found[i] = min(found[i], shortest_by_program(norm, x[i], slope, gap, lo, hi) if boxed else gap / dual)
    return found


def moved(attack, system, batch, key):
    attacked = fm.perturb(attack, system, batch, key)
    return np.asarray(attacked.x) - np.asarray(batch.x), classes_at(system, attacked.x) != np.asarray(batch.y)


@jax.jit
def logits(model, x):
    return model(x)


def classes_at(system, x):
    """The predicted classes, in the precision of the points."""
    return np.asarray(logits(system.model, np.asarray(x))).argmax(1)


def test_deepfool_goes_past_the_nearest_boundary(key):
    """In the other norms its points are compared with those of another library."""
    with jax.enable_x64(True):
        system, batch = affine(5)
        offset, wrong = moved(DeepFool(BALLS["L1"], overshoot=0.02, bisections=0), system, batch, key)
        assert wrong.all()
        np.testing.assert_allclose(norm_of("L1", offset), 1.02 * nearest_plane("L1", system, batch), rtol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_deepfool_comes_back_to_the_nearest_boundary(norm, key):
    with jax.enable_x64(True):
        system, batch = affine(2)
        offset, wrong = moved(DeepFool(BALLS[norm], overshoot=0.02), system, batch, key)
        ratio = norm_of(norm, offset) / nearest_plane(norm, system, batch)
        assert wrong.all() and ((ratio > 1) & (ratio <= 1 + 1.02 / 4096)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_deepfool_goes_to_the_nearest_boundary_within_a_box(norm, key):
    with jax.enable_x64(True):
        system, batch = affine(low=-0.8)
        least, free = nearest_plane(norm, system, batch, boxed=True), nearest_plane(norm, system, batch)
        assert (least > 1.01 * free).sum() >= (1 if norm == "L1" else 6) and np.isfinite(least).all()
        offset, wrong = moved(DeepFool(BALLS[norm] & BOX, overshoot=1e-6, bisections=1), system, batch, key)
        assert wrong.all()
        np.testing.assert_allclose(norm_of(norm, offset), least, rtol=1e-5)
        offset, wrong = moved(FAB(BALLS[norm] & BOX, 40, targets=4), system, batch, key)
        assert wrong.all() and (norm_of(norm, offset) >= least * (1 - 1e-9)).all()
        assert (norm_of(norm, offset) <= 1.01 * least).all()


def test_carlini_and_wagner_approach_the_nearest_point(key):
    with jax.enable_x64(True):
        system, batch = affine()
        least = nearest_plane("L2", system, batch, boxed=True)
        attack = CarliniWagner(BOX, 100, step_size=0.02, constant=0.1, searches=6)
        offset, wrong = moved(attack, system, batch, key)
        ratio = norm_of("L2", offset) / least
        assert wrong.all() and (ratio >= 1).all()
        assert (ratio[least > 0.05] < 1.03).all() and (least > 0.05).sum() > 8


# Recorded results of other implementations


def cw(step_size, confidence=0.0):
    steps, searches = int(RECORDED["cw_steps"]), int(RECORDED["cw_searches"])
    options = {"step_size": step_size, "constant": float(RECORDED["cw_constant"]), "confidence": confidence}
    return CarliniWagner(BOX, steps, searches=searches, **options)


def fab(norm, rank):
    return FAB(BALLS[norm] & BOX, int(RECORDED["fab_steps"]), target=fm.attacks.LikelyTarget(rank))


PEERS = {
    "deepfool/Linf/unbounded": DeepFool(BALLS["Linf"], bisections=0),
    "deepfool/L2/unbounded": DeepFool(BALLS["L2"], bisections=0),
    "carlini_wagner/plain": cw(0.1),
    "carlini_wagner/confident": cw(0.1, float(RECORDED["cw_confidence"])),
    "carlini_wagner/long": cw(0.2),
    **{f"fab/{norm}/1": fab(norm, 1) for norm in NORMS},
    "fab/L2/4": fab("L2", 4),
}


def found(attack, dtype):
    batch = attacks_model.examples(N, dtype)
    x = fm.perturb(attack, attacks_model.classifier(dtype), batch, jax.random.key(0)).x
    assert x.dtype == dtype
    return np.asarray(x), batch[0]


def expected(name, x, clean):
    """The recorded points, except that foolbox returns black images on failure and moves misclassified inputs."""
    theirs = RECORDED[name].copy()
    unfound = ~theirs.any((1, 2, 3)) | (np.abs(theirs - clean).max((1, 2, 3)) < 1e-6)
    assert unfound.mean() < 0.3
    theirs[unfound] = clean[unfound]
    return theirs


@pytest.mark.parametrize("name", PEERS)
def test_in_float64_all_coordinates_equal_those_of_other_libraries(name):
    with jax.enable_x64(True):
        x, clean = found(PEERS[name], np.float64)
    assert np.abs(x - clean).max() > 0.09
    for peer in (name, *[f"torchattacks/{norm}" for norm in NORMS if name == f"fab/{norm}/1"]):
        np.testing.assert_allclose(x, expected(peer, x, clean), rtol=0, atol=1e-9, err_msg=peer)


@pytest.mark.parametrize("name", ["fab/Linf/1", "deepfool/L2/unbounded", "carlini_wagner/plain"])
def test_in_float32_nearly_all_coordinates_are_equal(name):
    x, clean = found(PEERS[name], np.float32)
    assert (np.abs(x - expected(name, x, clean)) <= 1e-5).mean() >= 0.999


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_deepfool_in_a_box_succeeds_where_clipping_fails(norm):
    """foolbox clips the step to the box and then misses the linearised boundary: 50 steps do not fool all images. The shortest
    step within the box reaches it."""
    with jax.enable_x64(True):
        x, clean = found(DeepFool(BALLS[norm] & BOX), np.float64)
        wrong = lambda x: classes_at(attacks_model.classifier(np.float64), x) != attacks_model.examples(N)[1]
        theirs = wrong(RECORDED[f"deepfool/{norm}/box"])
        assert wrong(x).all() and not theirs.all()
    far, others = norm_of(norm, x - clean), norm_of(norm, RECORDED[f"deepfool/{norm}/box"] - clean)
    ratios = far[theirs] / np.maximum(others[theirs], 1e-9)
    assert ratios.max() < 1.25 and np.median(ratios) < 1.005  # nearest along another ray


# Independence of examples, of the batch and of the program


ATTACKS = {
    "fab": lambda: FAB(fm.LinfBall(0.03) & BOX, 6, targets=3),
    "deepfool": lambda: DeepFool(attacks.L2Ball(0.1) & BOX, 12, bisections=3),
    "cw": lambda: CarliniWagner(attacks.L2Ball(0.1) & BOX, 8, searches=3, step_size=0.05, constant=1.0),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_an_example_does_not_depend_on_the_others(name, key):
    attack, radius = ATTACKS[name](), ATTACKS[name]().region.regions[0].eps
    with jax.enable_x64(True):
        system, batch, other = two_batches()
        x, others = (np.asarray(fm.perturb(attack, system, each, key).x) for each in (batch, other))
        far = norm_of(ball_name(attack), x - batch.x)
        np.testing.assert_allclose(*common(x, others), rtol=0, atol=1e-12)
        whole, others = (attacks.attempt(attack, system, each, key) for each in (batch, other))
        np.testing.assert_allclose(*common(whole.x, others.x), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(*common(whole.first, others.first))
        nowhere = attacks.attempt(fm.replace(attack, {"region.regions.0.eps": 0.0}), system, batch, key)
        assert not nowhere.succeeded.any() and (nowhere.x == batch.x).all()

    # The nearest point counts, and no point outside the region is returned.
    succeeded, reached = np.asarray(whole.succeeded), norm_of(ball_name(attack), np.asarray(whole.x) - batch.x)
    assert 5 < succeeded.sum() < 27
    np.testing.assert_array_equal(succeeded, (far > 0) & (far <= radius))
    np.testing.assert_array_equal(succeeded, np.asarray(whole.first) > 0)
    assert (reached[succeeded] <= radius).all() and (reached[~succeeded] == 0).all()


@pytest.mark.parametrize("name", ["fab", "deepfool"])
def test_traced_attacks_return_the_same_points(name, key):
    with jax.enable_x64(True):
        system, batch, _ = two_batches()
        traced = jax.jit(lambda s, b, k: fm.perturb(ATTACKS[name](), s, b, k).x)(system, batch, key)
        np.testing.assert_allclose(traced, fm.perturb(ATTACKS[name](), system, batch, key).x, rtol=0, atol=1e-9)
        assert (np.abs(np.asarray(traced) - batch.x).max(1) > 0).sum() > 10


def ball_name(attack):
    return {fm.LinfBall: "Linf", attacks.L2Ball: "L2", attacks.L1Ball: "L1"}[type(attack.region.regions[0])]


class Curved(fm.Model):
    """A nonlinear model with curved boundaries; if it is broken, the gradient of some examples is NaN, of others 0."""

    weight: jax.Array
    broken: jax.Array


@dispatch
def forward(model: Curved, x):
    logits = jnp.sin(6 * x) @ model.weight
    root = jnp.sqrt(jnp.where(model.broken, x - x, 1)).sum(1, keepdims=True)
    nowhere = jnp.where(model.broken, root, 0)  # 0; if broken, with gradient inf − inf
    return jnp.where((x[:, 1:2] > 0.5) | ~model.broken, logits + nowhere, jax.lax.stop_gradient(logits))


def curved(**options):
    system, batch = affine(**options)
    system = fm.replace(system, model=Curved(system.model.weight, np.array(False)))
    return system, fm.replace(batch, y=classes_at(system, batch.x).astype(np.int32))


def two_batches(n=32):
    """A curved system and two batches, with all but 8 examples in common in other rows: they share their programs."""
    system, batch = curved(n=n + 8)
    return system, batch[np.arange(n)], batch[np.arange(n + 7, 7, -1)]


def common(one, other):
    """The rows of the common examples, in one order."""
    return np.asarray(one)[8:], np.asarray(other)[:7:-1]


def test_in_an_ensemble_each_attack_gets_the_remaining_examples(key):
    system, batch = affine(dtype=np.float32)
    region = fm.LinfBall(0.05) & BOX
    fast, slow = FAB(region, 12, target=fm.attacks.LikelyTarget(2)), FAB(region, 12, targets=4)
    both = attacks.attempt(fm.WorstOf(fast, slow), system, batch, key)
    alone = [np.asarray(attacks.attempt(attack, system, batch, key).succeeded) for attack in (fast, slow)]
    assert alone[0].sum() < alone[1].sum()
    np.testing.assert_array_equal(both.succeeded, alone[0] | alone[1])


def test_an_evaluation_counts_points_inside_the_region(key):
    system, batch = affine(dtype=np.float32)
    attack = FAB(fm.LinfBall(0.05) & BOX, 12, targets=4)
    left = 1 - np.asarray(attacks.attempt(attack, system, batch, key).succeeded).mean()
    anywhere = fm.evaluate(system, fm.perturb(attack, system, batch, key))["accuracy"]
    assert fm.evaluate(system, batch, attack=attack)["robust/accuracy"] == pytest.approx(left, abs=1e-6)
    assert anywhere < left < 1


class Plateau(fm.Model):
    """Constant near the middle, with another class further away."""

    steepness: jax.Array


@dispatch
def forward(model: Plateau, x):
    rise = jax.nn.relu(jnp.abs(x - 0.5) - 0.01).sum(1) * model.steepness
    return jnp.stack([jnp.ones_like(rise), rise], 1)


def test_later_restarts_start_elsewhere_and_the_nearest_point_is_kept(key):
    system, batch = (
        fm.Classifier(Plateau(jnp.array(20.0))),
        fm.Labeled(np.full((16, 3), 0.5, np.float32), np.zeros(16, np.int32)),
    )
    attack = lambda restarts: FAB(attacks.L2Ball(0.2) & BOX, 8, targets=1, restarts=restarts)
    offset, wrong = moved(attack(1), system, batch, None)
    assert not wrong.any() and not offset.any()  # the gradient is 0 at the start
    few, many = (norm_of("L2", moved(attack(restarts), system, batch, key)[0]) for restarts in (2, 4))
    assert (few > 0.03).all() and (many <= few).all() and (many < few - 1e-4).sum() > 5
    with pytest.raises(ValueError, match="key: FAB needs a random key"):
        fm.perturb(attack(2), system, batch, None)


# Targets


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: DeepFool(BALLS["L2"] & BOX, bisections=1, **o),
        lambda **o: FAB(BALLS["L2"] & BOX, 30, **o),
        lambda **o: CarliniWagner(BOX, 60, step_size=0.05, constant=1.0, searches=3, **o),
    ],
    ids=["deepfool", "fab", "cw"],
)
def test_minimal_attacks_lead_to_a_target(make, key):
    system, batch = affine(dtype=np.float32)
    target = (batch.y + 1) % 5
    there = fm.perturb(make(target=fm.attacks.Target(target)), system, batch, key)
    np.testing.assert_array_equal(classes_at(system, there.x), target)


def test_a_misclassified_input_is_its_own_nearest_point(key):
    system, batch = affine(dtype=np.float32)
    mistaken = fm.replace(batch, y=np.roll(batch.y, 1))
    wrong = mistaken.y != batch.y
    assert wrong.sum() > 5
    x = np.asarray(fm.perturb(DeepFool(BALLS["L2"] & BOX, bisections=1), system, mistaken, key).x)
    np.testing.assert_array_equal(x[wrong], batch.x[wrong])
    away = fm.perturb(DeepFool(BALLS["L2"] & BOX, bisections=1, target=fm.attacks.PredictedLabel()), system, mistaken, key).x
    assert (classes_at(system, away) != batch.y).all()


# Cost


def test_steps_take_the_documented_number_of_passes(key):
    ones = lambda *shape: np.ones(shape, np.float32)
    big, data = Perceptron(ones(64, 512), ones(512, 10)), fm.Labeled(ones(32, 64), np.zeros(32, np.int32))
    flops = lambda f, *a: jax.jit(f).lower(*a).cost_analysis()["flops"]
    one = flops(lambda s, x: s(x), big, data.x)
    system = fm.Classifier(big, fm.CrossEntropy())
    region = attacks.L2Ball(0.1) & BOX
    for attack, passes in [
        (FAB(region, targets=1), 3),
        (DeepFool(region, candidates=4), 5),
        (CarliniWagner(BOX), 2),
    ]:
        problem = attacks.Problem(attack, system, data)
        state = jax.eval_shape(lambda problem: attacks.begin(problem.attack, problem), problem)
        step = flops(lambda problem, state: attacks.advance(problem.attack, problem, state, 0), problem, state)
        assert 0.9 * passes < step / one < 1.1 * passes, attack


class Perceptron(fm.Model):
    """One hidden layer."""

    one: jax.Array
    two: jax.Array


@dispatch
def forward(model: Perceptron, x):
    return jax.nn.relu(x @ model.one) @ model.two


def test_deepfool_ends_when_all_examples_crossed_the_boundary(key, monkeypatch):
    """In `perturb` too, where the distance does not matter."""
    loop = importlib.import_module("fulmen.robust.attacks.attack_loop")
    calls, advance = [], loop._advance
    monkeypatch.setattr(loop, "_advance", lambda *a: calls.append(a[3]) or advance(*a))
    fm.perturb(DeepFool(BALLS["L2"] & BOX, bisections=1), *affine(dtype=np.float32), key)
    assert len(calls) == loop.CHECK_EVERY


# Bad input


def left_by_a_broken_model(attack, n, key):
    """The clean points, and those that an attack finds without finite gradients."""
    with jax.enable_x64(True):
        system, batch, _ = two_batches(n)
        x = fm.perturb(attack, fm.replace(system, {"model.broken": np.array(True)}), batch, key).x
    return batch.x, x


@pytest.mark.parametrize("name", ["fab", "deepfool", "cw"])
def test_gradients_that_are_not_finite_leave_the_input_unchanged(name, key):
    clean, x = left_by_a_broken_model(ATTACKS[name](), 32, key)
    np.testing.assert_array_equal(x, clean)


L2 = BALLS["L2"]


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (lambda: DeepFool(BOX), ValueError, "region must contain one ball, .* got 0 in"),
        (lambda: FAB(BOX), ValueError, "region must contain one ball, .* got 0 in"),
        (lambda: CarliniWagner(L2), ValueError, r"CarliniWagner, region: must contain a box.*L2Ball.*Write fm.Box\(0, 1\)"),
        (
            lambda: FAB(L2 & fm.attacks.Region()),
            TypeError,
            "FAB, region: must consist of a ball and of intervals .* got Region",
        ),
        (lambda: FAB(L2, targets=5), ValueError, r"FAB.targets .* got 5 .* with 5 outputs.*FAB\(region, targets=4\)"),
        (lambda: FAB(L2, 0), ValueError, "FAB.steps .* got 0"),
        (lambda: FAB(L2, targets=0), ValueError, "FAB.targets .* got 0"),
        (lambda: FAB(L2, alpha_max=1.5), ValueError, "FAB.alpha_max must be between 0 and 1, got 1.5"),
        (lambda: FAB(L2, eta=0.9), ValueError, "FAB.eta must be at least 1, got 0.9"),
        (lambda: DeepFool(L2, overshoot=-0.1), ValueError, "DeepFool.overshoot .* got -0.1"),
        (lambda: DeepFool(L2, candidates=1.5), TypeError, "DeepFool.candidates must be an integer, got 1.5"),
        (lambda: CarliniWagner(BOX, constant=0.0), ValueError, "CarliniWagner.constant must be above 0, got 0"),
        (lambda: CarliniWagner(BOX, searches=0), ValueError, "CarliniWagner.searches .* got 0"),
        (lambda: CarliniWagner(BOX, confidence=-1.0), ValueError, "CarliniWagner.confidence .* got -1"),
    ],
)
def test_invalid_attacks_are_refused(attack, error, message, key):
    with pytest.raises(error, match=message):
        fm.perturb(attack(), *affine(dtype=np.float32), key)


def test_invalid_inputs_are_refused(key):
    system, batch = affine(dtype=np.float32)
    with pytest.raises(ValueError, match=r"x must be floating-point.* got uint8 from \d+ to \d+.*x / 255"):
        fm.perturb(DeepFool(L2), system, fm.replace(batch, x=(batch.x * 255).astype(np.uint8)), key)
    with pytest.raises(ValueError, match=r"FAB needs the logits of one model, got 2 predictions .*Twins"):
        fm.perturb(FAB(L2), Twins(system, system), batch, key)
    with pytest.raises(TypeError, match="objective"):
        FAB(L2, objective=fm.CrossEntropy())


class Twins(fm.System):
    """Two classifiers."""

    one: fm.Classifier
    two: fm.Classifier


def test_a_model_of_two_classes_has_one_target(key):
    system, batch = affine(2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"FAB\(region, targets=1\)"):
        fm.perturb(FAB(L2), system, batch, key)
    assert moved(FAB(L2, 10, targets=1), system, batch, key)[1].all()
