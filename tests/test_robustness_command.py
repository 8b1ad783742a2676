"""`python -m fulmen robustness`: its files, and its error messages."""

import json
import sys
import textwrap

import pytest

from fulmen.robust.report import Report

EXAMPLES = """
    import fulmen as fm, jax, numpy as np

    rng = np.random.default_rng(0)
    x = rng.uniform(size=(16, 4)).astype(np.float32)
    system = fm.init(fm.Classifier(fm.models.Dense(4, 3)), jax.random.key(0))
    y = fm.predict(system, x).argmax(1).astype(np.int32)

    def run(): return system, (x, y)
    def nothing(): system, (x, y)
    def swapped(): return (x, y), system
    def three(): return system, x, y
    def outside(): return system, (x + 1, y)
    def description(): return fm.Classifier(fm.models.Dense(4, 3)), (x, y)
    def broken(): return 1 / 0
"""


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """A function that runs `robustness` in a folder with `examples.py`, and returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "examples.py").write_text(textwrap.dedent(EXAMPLES))

    yield lambda line: command(f"robustness {line}")
    sys.modules.pop("examples", None)


def test_it_prints_the_table_and_writes_json_and_page(run, tmp_path):
    code, out, err = run(
        "examples.py:run --region Linf:1/10 --box 0:1 --attack PGD --out found/mine.html --sample 16 --no-progress "
        "--resume partial --compare"
    )
    assert (tmp_path / "partial/evaluation.json").exists()
    assert (code, err) == (0, "")
    report = Report.load(tmp_path / "found/mine.json")
    assert len(report) == 16 and report.accuracy == 1 and 0 < report.robust_accuracy < 1
    assert f"robust accuracy {report.robust_accuracy:.3f}" in out and "PGD-40" in out
    assert "wrote found/mine.html and found/mine.json" in out
    assert json.loads((tmp_path / "found/mine.json").read_text())["settings"]["attack"].startswith(
        "PGD(region=LinfBall(eps=0.1) &"
    )
    assert "<!doctype html>" in (tmp_path / "found/mine.html").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("examples.py:run --region linv:0.1", "did you mean 'linf'?"),
        ("examples.py:run --region 0.1", "there is no norm '0.1'; there are: l1, l2, linf. Such as --region linf:0.1."),
        ("examples.py:run --region linf:8/0", "--region must be numbers as in --region linf:0.1, got linf:8/0."),
        ("examples.py:run --region linf:nan", "--region must be numbers"),
        ("examples.py:run --region linf", "--region must be numbers as in --region linf:0.1, got linf."),
        ("examples.py:run --region linf:-1", "LinfBall.eps must be at least 0, got -1."),
        ("examples.py:run --region l2:1 --box 0", "--box must be numbers as in --box 0:1, got 0."),
        ("examples.py:run --region l2:1 --box 1:0", "Box.lo must be below Box.hi"),
        ("examples.py:run --region linf:0.1 --attack pdg", "did you mean 'pgd'?"),
        ("examples.py:run --region linf:0.1 --out report.pdf", "--out must be a file such as report.html, got report.pdf."),
        ("examples.py:rum --region linf:0.1", "did you mean 'run'?"),
        ("examples.py:nothing --region linf:0.1", "must return (state, data), got None. Does it end with `return …`?"),
        ("examples.py:three --region linf:0.1", "Write `return state, (x, y)`."),
        ("examples.py:swapped --region linf:0.1", "state first"),
        ("examples.py:outside --region linf:0.1 --box 0:1 --attack fgsm", "use the range of the data: fm.Box"),
        ("examples.py:description --region linf:0.1 --attack fgsm", "robustness needs a component with its arrays"),
    ],
)
def test_a_mistake_is_one_line(run, line, said):
    code, _, err = run(f"{line} --no-progress")
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_an_error_in_the_users_function_has_its_traceback(run):
    code, _, err = run("examples.py:broken --region linf:0.1 --no-progress")
    assert code == 1 and "ZeroDivisionError" in err and "examples.py" in err
