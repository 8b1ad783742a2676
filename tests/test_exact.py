"""What holds bit for bit: the files in `exact/`, each run in a process of its own with XLA's full optimisation.

The rest of the suite compiles without it (`conftest.py`), where two programs of the same arithmetic may round differently.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "exact").glob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_exact(path, optimised):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout
