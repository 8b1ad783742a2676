"""What holds bit for bit: the files in `exact/`, in processes of their own, where two programs of the same arithmetic round equally.

So they do without fused multiply-adds, as the suite compiles on x86 (`conftest.py`), and with XLA's full optimisation.
"""

import platform
import subprocess
import sys
from pathlib import Path

FILES = sorted((Path(__file__).parent / "exact").glob("test_*.py"))
FULL = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=3"


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, FILES), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and " skipped" not in done.stdout


def test_exact(monkeypatch):
    if platform.machine() not in ("x86_64", "AMD64"):
        monkeypatch.setenv("XLA_FLAGS", FULL)
    run()


def test_a_run_is_exact_with_full_optimisation(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", FULL)
    run("-k", "test_two_parts")
