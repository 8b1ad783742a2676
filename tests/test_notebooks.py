"""The notebooks run from top to bottom, and hold the outputs of such a run."""

import os
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NEEDS = {"05-foreign-models": ("equinox", "flax")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_notebook(path, tmp_path, monkeypatch):
    if path.stem == "02-a-model-of-your-own":  # its GPT takes a third of the time so; the others' time goes into compiling
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=1")
    for stored in path.parent.glob(f"{path.stem}.*"):  # what it reads
        shutil.copy(stored, tmp_path)
    for library in NEEDS.get(path.stem, ()):
        pytest.importorskip(library)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "commit it as a run from the top left it"
    )
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
