"""Parts of adaptive evaluations: BPDA, attacks through a surrogate, patches, universal perturbations, custom minimal-norm attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_minimal_attacks import affine, nearest_plane

import fulmen as fm
from fulmen import attacks, dispatch
from fulmen.robust.report import scaled

BOX = fm.Box(0.0, 1.0)
REGION = fm.LinfBall(0.2) & BOX
BALLS = fm.LinfBall(0.2), fm.L2Ball(0.5), fm.L1Ball(1.0), attacks.L0Ball(2)


class Rounded(fm.Model):
    """A model of inputs that are rounded to eighths by a layer."""

    round: fm.Model
    inner: fm.Model


@dispatch
def forward(model: Rounded, x):
    return model.inner(model.round(x))


def eighths(x):
    return jnp.round(8 * x) / 8


@functools.cache
def plain():
    return affine(dtype=np.float32)


def masked(layer):
    system, _ = plain()
    return fm.replace(system, model=Rounded(layer, system.model))


def broken(attack, system, key=None):
    return np.asarray(attacks.attempt(attack, system, plain()[1], key).succeeded).mean()


FIRST = fm.models.Function(eighths)


def test_bpda_has_the_outputs_of_one_function_and_the_gradient_of_another():
    scale = fm.init(fm.models.Dense(3, 3), jax.random.key(0))
    layer = attacks.BPDA(eighths, scale)
    x, weight = jnp.array([[0.3, 0.55, 0.9]]), jnp.array([[1.0, -2.0, 3.0]])
    slope = lambda f, x: jax.grad(lambda x: (weight * f(x)).sum())(x)
    own, outputs, of_surrogate = jax.jit(lambda x: (slope(layer, x), layer(x), slope(scale, x)))(x)
    np.testing.assert_array_equal(outputs, jax.jit(eighths)(x))
    np.testing.assert_array_equal(own, of_surrogate)
    trained = jax.grad(lambda layer: (weight * layer(x)).sum(), allow_int=True)
    assert np.abs(jax.jit(lambda layer: trained(layer).surrogate.weight)(layer)).max() > 0
    with pytest.raises(ValueError, match=r"BPDA.surrogate must return the shape of the function, \(1, 3\), got \(1,\)"):
        jax.grad(lambda x: attacks.BPDA(eighths, lambda x: x.sum(1))(x).sum())(x)


def test_a_masked_model_is_broken_by_bpda_and_through_a_surrogate(key):
    system, _ = plain()
    attack = fm.PGD(REGION, 0.05, 10, fm.attacks.Clean())
    blind = broken(attack, masked(FIRST))
    through = attacks.Through(system, attack)
    for found in (broken(attack, masked(attacks.BPDA(eighths))), broken(through, masked(FIRST))):
        assert found > blind + 0.2
    there = fm.perturb(through, masked(FIRST), plain()[1], key).x
    np.testing.assert_array_equal(there, fm.perturb(attack, system, plain()[1], key).x)
    nearer = fm.perturb(scaled(through, 0.5), masked(FIRST), plain()[1], key).x
    assert np.abs(nearer - plain()[1].x).max() == pytest.approx(0.1, rel=1e-4)
    report = fm.robustness(masked(FIRST), (plain()[1].x, plain()[1].y), (attack, through), eps=(), signs=(), progress=False)
    assert [each["name"] for each in report.attacks] == ["PGD-10", "Through"] and report.attacks[1]["broken"] > 0


PATCHED = [
    (lambda r: fm.PGD(r, 0.1, 10), BALLS[0]),
    *[(lambda r: fm.PGD(r, 0.1, 10, attacks.Clean()), ball) for ball in BALLS[1:]],
    *[(lambda r: attacks.FMN(r, 60), ball) for ball in BALLS],
    (lambda r: attacks.APGD(r, 10), fm.L1Ball(1.0)),  # in the other norms its points are those of the projection of PGD
]


@pytest.mark.parametrize(("make", "ball"), PATCHED)
def test_only_the_coordinates_of_a_patch_change(make, ball, key):
    system, batch = plain()
    mask = np.arange(12) < 9
    there = np.asarray(fm.perturb(make(ball & attacks.Patch(mask) & BOX), system, batch, key).x)
    np.testing.assert_array_equal(there[:, ~mask], batch.x[:, ~mask])
    assert np.abs(there - batch.x)[:, mask].max() > 0.05 and (there >= 0).all() and (there <= 1).all()


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones(12), TypeError, "Patch.mask must be booleans, got float64"),
        (np.zeros(12, bool), ValueError, "Patch.mask must be True somewhere"),
        (np.ones((3, 4), bool), ValueError, r"Patch.mask must have the shape of an example, \(12,\), got \(3, 4\)"),
    ],
)
def test_invalid_patches_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        fm.perturb(fm.FGSM(fm.LinfBall(0.1) & attacks.Patch(mask)), *plain(), None)


def test_a_universal_perturbation_is_the_same_for_all_examples():
    system, batch = affine(3, dtype=np.float32, low=-0.1)
    attack = attacks.Universal(fm.LinfBall(0.3), 0.05, 12)
    there = np.asarray(fm.perturb(attack, system, batch, None).x)
    offset = there - batch.x
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:1], offset.shape), atol=1e-6)
    assert np.abs(offset).max() == pytest.approx(0.3, rel=1e-5)
    loss = lambda x: fm.evaluate(system, (x.astype(np.float32), batch.y))["loss"]
    random = np.sign(np.random.default_rng(0).normal(size=(8, 12))).astype(np.float32) * 0.3
    assert loss(there) > max(loss(batch.x + one) for one in random)
    jitted = jax.jit(lambda x: fm.perturb(attack, system, fm.Labeled(x, batch.y), None).x)(batch.x)
    np.testing.assert_allclose(jitted, there, atol=1e-6)


# A custom minimal-norm attack, written with public names only


class Descent(attacks.MinimalNorm):
    """Gradient descent on ‖x′ − x‖² + c · max(0, margin), written as a user would."""

    needs_ball = True

    steps: int = fm.static(default=60)
    step_size: float = fm.hyper(above=0, default=0.05, kw_only=True)


@dispatch
def begin(attack: Descent, problem):
    return attacks.AttackState(**attacks.clean_fields(problem))


@dispatch
def advance(attack: Descent, problem, state, step):
    (x,), origin = jax.tree.leaves(state.x), problem.image
    _, adversarial, gradient = attacks.ascent(problem, x)
    distance = attacks.length(attacks.ball_of(attack.region), x - origin)
    state = attacks.keep_nearest(problem, state, x, adversarial, distance, step)
    rate = attacks.annealed(attacks.share_done(problem, step, x.dtype), attack.step_size, 0.001)
    direction = attacks.select(adversarial, origin - x, gradient)
    size = jnp.maximum(jnp.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    return fm.replace(state, x=problem.points(jnp.clip(x + rate * direction / size, *attacks.limits(attack.region, origin))))


def test_a_custom_minimal_norm_attack_needs_public_names_only(key):
    system, batch = affine(3, dtype=np.float32, low=-0.5)
    region = fm.L2Ball(0.3) & fm.Box(-9.0, 9.0)
    far = np.linalg.norm(np.asarray(fm.perturb(Descent(region), system, batch, key).x) - batch.x, axis=1)
    np.testing.assert_allclose(far, nearest_plane("L2", system, batch), rtol=0.1, atol=5e-3)
    inside = np.asarray(attacks.attempt(Descent(region), system, batch, key).succeeded)
    np.testing.assert_array_equal(inside, far <= 0.3)


class OnlyAdvance(fm.Attack):
    """Without `begin`."""


class WrongBegin(fm.Attack):
    """`begin` returns an array."""


class Forgetful(fm.Attack):
    """`advance` returns the points alone."""


class Casting(fm.Attack):
    """`advance` changes the type."""


@dispatch
def advance(attack: OnlyAdvance | Forgetful, problem, state, step):
    return state.x


@dispatch
def begin(attack: WrongBegin, problem):
    return problem.origin


@dispatch
def begin(attack: Forgetful | Casting, problem):
    return attacks.AttackState(**attacks.initial_fields(problem, problem.origin))


@dispatch
def advance(attack: Casting, problem, state, step):
    return fm.replace(state, x=state.x.astype(jnp.float16))


class NotABatch(fm.Attack):
    """`perturb` returns an array."""


@dispatch
def perturb(attack: NotABatch, system, batch, key):
    return batch.x


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (OnlyAdvance, fm.MissingMethodError, r"OnlyAdvance has a method of `advance`, and none of `begin`. Write `begin"),
        (WrongBegin, TypeError, r"begin\(attack: WrongBegin, problem\) must return an AttackState, got .*\[.*12\]"),
        (Forgetful, TypeError, r"advance\(attack: Forgetful, .* must return a state of the structure .* AttackState, got"),
        (Casting, TypeError, r"advance\(attack: Casting, .* must keep the shape and type of `state.x`, .*f16"),
        (NotABatch, TypeError, r"perturb\(attack: NotABatch, .*must return a batch, Labeled, got"),
    ],
)
@pytest.mark.parametrize("run", [fm.perturb, attacks.attempt])
def test_wrong_results_of_methods_are_explained(kind, error, message, run, key):
    with pytest.raises(error, match=message):
        run(kind(REGION), *plain(), key)


def test_a_number_for_a_region_is_refused_where_it_is_written():
    for make in (lambda: fm.PGD(0.1, 0.02, 10), lambda: fm.PGD(region=0.1, step_size=0.02, steps=10), lambda: fm.FGSM(0.1)):
        with pytest.raises(TypeError, match=r"region must be a Region, got 0.1; write fm.LinfBall\(0.1\)"):
            make()


def test_restarts_without_a_random_start_are_refused(key):
    for attack in (fm.PGD(REGION, 0.1, 2, fm.attacks.Clean(), restarts=3), attacks.MIFGSM(REGION, restarts=2)):
        with pytest.raises(ValueError, match=r"restarts must be 1, got [23]: without a random start all runs are the same"):
            fm.perturb(attack, *plain(), key)
    fm.perturb(attacks.DIFGSM(REGION, steps=1, restarts=2, views=(Twice(),)), *plain(), key)


class Twice(attacks.View):
    """A view of vectors."""


@dispatch
def shown(view: Twice, problem, state, x, step):
    return jax.tree.map(lambda v: v * 2, x)
