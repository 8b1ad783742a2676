"""What holds bit for bit: the files in `exact/`, in processes of their own, where two programs of the same arithmetic round equally.

So they do without fused multiply-adds, as the suite compiles on x86 (`conftest.py`), and with XLA's full optimisation.
"""

import platform
from pathlib import Path

import pytest
from forked import start

FILES = sorted((Path(__file__).parent / "exact").glob("test_*.py"))
FULL = "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=3"


def run(folder, *arguments):
    program, output = Path(pytest.__file__).with_name("__main__.py"), folder / "output.txt"
    process = start(program, "-p", "no:cacheprovider", *FILES, *arguments, output=output)
    process.join(900)
    process.kill()
    assert process.exitcode == 0, output.read_text()
    assert " passed" in output.read_text() and " skipped" not in output.read_text()


def test_exact(monkeypatch, tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        monkeypatch.setenv("XLA_FLAGS", FULL)
    run(tmp_path)


def test_a_run_is_exact_with_full_optimisation(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", FULL)
    run(tmp_path, "-k", "test_two_parts")
