"""Two processes of two CPU devices each against one process, by `process_runs.py`: preempted, killed and resumed."""

import json
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from forked import start

import fulmen as fm

RUNS = Path(__file__).with_name("process_runs.py")


def run(processes, folder, what):
    """Start processes that know each other, and wait for all of them: their exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"{what}-{i}.txt" for i in range(processes)]
    started = [start(RUNS, port, i, processes, folder, what, output=output) for i, output in enumerate(outputs)]
    try:
        for one in started:
            one.join(1200)
    finally:
        for one in started:
            one.kill()
    return [one.exitcode for one in started], [output.read_text() for output in outputs]


def results(codes, outputs):
    assert not any(codes), "\n".join(outputs)
    return [json.loads(next(line for line in text.splitlines() if line.startswith(("{", "[{")))) for text in outputs]


def steps(folder):
    return [each.step for each in fm.checkpoints(folder / "runs")]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def preempted(folder):
    codes, outputs = run(2, folder, "preempted")
    assert 0 not in codes, "\n".join(outputs)
    return codes, outputs, steps(folder)


@pytest.fixture(scope="module")
def killed(folder, preempted):
    begun = time.monotonic()
    codes, outputs = run(2, folder, "killed")
    assert 0 not in codes, "\n".join(outputs)
    return codes, outputs, steps(folder), time.monotonic() - begun


@pytest.fixture(scope="module")
def two(folder, killed):
    for part in ("runs", "log.jsonl"):
        copied = shutil.copytree if (folder / part).is_dir() else shutil.copy
        (folder / "copy").mkdir(exist_ok=True)
        copied(folder / part, folder / "copy" / part)
    codes, outputs = run(2, folder, "resumed")
    return results(codes, outputs), outputs


@pytest.fixture(scope="module")
def one(folder, two):
    return results(*run(1, folder, "whole"))[0]


def test_a_signal_to_one_process_ends_both_after_the_same_step(preempted):
    codes, outputs, saved = preempted
    assert codes == [143, 143], "\n".join(outputs)
    assert saved[-1] > 2
    assert ["Interrupted: the state after" in output for output in outputs] == [True, False]


def test_a_process_that_is_killed_ends_the_others_with_an_error(killed, preempted):
    codes, outputs, saved, seconds = killed
    assert codes[1] == -9 and codes[0] not in (0, -9), "\n".join(outputs)
    assert saved[-1] == preempted[2][-1] + 1  # the first of two steps was saved
    assert seconds < 300


def test_two_processes_that_were_ended_and_resumed_train_as_one(two, one, folder):
    whole, loaded, resumed = one
    for found in (*two[0], loaded, resumed):
        for name in ("losses", "evaluated", "predicted"):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-6, atol=1e-6)
        assert found["accuracy"] == whole["accuracy"]
    assert [found["devices"] for found in (*two[0], whole)] == [4, 4, 2]


def test_each_process_reads_its_rows_of_the_same_batches(two, one, killed):
    first, second = (found["rows"] for found in two[0])
    expected = {step: rows for step, rows in one[0]["rows"].items() if int(step) > killed[2][-1]}
    assert {step: sorted(first[step] + second[step]) for step in first} == expected
    assert {len(rows) for rows in first.values()} == {8, 4}


def test_the_first_process_logs_each_epoch_once_and_shows_progress(two, one, folder):
    ours, whole = (lines(folder / part / "log.jsonl") for part in (".", "whole"))
    assert [(each["record"], each["step"]) for each in ours] == [(each["record"], each["step"]) for each in whole]
    assert ["epoch 12" in output for output in two[1]] == [True, False]


def test_processes_with_other_data_raise_in_each(two):
    for process, n in enumerate((40, 39)):
        assert f"must be the same in all 2 processes, got in process {process}" in two[0][process]["differ"]
        assert f"'examples': {n}" in two[0][process]["differ"]
