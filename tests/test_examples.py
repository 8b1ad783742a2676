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
SMALL = {
    "certified": dict(kinds=("interval bounds",), epochs=3, radii=(0.1,), steps=2),
    "denoiser": dict(epochs=1, widths=(2, 4)),
    "diffusion": dict(epochs=1, width=8, depth=1),
    "dqn": dict(epochs=1, steps=20),
    "evolution": dict(steps=2),
    "gpt": dict(epochs=1, features=8, layers=1),
    "hypergradient": dict(iterations=1, inner=2),
    "recurrent": dict(epochs=1),
    "search": dict(epochs=1, rates=2, weights=2),
    "simclr": dict(epochs=1, widths=(2, 2), labels=(1, 2), points=40, splits=1, batch_size=64),
    "tabular": dict(epochs=2, weights=(1.0,), seeds=1),
    "wgan": dict(steps=6, width=8),
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
    with few_digits(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        load(name).main(**SMALL[name])
    assert capsys.readouterr().out
    if name != "tabular":
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 120
