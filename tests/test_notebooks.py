"""The notebooks run from top to bottom, and hold the outputs of such a run."""

import asyncio
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
jupyter_client = pytest.importorskip("jupyter_client")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NEEDS = {"05-foreign-models": ("equinox", "flax")}
WHOLE = ("06-runs",)  # its second process loads all digits


@pytest.fixture(scope="module")
def kernel():
    """A kernel for all notebooks: each would import the same libraries and compile many of the same programs."""
    manager = jupyter_client.AsyncKernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        asyncio.run(manager.shutdown_kernel())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_notebook(path, kernel, tmp_path):
    for stored in path.parent.glob(f"{path.stem}.*"):  # what it reads
        shutil.copy(stored, tmp_path)
    for library in NEEDS.get(path.stem, ()):
        pytest.importorskip(library)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "commit it as a run from the top left it"
    )
    begin = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    begin += f"import notebook_kernel; notebook_kernel.begin({str(tmp_path)!r}, short={path.stem not in WHOLE})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    except BaseException:
        if kernel.has_kernel:
            asyncio.run(kernel.shutdown_kernel(now=True))  # it may be busy still: the next notebook starts a new one
        raise
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
