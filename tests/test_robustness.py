"""`robustness`: results against closed forms, files and pictures, Ctrl-C, and bad input."""

import functools
import json
import re
import signal
import sys
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.core.verbs import robustness
from fulmen.robust.attacks import APGD, Square
from fulmen.robust.report import SIGNS, Report, scaled
from fulmen.robust.report.attack_choice import UniformNoise
from fulmen.robust.report.attack_signs import Gradients
from fulmen.robust.report.confidence import confidence_interval
from fulmen.robust.report.model_signs import Batches, Modes
from fulmen.train import LogsRead

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, WIDTH, EPS = 16, 4, 0.1
REGION = fm.LinfBall(EPS) & fm.Box(0, 1)
WEIGHT = np.array([[-1.0, 1.0], [2.0, 0.5], [0.5, -0.5], [-0.25, 1.5]], np.float32)
PGD = fm.PGD(REGION, step_size=0.02, steps=10)
STILL = fm.PGD(REGION, 0.02, 10, start=fm.attacks.Clean())


class Shaped(fm.Model):
    """Logits of a linear model, transformed by a function."""

    weight: jax.Array
    function: Callable = fm.static()


@dispatch
def forward(model: Shaped, x):
    return model.function(x @ model.weight)


class Curve(fm.Model):
    """The second logit is a function of the input; the first one is 0."""

    function: Callable = fm.static()


@dispatch
def forward(model: Curve, x):
    second = model.function(x)
    return jnp.stack([jnp.zeros_like(second), second], 1)


class Untouched(fm.Attack):
    """It returns the inputs, where the attack does not matter."""


@dispatch
def perturb(attack: Untouched, system, batch, key):
    return batch


IDLE = Untouched(REGION)


class Loud:
    """A progress bar that presses Ctrl-C after a number of steps."""

    def __init__(self, steps):
        self.steps, self.seen = steps, []


@dispatch
def on(event: LogsRead, progress: Loud, run):
    self_done = run.done
    progress.seen.append(run.doing)
    if self_done == progress.steps:
        progress.steps = -1
        signal.raise_signal(signal.SIGINT)


def identity(z):
    return z


def shaped(function=identity, dtype=np.float32):
    return fm.Classifier(Shaped(jnp.asarray(WEIGHT, dtype), function))


def data(n=N, wrong=2, dtype=np.float32):
    """Examples around the boundary; the first ones have the wrong label."""
    x = np.random.default_rng(0).uniform(0.15, 0.85, (64, WIDTH))[:n].astype(dtype)
    y = (x.astype(np.float64) @ WEIGHT.astype(np.float64)).argmax(1).astype(np.int32)
    y[:wrong] = 1 - y[:wrong]
    return x, y


def evaluate(system, pairs=None, attack=STILL, **options):
    options = {"progress": False, "eps": (), "signs": (), "sample": 16, **options}
    return robustness(system, data() if pairs is None else pairs, attack, **options)


def margins(x, y, eps):
    """The smallest margin in the ball: the clean one minus ε ‖w‖ in the dual norm. The box is far."""
    z = x.astype(np.float64) @ WEIGHT
    return z[np.arange(len(y)), y] - z[np.arange(len(y)), 1 - y] - eps * np.abs(WEIGHT[:, 0] - WEIGHT[:, 1]).sum()


@pytest.fixture(scope="module")
def report():
    return robustness(shaped(), data(), (fm.FGSM(REGION), STILL), sample=16, progress=False)


# Results


def test_the_robustness_of_a_linear_model_is_the_closed_form(report):
    x, y = data()
    np.testing.assert_array_equal(report.correct, margins(x, y, 0) > 0)
    np.testing.assert_array_equal(report.robust, margins(x, y, EPS) > 0)
    assert 0 < report.robust.sum() < report.correct.sum() == N - 2
    assert (report.accuracy, report.robust_accuracy) == (report.correct.mean(), report.robust.mean())
    broken = report.correct & ~report.robust
    np.testing.assert_array_equal(report.by, np.where(broken, 0, -1))  # FGSM is exact here, and comes first
    np.testing.assert_array_equal(report.first, np.where(broken, 1, np.where(report.correct, -1, 0)))
    np.testing.assert_array_equal(report.predicted, np.where(report.correct, y, 1 - y))
    np.testing.assert_array_equal(report.attacked, np.where(report.robust, y, 1 - y))


def test_points_distances_and_gradients_are_those_of_the_examples(report):
    x, y = data()
    np.testing.assert_array_equal(report.clean, x)
    offset = report.x.astype(np.float64) - x
    for name, order in {"linf": np.inf, "l2": 2, "l1": 1}.items():
        np.testing.assert_allclose(report.distance[name], np.linalg.norm(offset, order, axis=1), rtol=1e-6)
    assert (report.distance["linf"][report.correct] > 0.99 * EPS).all() and (offset[~report.correct] == 0).all()
    p = 1 / (1 + np.exp(margins(x, y, 0)))  # of the other class
    slope = p[:, None] * np.abs(WEIGHT[:, 0] - WEIGHT[:, 1])[None]
    np.testing.assert_allclose(report.gradient["l1"], slope.sum(1), rtol=1e-4)
    np.testing.assert_allclose(report.gradient["linf"], slope.max(1), rtol=1e-4)


def test_the_curve_is_the_closed_form_and_noise_breaks_less(report):
    x, y = data()
    np.testing.assert_allclose(report.curve["eps"], EPS * np.array([0.25, 0.5, 0.75, 1, 1.5, 2]))
    expected = [(margins(x, y, eps) > 0).mean() for eps in report.curve["eps"]]
    inside = report.curve["eps"] <= 0.15  # beyond that the box begins to matter
    np.testing.assert_allclose(report.curve["robust"][inside], np.array(expected)[inside])
    assert len(set(expected)) > 3 and (np.diff(report.curve["robust"]) <= 0).all()
    assert (report.curve["noise"] >= report.curve["robust"]).all() and report.curve["noise"][0] > 0.8


def test_each_attack_gets_the_survivors_of_those_before(report):
    first, second = report.attacks
    assert (first["name"], second["name"]) == ("FGSM", "PGD-10")
    assert first["given"] == report.correct.sum() and second["given"] == first["given"] - first["broken"]
    assert first["accuracy"] == second["accuracy"] == report.robust_accuracy and second["broken"] == 0


def test_accuracy_by_class(report):
    y = data()[1]
    assert report.per_class() == {
        c: (int((y == c).sum()), report.correct[y == c].mean(), report.robust[y == c].mean()) for c in (0, 1)
    }


def test_settings_and_versions_reproduce_the_report(report):
    assert report.settings["attack"] == repr(fm.WorstOf(fm.FGSM(REGION), STILL)) and report.settings["seed"] == 0
    assert (report.settings["eps"], report.settings["classes"], report.settings["region"]) == (EPS, 2, repr(REGION))
    assert {"fulmen", "jax", "optax", "numpy", "python", "backend", "device"} == set(report.versions)
    again = evaluate(shaped(), attack=(fm.FGSM(REGION), STILL))
    np.testing.assert_array_equal(again.x, report.x)


def test_a_region_is_attacked_by_its_autoattack(monkeypatch):
    short = functools.partial(fm.attacks.autoattack, steps=10, queries=20)
    monkeypatch.setattr("fulmen.robust.report.attack_choice.autoattack", short)
    seen = evaluate(shaped(), (data()[0][:3], data()[1][:3]), REGION)
    assert seen.settings["attack"] == repr(short(REGION, classes=2)) and seen.settings["classes"] == 2
    np.testing.assert_array_equal(seen.robust, margins(*(v[:3] for v in data()), EPS) > 0)


def test_a_targeted_attack_breaks_only_what_it_makes_wrong():
    seen = evaluate(shaped(), attack=fm.PGD(REGION, 0.02, 10, fm.attacks.Clean(), target=fm.attacks.Target(np.int32(1))))
    x, y = data()
    np.testing.assert_array_equal(seen.robust, np.where(y == 0, margins(x, y, EPS) > 0, margins(x, y, 0) > 0))


def test_a_state_and_its_system_are_evaluated_alike():
    import optax

    state = fm.setup(shaped(), data(), optimizer=optax.sgd(0.1))
    np.testing.assert_array_equal(evaluate(state).x, evaluate(state.system).x)


@pytest.mark.parametrize("attack", [PGD, Square(REGION, queries=30)], ids=["PGD", "Square"])
def test_the_result_for_an_example_does_not_depend_on_the_others(attack):
    """In float64 exactly: in other batches, in another order, and alone."""
    with jax.enable_x64(True):
        (x, y), system = data(dtype=np.float64), shaped(dtype=np.float64)
        whole = evaluate(system, (x, y), attack, batch_size=8, eps=(0.05,))
        order = np.random.default_rng(1).permutation(N)
        for rows, size in [(order, 8), *[(np.array([5]), 1)] * (attack is PGD)]:
            some = fm.Labeled(x[rows], y[rows], index=rows.astype(np.int32))
            part = evaluate(system, some, attack, batch_size=size, eps=(0.05,) if len(rows) > 1 else ())
            for name in ("x", "robust", "first", "attacked", "by"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
            if len(rows) > 1:
                np.testing.assert_array_equal(part.curve["robust"], whole.curve["robust"])
        assert whole.x.dtype == np.float64 and 0 < whole.robust.sum() < N


def test_an_evaluation_changes_nothing():
    chain = fm.models.Chain(fm.models.Dense(WIDTH, 8), fm.models.BatchNorm(8), jax.nn.relu, fm.models.Dense(8, 2))
    system = fm.init(fm.Classifier(chain), jax.random.key(0))
    before = [np.array(v) for v in jax.tree.leaves(system)]
    seen = evaluate(system, attack=STILL, signs=(Modes(), Batches()))
    for old, new in zip(before, jax.tree.leaves(system), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [finding.verdict for finding in seen.findings] == ["ok", "ok"]


def test_scaling_an_attack_scales_its_steps_and_starts():
    twice = scaled(fm.WorstOf(PGD, fm.attacks.RFGSM(REGION, start=fm.attacks.RandomSign(0.05))), 2.0)
    pgd, single = twice.attacks
    assert (pgd.region.regions[0].eps, pgd.step_size, pgd.region.regions[1].hi) == (0.2, 0.04, 1)
    assert (single.region.regions[0].eps, single.step_size, single.start.size) == (0.2, None, 0.1)


def test_noise_is_uniform_in_the_ball(key):
    x = np.full((300, WIDTH), 0.5, np.float32)
    batch = fm.Labeled(x, np.zeros(300, np.int32))
    drawn = np.asarray(fm.perturb(UniformNoise(REGION), shaped(), batch, key, best=False).x) - 0.5
    assert 0.099 < np.abs(drawn).max() <= EPS * (1 + 1e-6) and abs(drawn.std() - EPS / 3**0.5) < 0.003


# Interrupted


def test_ctrl_c_returns_the_finished_batches():
    bar = Loud(3)  # in the last of four batches
    seen = evaluate(shaped(), batch_size=4, progress=bar, signs=SIGNS)
    assert seen.partial and seen.total == N and len(seen) == 12 == len(seen.x) and not seen.findings
    assert bar.seen[0] == "PGD-10 on 2 of 4"
    np.testing.assert_array_equal(seen.robust, (margins(*data(), EPS) > 0)[:12])
    assert "Interrupted: 12 of 16 examples." in " ".join(str(seen).split())


class Stubborn(fm.Attack):
    """An attack during which Ctrl-C is pressed twice."""


@dispatch
def perturb(attack: Stubborn, system, batch, key):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("second", [STILL, Stubborn(REGION)], ids=["once", "twice"])
def test_of_the_first_batch_the_finished_attacks_are_reported(second, capsys):
    bar = Loud(1 if second is STILL else -1)
    seen = evaluate(shaped(), batch_size=4, attack=(fm.FGSM(REGION), second), progress=bar, signs=SIGNS, eps=None)
    assert (len(seen), seen.partial, seen.curve, seen.findings) == (4, True, {}, [])
    assert [each["name"] for each in seen.attacks] == ["FGSM"] and set(seen.by) == {-1, 0}
    np.testing.assert_array_equal(seen.robust, (margins(*data(), EPS) > 0)[:4])  # of a linear model FGSM is the worst case
    assert "Interrupted: 4 of 16 examples and 1 of 2 attacks." in " ".join(str(seen).split())
    assert capsys.readouterr().err.startswith("Ctrl-C: stops after the current attack")


def test_ctrl_c_in_the_curve_keeps_the_finished_radii():
    seen = evaluate(shaped(), progress=Loud(3), signs=SIGNS, eps=(0.05, 0.1, 0.2, 0.3))
    assert seen.partial and len(seen) == N and not seen.findings
    np.testing.assert_array_equal(seen.curve["eps"], [0.1, 0.2])
    assert "Interrupted: the curve or the warning signs are incomplete." in " ".join(str(seen).split())


class Touchy(fm.LinfBall):
    """A ball that presses Ctrl-C twice when it is scaled."""


@dispatch
def scaled(region: Touchy, factor):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_the_noise_keeps_the_results_of_the_attacks():
    seen = evaluate(shaped(), attack=fm.FGSM(Touchy(EPS)), signs=SIGNS, eps=np.float32(EPS))
    assert (len(seen), seen.partial, seen.curve, seen.findings) == (N, True, {}, [])


def test_ctrl_c_before_any_result_raises_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt):
        evaluate(shaped(), attack=Stubborn(REGION))


# Progress


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("fulmen.train.progress._REDRAW", 0.0)  # draw each step, however short it is
    seen = evaluate(shaped(), progress=True, eps=(EPS,))
    shown = " ".join(capsys.readouterr().out.split())
    assert "PGD-10 on" in shown and "2/2" in shown and f"robust {seen.robust_accuracy:.4g}" in shown


def test_a_bar_in_a_notebook(monkeypatch):
    display, shown = pytest.importorskip("IPython.display"), []
    handle = types.SimpleNamespace(update=lambda each, raw: shown.append(each))
    monkeypatch.setattr(display, "display", lambda *args, **options: handle)
    monkeypatch.setattr("fulmen.train.progress._in_notebook", lambda: True)
    seen = evaluate(shaped(), progress=True)
    assert shown[0]["text/plain"].startswith("0/1  PGD-10 on 14 of 16")
    assert f"robust {seen.robust_accuracy:.4g}" in shown[-1]["text/plain"] and 'value="1" max="1"' in shown[-1]["text/html"]


# Signs


def test_a_sound_evaluation_has_no_warnings(report):
    assert [finding.sign for finding in report.findings] == [sign.title for sign in SIGNS]
    assert {finding.verdict for finding in report.findings} == {"ok"}, report.findings
    assert report.warnings == []


# Text, files and pictures


def test_it_prints_in_80_columns(report):
    text = str(report)
    assert max(map(len, text.splitlines())) <= 80 and repr(report) == text
    (low, high), (robust_low, robust_high) = report.accuracy_interval, report.robust_accuracy_interval
    headline = f"accuracy {report.accuracy:.3f} ({low:.2f}–{high:.2f}), robust accuracy {report.robust_accuracy:.3f} ({robust_low:.2f}"
    assert headline in " ".join(text.split()) and low < report.accuracy < high and robust_low < robust_high < 1
    assert f"area under the curve up to ε = 0.2 is {report.area:.4g}" in text
    assert all(finding.sign in " ".join(text.split()) for finding in report.findings)
    html = report._repr_html_()
    assert "PGD-10" in html and f"{report.robust_accuracy:.3f}" in html


def test_json_is_read_back(report, tmp_path):
    path = tmp_path / "new" / "report.json"
    report.save(path)
    again = Report.load(path)
    for a, b in zip(jax.tree.leaves(vars(report)), jax.tree.leaves(vars(again)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert str(again) == str(report) and again.x.dtype == report.x.dtype
    stored = json.loads(path.read_text())
    assert stored["robust_accuracy"] == report.robust_accuracy and len(stored["x"]["sha256"]) == 64


def test_large_inputs_are_left_out_of_json(report, tmp_path, monkeypatch):
    monkeypatch.setattr("fulmen.robust.report.report_json.LARGEST", 10)
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again.x is None and again.clean is None and str(again) == str(report)
    assert len(fm.plot(again).axes) == 2
    plt.close("all")


def images():
    """A report on images of 4 × 4 pixels with the four numbers in the corners."""
    x, y = data()
    pixels = np.zeros((N, 4, 4, 1), np.float32)
    pixels[:, ::3, ::3, 0] = x.reshape(N, 2, 2)

    def corners(x):
        return x[:, ::3, ::3, 0].reshape(len(x), WIDTH) @ (WEIGHT[:, 1] - WEIGHT[:, 0])

    return robustness(
        fm.Classifier(Curve(corners)), (pixels, y), fm.FGSM(REGION), eps=(0.05, 0.1), signs=(Gradients(),), progress=False
    )


@pytest.fixture(scope="module")
def of_images():
    return images()


def test_pictures(of_images, report):
    figure = fm.plot(of_images)
    curve, classes, examples = figure.axes
    attacked, noise = curve.lines[:2]
    np.testing.assert_allclose(attacked.get_ydata(), [of_images.accuracy, *of_images.curve["robust"]])
    np.testing.assert_allclose(noise.get_xdata(), [0, 0.05, 0.1])
    heights = [bar.get_height() for bar in classes.patches]
    np.testing.assert_allclose(heights, [v[i] for i in (1, 2) for v in of_images.per_class().values()])
    broken = np.flatnonzero(of_images.correct & ~of_images.robust)
    labels = [tick.get_text() for tick in examples.get_xticklabels()]
    assert len(labels) == min(8, len(broken)) > 2 and set(labels) <= {"0→1", "1→0"}
    assert [tick.get_text() for tick in examples.get_yticklabels()][::2] == ["clean", "attacked"]
    assert len(fm.plot(report).axes) == 2  # its inputs are no images
    plt.close("all")


def test_the_page_is_self_contained(of_images, tmp_path):
    of_images.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 and "light dark" in page
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "http" not in outside and "<script" not in page and "<link" not in page
    linked = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    names = re.findall(r'\bid="([^"]+)"', page)
    assert linked and set(linked) <= set(names) and len(names) == len(set(names))


def test_the_page_without_matplotlib_has_tables(of_images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    of_images.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page and "robust accuracy" in page


def test_other_files_are_refused(report, tmp_path):
    with pytest.raises(ValueError, match=r"path must be .*report\.json or report\.html, got .*pdf"):
        report.save(tmp_path / "report.pdf")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"other\.json must be a report"):
        Report.load(tmp_path / "other.json")
    (tmp_path / "old.json").write_text('{"report": 1}')
    with pytest.raises(ValueError, match=r"old\.json must be a report of version 2, got version 1\. .*evaluate again"):
        Report.load(tmp_path / "old.json")


def test_confidence_intervals_are_those_of_clopper_and_pearson():
    from scipy.stats import binomtest

    for successes, n in ((0, 8), (3, 8), (8, 8), (431, 512)):
        expected = binomtest(successes, n).proportion_ci(0.95, "exact")
        np.testing.assert_allclose(confidence_interval(successes, n), expected, rtol=1e-6)


def test_the_area_is_that_of_the_polygon(report):
    eps, heights = [0, *report.curve["eps"]], [report.accuracy, *report.curve["robust"]]
    parts = [(b - a) * (high + low) / 2 for a, b, high, low in zip(eps, eps[1:], heights, heights[1:], strict=False)]
    assert report.area == pytest.approx(sum(parts))


# Bad input


def attacked(system, pairs, attack):
    return fm.perturb(attack, system, pairs, jax.random.key(0))


DLR = APGD(REGION, 5, objective=fm.objectives.DLR())
TARGETED = APGD(REGION, 5, objective=fm.objectives.DLR(), target=fm.attacks.LikelyTarget(1))
X, Y = data()
BYTES = (X * 255).astype(np.uint8)


def three(z):
    return jnp.concatenate([z, z[:, :1] - 5], 1)


@pytest.mark.parametrize("run", [evaluate, attacked], ids=["robustness", "perturb"])
@pytest.mark.parametrize(
    ("system", "pairs", "attack", "error", "said"),
    [
        (shaped(), (X + 0.5, Y), PGD, ValueError, r"x must be in Box\(lo=0, hi=1\).*range of the data: fm\.Box"),
        (shaped(), (np.where(X > 0.8, np.float32(np.nan), X), Y), PGD, ValueError, r"x must be .*got nan"),
        (shaped(), (X, Y), fm.FGSM(fm.LinfBall(0.1) & fm.Box(0.5, 1)), ValueError, r"x must be in Box\(lo=0.5, hi=1\)"),
        (shaped(), (X, Y), DLR, ValueError, "DLR: .* at least 3 outputs.* got 2.*fm.CrossEntropy"),
        (shaped(three), (X, Y), TARGETED, ValueError, "DLR towards a class: .* at least 4 outputs.* got 3"),
        (shaped(), (X, Y + 1), PGD, ValueError, "labels from 0 to 1, .* labels from 1 to 2"),
        (shaped(), (BYTES, Y), PGD, ValueError, r"x must be floating-point.* got uint8 .*Scale images of bytes"),
        (
            shaped(),
            (X, Y),
            fm.FGSM(fm.LinfBall(-0.1)),
            ValueError,
            "LinfBall.eps must be at least 0, got -0.1",
        ),
    ],
    ids=[
        "outside the box",
        "NaN",
        "region without the input",
        "two classes",
        "three classes",
        "labels",
        "integers",
        "radius",
    ],
)
def test_invalid_input_of_attacks(run, system, pairs, attack, error, said):
    with pytest.raises(error, match=re.compile(said, re.DOTALL)):
        run(system, pairs, attack=attack)


class Both(fm.System):
    one: fm.Classifier
    other: fm.Classifier


@pytest.mark.parametrize(
    ("system", "pairs", "options", "error", "said"),
    [
        (shaped(), (X, Y + 1), {}, ValueError, r"labels from 0 to 1, .* labels from 1 to 2.*y - 1"),
        (
            shaped(),
            (X, Y[:, None].astype(np.float32)),
            {},
            ValueError,
            r"logits \(n, classes\) and integer labels .* y f32\[16, 1\]",
        ),
        (fm.Regressor(Shaped(jnp.asarray(WEIGHT), identity)), (X, X[:, :2]), {}, ValueError, "needs logits.*fm.evaluate"),
        (shaped(), X, {}, ValueError, "needs labels.*no labels y.*pairs"),
        (shaped().model, (X, Y), {}, ValueError, r"Shaped has none: give fm.Classifier\(model\)"),
        (Both(shaped(), shaped()), (X, Y), {}, ValueError, r"2 predictions \('one', 'other'\).*state\.system\.one"),
        (fm.Classifier(fm.models.Dense(4, 2)), (X, Y), {}, ValueError, "robustness needs a component with its arrays"),
        (shaped(), (X, Y), dict(attack="pgd"), TypeError, r"attack must be .* a region such as .* got 'pgd'"),
        (shaped(), (X, Y), dict(attack=fm.FGSM), TypeError, r"attack must be .* got the class FGSM; write FGSM\(…\)"),
        (shaped(), (X, Y), dict(attack=()), ValueError, "at least one attack"),
        (
            shaped(),
            (X, Y),
            dict(batch_size=0),
            ValueError,
            "batch_size must be a positive integer, got 0",
        ),
        (shaped(), (X, Y), dict(eps=(-1.0,)), ValueError, "eps must be finite radii of at least 0"),
        (shaped(), (X, Y), dict(eps=0.2, attack=fm.FGSM(fm.LinfBall(0.0))), ValueError, r"eps must be \(\)"),
        (shaped(), (X, Y), dict(signs=True), TypeError, r"signs must be a tuple .*signs=\(\)"),
    ],
)
def test_invalid_input_of_robustness(system, pairs, options, error, said):
    with pytest.raises(error, match=re.compile(said, re.DOTALL)):
        evaluate(system, pairs, **options)


def test_gradients_that_are_not_finite_are_counted_and_the_best_finite_point_is_kept(key):
    def rooted(x):
        return x @ (WEIGHT[:, 1] - WEIGHT[:, 0]) + 0 * jnp.sqrt(x[:, 0])

    x, y = data()
    x[:5, 0] = 0
    y = (x @ WEIGHT).argmax(1).astype(np.int32)
    system = fm.Classifier(Curve(rooted))
    seen = evaluate(system, (x, y), signs=(Gradients(),), attack=STILL)
    assert seen.findings[0].verdict == "wrong" and "5 have gradients" in seen.findings[0].text
    assert np.isnan(seen.gradient["l2"]).sum() == 5 and np.isfinite(seen.x).all() and 0 < seen.robust.sum() < N
    assert np.isfinite(np.asarray(fm.perturb(STILL, system, (x, y), key).x)).all()


def test_radius_0_returns_the_input(key):
    region = fm.LinfBall(0.0) & fm.Box(0, 1)
    attack = fm.PGD(region, 0.02, 10)
    seen = evaluate(shaped(), attack=attack, signs=SIGNS, eps=None)
    np.testing.assert_array_equal(seen.x, X)
    np.testing.assert_array_equal(fm.perturb(attack, shaped(), (X, Y), key).x, X)
    assert seen.robust_accuracy == seen.accuracy and seen.curve == {} and seen.warnings == []
    assert {finding.verdict for finding in seen.findings} == {"ok", "not checked"}
