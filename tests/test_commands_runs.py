"""The command line with runs that are saved: checkpoints, values that are set, evaluation and prediction."""

import json
import os
import re
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import fulmen as fm

EXAMPLES = """
    import os, signal
    import numpy as np, optax
    import fulmen as fm

    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)

    def run():
        model = fm.models.Chain(fm.models.Dense(4, 8), fm.models.Dropout(0.5), fm.models.Dense(8, 2))
        return dict(
            system=fm.Classifier(model, fm.CrossEntropy(smoothing=0.1)), data=(x, y), validation=(x[:20], y[:20]),
            optimizer=optax.adam, lr=1e-2, epochs=3, batch_size=20,
        )

    def without_optimizer():
        return {name: value for name, value in run().items() if name not in ("optimizer", "lr")}
"""


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples.py").write_text(textwrap.dedent(EXAMPLES))

    yield command
    sys.modules.pop("examples", None)


def test_a_run_is_saved_resumed_evaluated_and_used(run):
    values = "--set objective.smoothing=0 --set model.layers.1.rate=0.25"
    code, out, err = run(f"train examples:run --checkpoint runs --epochs 2 {values}")
    assert (code, err) == (0, "")
    with pytest.warns(UserWarning, match="another length"):
        code, out, _ = run(f"train examples:run --checkpoint runs --resume --history h.json {values}")
    assert code == 0
    assert "9 steps" in out
    assert len(json.loads(Path("h.json").read_text())["loss"]) == 3

    code, out, _ = run("checkpoints runs")
    assert code == 0
    assert all(step in out for step in ("3", "6", "9"))

    code, out, _ = run(f"evaluate examples:run --checkpoint runs --out m.json {values}")
    assert code == 0 and "step 9" in out
    assert json.loads(Path("m.json").read_text())["loss"] == pytest.approx(
        json.loads(Path("h.json").read_text())["validation/loss"][-1]
    )
    assert "step 3" in run(f"evaluate examples:run --checkpoint runs --step 3 {values}")[1]

    code, out, _ = run(f"predict examples:run --checkpoint runs --out p.npz {values}")
    assert code == 0
    with np.load("p.npz") as outputs:
        assert outputs["outputs"].shape == (60, 2)

    [saved] = [c.run for c in fm.checkpoints("runs") if c.step == 9]
    assert saved["callbacks"]["Settings#0"]["set"] == {"objective.smoothing": "0", "model.layers.1.rate": "0.25"}
    code, _, err = run("train examples:run --checkpoint runs --resume")
    assert code == 2 and "--set objective.smoothing=0" in err


def test_a_saved_file_is_evaluated(run):
    assert run("train examples:run --save s.safetensors")[0] == 0
    assert "step 9" in run("evaluate examples:run --load s.safetensors")[1]


def test_a_checkpoint_is_used_without_the_optimizer_that_was_a_flag(run):
    assert run("train examples:without_optimizer --checkpoint runs --optimizer adam --lr 1e-2 --save s.safetensors")[0] == 0
    code, out, err = run("evaluate examples:without_optimizer --checkpoint runs --out m.json")
    assert (code, err) == (0, "") and "step 9" in out
    assert run("evaluate examples:run --checkpoint runs --out with.json")[0] == 0
    assert Path("m.json").read_text() == Path("with.json").read_text()
    assert run("predict examples:without_optimizer --checkpoint runs --step 3 --out p.npz")[0] == 0
    for line, words in [
        ("--checkpoint nowhere", "nowhere is not a directory"),
        ("--load s.safetensors", "s.safetensors has the state of an optimizer"),
    ]:
        code, _, err = run(f"evaluate examples:without_optimizer {line}")
        assert code == 2 and words in err


def test_a_file_of_values(run):
    Path("values.toml").write_text("[objective]\nsmoothing = 0\n[model.layers.1]\nrate = 0.25\n")
    code, _, err = run("train examples:run --config values.toml --set objective.smoothing=0.2 --checkpoint runs --epochs 1")
    assert (code, err) == (0, "")
    [saved] = fm.checkpoints("runs")
    assert saved.run["callbacks"]["Settings#0"]["set"] == {"objective.smoothing": "0.2", "model.layers.1.rate": 0.25}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train examples:run --set objective.smothing=1", ["smothing", "smoothing"]),
        ("train examples:run --set objective.smoothing", ["path=value", "objective.smoothing"]),
        ("train examples:run --set objective.smoothing=much", ["must be a float", "much"]),
        ("train examples:run --set model=1", ["--set model", "number"]),
        ("train examples:run --config none.toml", ["none.toml", "No such file"]),
        ("train examples:run --resume", ["--checkpoint"]),
        ("evaluate examples:run", ["--checkpoint", "--load"]),
        ("evaluate examples:run --checkpoint nowhere", ["nowhere"]),
        ("predict examples:run --checkpoint runs --out p.txt", ["outputs.npz", "p.txt"]),
        ("checkpoints nowhere", ["nowhere"]),
    ],
)
def test_mistakes(run, line, words):
    code, _, err = run(line)
    assert code == 2, err
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_compiled_programs_are_written_once_and_read_later(run):
    command = "train examples:run --epochs 1 --compilation-cache programs"
    before = jax.config.jax_compilation_cache_dir
    jax.clear_caches()  # as in a process of its own
    code, out, err = run(command)
    assert (code, err) == (0, "")
    written = int(re.search(r"programs: \d+ compiled programs were read, (\d+) were written", out)[1])
    assert written > 1 and os.listdir("programs")
    jax.clear_caches()
    code, out, _ = run(command)
    assert (
        code == 0 and int(re.search(r"programs: (\d+) compiled programs were read, 0 were written", out)[1]) >= written - 1
    )
    assert jax.config.jax_compilation_cache_dir == before
