"""Policies of devices: the checks of `device_runs.py`, which run in one process with eight CPU devices."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).with_name("device_runs.py")
NAMES = re.findall(r"^@check\ndef (\w+)", RUNS.read_text(), re.M)


@pytest.fixture(scope="module")
def results():
    found = subprocess.run([sys.executable, str(RUNS)], capture_output=True, text=True, timeout=1800)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def test_runs_equal_those_on_one_device(results):
    found = {name: error for name, error in results.items() if "_under_" in name}
    assert len(found) >= 10
    assert not any(found.values()), "\n".join(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(results, name):
    assert not results[name], results[name]
