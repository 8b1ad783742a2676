"""Attacks on inputs of 16 bits: they optimise in float32, and their points are in the region."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_minimal_attacks import affine

import fulmen as fm
from fulmen import attacks

BOX = fm.Box(0.0, 1.0)
ATTACKS = {
    "adam": lambda: fm.Attack(optax.adam(0.02), fm.LinfBall(0.1) & BOX, steps=10),
    "small steps": lambda: fm.PGD(fm.LinfBall(0.1) & BOX, 1e-4, 40, attacks.Clean()),
    "carlini_wagner": lambda: attacks.CarliniWagner(BOX, 40, step_size=0.1, searches=4, constant=1.0),
    "ddn": lambda: attacks.DDN(fm.L2Ball(0.3) & BOX, 20),
    "fmn": lambda: attacks.FMN(fm.LinfBall(0.1) & BOX, 20),
    "sigma_zero": lambda: attacks.SigmaZero(attacks.L0Ball(3) & BOX, 30),
    "pdpgd": lambda: attacks.PDPGD(fm.L1Ball(1.0) & BOX, 40),
    "apgd": lambda: attacks.APGD(fm.LinfBall(0.1) & BOX, 10),
}


def half(tree, dtype):
    cast = lambda v: jnp.asarray(np.asarray(v).astype(dtype)) if jnp.issubdtype(v.dtype, jnp.floating) else v
    return jax.tree.map(cast, tree)


# Each attack in one of the two types: both are handled by the same lines, outside the attack.
@pytest.mark.parametrize(("name", "dtype"), [*zip(ATTACKS, [jnp.float16, jnp.bfloat16] * 4, strict=True)])
def test_attacks_in_16_bits_find_what_they_find_in_float32(name, dtype, key):
    system, batch = affine(3, dtype=np.float32)
    attack, small = ATTACKS[name](), half(batch, dtype)
    rounded = half(small, jnp.float32)
    wide = np.asarray(fm.perturb(attack, system, rounded, key).x)
    there = fm.perturb(attack, half(system, dtype), small, key).x
    assert there.dtype == dtype
    there = np.asarray(there, np.float32)
    assert np.isfinite(there).all() and (there >= 0).all() and (there <= 1).all()
    moved, expected = (np.abs(v - np.asarray(rounded.x)).sum(1) for v in (there, wide))
    assert (moved > 0).sum() >= (expected > 0).sum() - 2
    assert np.median(moved) == pytest.approx(np.median(expected), rel=0.2)


@pytest.mark.parametrize("ball", [fm.LinfBall(0.1), fm.L2Ball(0.3), fm.L1Ball(0.3), attacks.L0Ball(2)])
def test_points_of_16_bits_are_in_the_region_exactly(ball, key):
    """0.1 in bfloat16 is 0.10009766: a radius that is rounded to the input's type would be larger."""
    system, batch = half(affine(3, dtype=np.float32), jnp.bfloat16)
    there = fm.perturb(fm.PGD(ball & BOX, 0.3, 5, attacks.Clean()), system, batch, key).x
    offset = np.asarray(there, np.float64) - np.asarray(batch.x, np.float64)
    order = {0: 0, 1: 1, 2: 2}.get(ball.norm_order, np.inf)
    far = np.linalg.norm(offset, order, axis=1)
    assert (far <= ball.eps * (1 + 1e-6)).all() and far.max() > 0.9 * ball.eps


def test_a_random_start_and_targets_work_in_16_bits(key):
    system, batch = half(affine(3, dtype=np.float32), jnp.float16)
    attack = fm.PGD(fm.LinfBall(0.1), 0.02, 3, target=attacks.LikelyTarget(1))
    worst = fm.WorstOf(attack, attacks.Smallest(fm.FGSM(fm.LinfBall(0.1)), 3))
    found = attacks.attempt(worst, system, batch, key)
    assert found.x.dtype == np.float16 and found.succeeded.any()
    jitted = jax.jit(lambda b: fm.perturb(fm.FGSM(fm.LinfBall(0.1)), system, b, None).x)(batch)
    np.testing.assert_array_equal(jitted, fm.perturb(fm.FGSM(fm.LinfBall(0.1)), system, batch, None).x)
