"""The attacks against those of torchattacks, foolbox and ART, recorded by `parity/record_attacks.py`, point by point."""

import jax
import numpy as np
import pytest
from parity import attacks_model

import fulmen as fm
from fulmen import attacks, dispatch

PIXELS = 64
ROWS = slice(0, 64, 4)  # of those recorded: without XLA's optimisations, float64 is slow

with np.load(attacks_model.PATH.with_name("attacks.npz")) as stored:
    RECORDED = dict(stored)
EPS, STEP, STEPS, EPS_L2, STEP_L2 = (
    RECORDED[name].item() for name in ("eps", "step_size", "steps", "eps_l2", "step_size_l2")
)
BOX = fm.Box(0.0, 1.0)
LINF = fm.LinfBall(EPS) & BOX


class BallThenBox(attacks.L2Ball):
    """The projection of torchattacks and foolbox: onto the ball, then onto the box.

    It is inside, but not the nearest point of the two, which `L2Ball(eps) & Box(0, 1)` gives.
    """


@dispatch
def project(region: BallThenBox, x, origin):
    return fm.attacks.project(BOX, fm.attacks.project(attacks.L2Ball(region.eps), x, origin), origin)


class FarNIFGSM(attacks.NIFGSM):
    """torchattacks divides gradients by the mean absolute value, as the authors' code does, not by the sum.

    To `MIFGSM` that is nothing, but it makes `NIFGSM` look as many times further ahead as an image has pixels. The paper
    (equation 6) has the L1 norm, and so has Fulmen.
    """


@dispatch
def views(attack: FarNIFGSM):
    (nesterov,) = attacks.views.invoke(attacks.NIFGSM)(attack)
    return (attacks.Nesterov(nesterov.distance * PIXELS),)


ATTACKS = {
    "torchattacks/fgsm": fm.FGSM(LINF),
    "torchattacks/bim": attacks.BIM(LINF, STEP, STEPS),
    "torchattacks/pgd": fm.PGD(LINF, STEP, STEPS, start=fm.attacks.Clean()),
    "torchattacks/pgd_l2": fm.PGD(BallThenBox(EPS_L2), STEP_L2, STEPS, start=fm.attacks.Clean()),
    "torchattacks/mifgsm": attacks.MIFGSM(LINF, STEP, STEPS, 0.9),
    "torchattacks/nifgsm": FarNIFGSM(LINF, STEP, STEPS, 0.9),
    # The other library's kernel was rounded to float32, which changes signs of sums that are about 0.
    "torchattacks/tifgsm": attacks.TIFGSM(LINF, STEP, STEPS),
    "torchattacks/tifgsm_momentum": attacks.TIFGSM(LINF, STEP, STEPS, 1.0),
    "foolbox/fgsm": fm.FGSM(LINF),
    "foolbox/bim": attacks.BIM(LINF, STEP, STEPS),
    "foolbox/pgd_l2": fm.PGD(BallThenBox(EPS_L2), STEP_L2, STEPS, start=fm.attacks.Clean()),
    "art/fgm": fm.FGSM(LINF),
    "art/pgd": attacks.BIM(LINF, STEP, STEPS),
}


def found(attack, dtype):
    x, y = attacks_model.examples(512, dtype)
    rows = RECORDED["rows"][ROWS]
    batch = x[rows], y[rows]
    moved = fm.perturb(attack, attacks_model.classifier(dtype), batch, jax.random.key(0), best=False)
    assert moved.x.dtype == dtype
    return np.asarray(moved.x), batch[0]


@pytest.mark.parametrize("name", ATTACKS)
def test_in_float64_all_coordinates_equal_those_of_other_libraries(name):
    with jax.enable_x64(True):
        x, clean = found(ATTACKS[name], np.float64)
    assert np.abs(x - clean).max() > 0.09
    np.testing.assert_allclose(x, RECORDED[name][ROWS], rtol=0, atol=1e-9)


# One of each way to step; the others differ from these in numbers only.
@pytest.mark.parametrize("name", [f"torchattacks/{name}" for name in ("fgsm", "pgd_l2", "nifgsm", "tifgsm_momentum")])
def test_in_float32_nearly_all_coordinates_are_equal(name):
    x, _ = found(ATTACKS[name], np.float32)
    assert (np.abs(x - RECORDED[name][ROWS]) <= 1e-5).mean() >= 0.999


def test_the_other_libraries_agree_and_the_attacks_differ():
    """Otherwise the comparisons above would compare one attack with itself."""
    for one, other in [
        ("torchattacks/fgsm", "art/fgm"),
        ("torchattacks/bim", "art/pgd"),
        ("torchattacks/pgd_l2", "foolbox/pgd_l2"),
    ]:
        np.testing.assert_allclose(RECORDED[one], RECORDED[other], rtol=0, atol=1e-9)
    different = [
        RECORDED[f"torchattacks/{name}"]
        for name in ("fgsm", "bim", "pgd_l2", "mifgsm", "nifgsm", "tifgsm", "tifgsm_momentum")
    ]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert np.abs(one - other).max() > 0.01
