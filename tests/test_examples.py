"""The programs of `examples/`, each in a small form."""

import importlib.util
import sys
from pathlib import Path

import jax
import pytest
from few_digits import few_digits

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[1] / "examples"
# How many digits, which are full batches where they are split, and the arguments of `main`.
SMALL = {
    "certified": (80, dict(kinds=("interval bounds",), epochs=10, radii=(0.1,), steps=2)),
    "denoiser": (80, dict(epochs=1, widths=(2, 4))),
    "diffusion": (128, dict(epochs=1, width=8, depth=1)),
    "dqn": (0, dict(epochs=1, steps=20)),
    "evolution": (0, dict(steps=2)),
    "gpt": (36, dict(epochs=1, features=8, layers=1)),
    "hypergradient": (80, dict(iterations=1, inner=2)),
    "recurrent": (80, dict(epochs=1)),
    "search": (256, dict(epochs=1, rates=2, weights=2)),
    "simclr": (92, dict(epochs=1, widths=(2, 2), labels=(1, 2), points=40, splits=1, batch_size=64)),
    "tabular": (0, dict(epochs=2, weights=(1.0,), seeds=1)),
    "wgan": (128, dict(steps=6, width=8)),
}


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_programs_are_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_program_writes_its_picture_or_table(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A program is written for JAX as it is by default.
    rows, options = SMALL[name]
    with few_digits(rows), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        load(name).main(**options)
    assert capsys.readouterr().out
    if name != "tabular":
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 120
