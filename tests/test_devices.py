"""Policies of devices: the checks of `device_runs.py`, which run in one process with eight CPU devices."""

import json
import re
from pathlib import Path

import pytest
from forked import start

RUNS = Path(__file__).with_name("device_runs.py")
NAMES = re.findall(r"^@check\ndef (\w+)", RUNS.read_text(), re.M)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("devices") / "output.txt"
    process = start(RUNS, output=output)
    process.join(1800)
    process.kill()
    assert process.exitcode == 0, output.read_text()
    return json.loads(next(line for line in output.read_text().splitlines() if line.startswith("{")))


def test_runs_equal_those_on_one_device(results):
    found = {name: error for name, error in results.items() if "_under_" in name}
    assert len(found) >= 10
    assert not any(found.values()), "\n".join(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(results, name):
    assert not results[name], results[name]
