"""What holds bit for bit: the files in `exact/`, run in a process of their own with XLA's full optimisation.

The rest of the suite compiles without it (`conftest.py`), where two programs of the same arithmetic may round differently.
"""

import subprocess
import sys
from pathlib import Path

FILES = sorted((Path(__file__).parent / "exact").glob("test_*.py"))


def test_exact(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=3")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout
