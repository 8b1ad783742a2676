"""Two processes of two CPU devices each against one process, by `process_runs.py`."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

RUNS = Path(__file__).with_name("process_runs.py")


def run(processes, folder, what=""):
    """Start processes that know each other, and wait for all of them: their exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(RUNS), str(port)]
    started = [
        subprocess.Popen(
            [*command, str(i), str(processes), str(folder), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        outputs = [one.communicate(timeout=600)[0] for one in started]
    finally:
        for one in started:
            one.kill()
    return [one.returncode for one in started], outputs


def results(codes, outputs):
    assert not any(codes), "\n".join(outputs)
    return [json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for text in outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def two(folder):
    codes, outputs = run(2, folder)
    return results(codes, outputs), outputs


@pytest.fixture(scope="module")
def one(folder, two):
    return results(*run(1, folder))[0]


def test_two_processes_train_as_one(two, one):
    for found in two[0]:
        assert (found["devices"], one["devices"]) == (4, 2)
        for name in ("losses", "evaluated", "predicted"):
            np.testing.assert_allclose(found[name], one[name], rtol=1e-6, atol=1e-6)
        assert found["accuracy"] == one["accuracy"]


def test_each_process_reads_its_rows_of_the_same_batches(two, one):
    first, second = (found["rows"] for found in two[0])
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == one["rows"]
    assert [len(a) for a in first] == [8, 8, 4] * 2


def test_what_two_processes_save_loads_in_any_number(two, one):
    for found in (*two[0], one):
        for name in ("evaluated", "accuracy"):
            saved, loaded = found[name]
            assert loaded == pytest.approx(saved, abs=1e-6)


def test_one_process_shows_progress(two):
    assert ["epoch 1" in output for output in two[1]] == [True, False]


def test_processes_with_other_data_raise_in_each(folder):
    found = results(*run(2, folder, "differ"))
    for process, n in enumerate((40, 39)):
        assert f"must be the same in all 2 processes, got in process {process}" in found[process]["error"]
        assert f"'examples': {n}" in found[process]["error"]


def test_a_process_that_dies_ends_the_others_with_an_error(folder):
    begun = time.monotonic()
    codes, _ = run(2, folder, "die")
    assert codes[1] == 9 and codes[0] not in (0, 9)
    assert time.monotonic() - begun < 300
