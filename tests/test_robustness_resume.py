"""`robustness` with a folder: a stopped evaluation continues with the same results; and the comparison of attacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_robustness import EPS, PGD, REGION, Loud, data, evaluate, margins, shaped

import fulmen as fm
from fulmen import attacks
from fulmen.robust.report import SIGNS, Report
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Inside, Iterations
from fulmen.robust.report.model_signs import Randomness

QUICK = tuple(sign for sign in SIGNS if isinstance(sign, BlackBox | Convergence | Inside | Iterations | Randomness))
OPTIONS = {"attack": (fm.FGSM(REGION), PGD), "batch_size": 4, "eps": (0.05, 0.1, 0.2), "signs": QUICK, "sample": 4}


def same(one, other):
    """Equal bit for bit, but for the times."""
    timed = lambda attacks: [{k: v for k, v in each.items() if k != "seconds"} for each in attacks]
    for field in dataclasses.fields(Report):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "attacks":
            assert timed(a) == timed(b)
        elif field.name != "seconds":
            assert jax.tree.structure(a) == jax.tree.structure(b), field.name
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_array_equal(x, y, err_msg=field.name)
                assert getattr(x, "dtype", None) == getattr(y, "dtype", None), field.name


@pytest.fixture(scope="module")
def whole():
    return evaluate(shaped(), **OPTIONS)


@pytest.mark.parametrize("steps", [3, 6, 9], ids=["in a batch", "in the last batch", "in the curve"])
def test_a_stopped_evaluation_continues_with_the_same_results(steps, whole, tmp_path):
    stopped = evaluate(shaped(), **OPTIONS, resume=tmp_path / "run", progress=Loud(steps))
    assert stopped.partial and not whole.partial and len(whole.curve["eps"]) == 3
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("batch-*.npz")}
    assert len(files) == min(steps // 2, 4)
    continued = evaluate(shaped(), **OPTIONS, resume=tmp_path / "run")
    same(continued, whole)
    assert files.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}.items()  # not written again


def test_a_finished_folder_is_read_without_attacking(whole, tmp_path, monkeypatch):
    evaluate(shaped(), **OPTIONS, resume=tmp_path / "run")

    def refuse(*args, **options):
        raise AssertionError("an attack ran")

    monkeypatch.setattr("fulmen.robust.report.attack_evaluation.attempt", refuse)
    same(evaluate(shaped(), **OPTIONS, resume=tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 8}, "batch_size"),
        ({"attack": PGD}, "attack"),
        ({"system": fm.replace(shaped(), {"model.weight": jnp.zeros((4, 2))})}, "arrays"),
        ({"pairs": (data()[0] * np.float32(0.5), data()[1])}, "arrays"),
    ],
)
def test_the_folder_of_another_evaluation_is_refused(change, name, tmp_path):
    options = {"attack": (fm.FGSM(REGION),), "batch_size": 16, "resume": tmp_path / "run"}
    evaluate(shaped(), **options)
    options |= {"system": shaped(), **change}
    with pytest.raises(ValueError, match=rf"resume: .*run holds the results of another evaluation, .*\b{name}\b"):
        evaluate(options.pop("system"), options.pop("pairs", None), **options)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="resume must be a folder of `robustness`"):
        evaluate(shaped(), resume=tmp_path)


# The comparison of attacks


def test_optimality_is_the_area_over_that_of_the_lower_envelope():
    x, y = data()
    exact = attacks.Smallest(fm.FGSM(REGION), trials=14)
    weak = attacks.Smallest(fm.FGSM(REGION), trials=2)
    report = evaluate(shaped(), (x, y), (weak, exact, fm.FGSM(REGION)), compare=True)
    assert report.reached.shape == report.passes.shape == (16, 3)
    right = margins(x, y, 0) > 0
    slope = 2 * np.abs(np.array([[-1.0, 1.0], [2.0, 0.5], [0.5, -0.5], [-0.25, 1.5]]) @ [1, -1]).sum() / 2
    least = np.where(right, margins(x, y, 0) / slope, 0)
    near = least < 0.1  # beyond that the box matters
    np.testing.assert_allclose(report.reached[near, 1], least[near], atol=2e-3)
    np.testing.assert_array_equal(report.reached[:, 2] <= EPS * (1 + 1e-6), ~report.robust)
    np.testing.assert_array_equal(report.robust, margins(x, y, EPS) > 0)
    found = report.optimality(0.1)
    assert found["Smallest (2)"]["optimality"] == pytest.approx(1, abs=0.02)
    assert 0 < found["Smallest (1)"]["optimality"] < found["Smallest (2)"]["optimality"]
    assert found["Smallest (2)"]["area"] == pytest.approx(np.minimum(least, 0.1).mean(), abs=1e-3)
    assert found["Smallest (2)"]["passes"] == 14 * (1 + 2 + 1) + 1 and 2 < found["FGSM"]["passes"] <= 3
    wider = report.optimality()
    assert max(each["optimality"] for each in wider.values()) <= 1


def test_the_order_of_the_attacks_does_not_matter_where_they_are_compared(tmp_path):
    ddn, fgsm = attacks.DDN(attacks.L2Ball(0.1) & fm.Box(0, 1), 30), fm.FGSM(attacks.L2Ball(0.1) & fm.Box(0, 1))
    one, other = (evaluate(shaped(), attack=order, compare=True) for order in ((ddn, fgsm), (fgsm, ddn)))
    np.testing.assert_array_equal(one.reached, other.reached[:, ::-1])
    assert one.optimality() == {name: other.optimality()[name] for name in ("DDN", "FGSM")}
    assert one.optimality()["DDN"]["passes"] == 61
    one.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").optimality() == one.optimality()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": (fm.FGSM(REGION), PGD)}, r"each attack must run on each example.*compare=True"),
        ({"attack": (fm.FGSM(REGION), fm.FGSM(fm.LinfBall(0.2))), "compare": True}, "in balls of one norm"),
        ({"attack": fm.FGSM(fm.LinfBall(0.0)), "compare": True}, "some attack must break an example"),
    ],
)
def test_optimality_without_distances_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(shaped(), **options).optimality()


def test_few_coordinates_have_a_report():
    attack = attacks.SigmaZero(attacks.L0Ball(2) & fm.Box(0, 1), 60)
    report = evaluate(shaped(), attack=attack, eps=None, signs=QUICK)
    assert set(report.distance) == {"linf", "l2", "l1", "l0"} and report.distance["l0"].max() <= 2
    assert report.robust_accuracy < report.accuracy and (np.diff(report.curve["robust"]) <= 0).all()
    assert not [each for each in report.findings if each.verdict == "wrong"]
