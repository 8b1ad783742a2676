"""Type checkers and linters accept methods of verbs: pyright as it is, ruff and mypy with the lines of the documentation."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOUR = '''
import jax
import jax.numpy as jnp
import optax

import fulmen as fm
from fulmen import dispatch, forward, init, loss, on


class Net(fm.Model):
    hidden: fm.models.Dense
    drop: fm.models.Dropout
    out: fm.models.Dense


@dispatch
def forward(net: Net, x):
    return net.out(net.drop(jax.nn.relu(net.hidden(x))))


@dispatch
def loss(net: Net, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch.x), batch.y)


class Noisy(fm.Model):
    size: int
    scale: float = 0.1
    weight: jax.Array | None = None


@dispatch
def init(layer: Noisy, key):
    return fm.replace(layer, weight=jax.random.normal(key, (layer.size,)))


@dispatch
def forward(layer: Noisy, x):
    return x * layer.weight


@dispatch
def forward(layer: Noisy, x, mode: fm.Train):
    return x * (layer.weight + layer.scale * jax.random.normal(mode.key, layer.weight.shape))


@fm.verb
def describe(component):
    """One word about a component."""


@dispatch
def describe(net: Net):
    return "net"


@describe.dispatch
def describe(layer: Noisy):
    return "noise"


class StopAt:
    def __init__(self, accuracy: float):
        self.accuracy = accuracy


@dispatch
def on(event: fm.ValidationEnd, callback: StopAt, run):
    if run.logs["validation/accuracy"] >= callback.accuracy:
        run.stop()


net = Net(fm.models.Dense(64, 32), fm.models.Dropout(0.1), fm.models.Dense(32, 10))
data = jnp.ones((4, 64)), jnp.ones(4, int)
state, history = fm.fit(net, data, optimizer=optax.adam, lr=1e-3, epochs=1, validation=data, callbacks=[StopAt(0.9)])
outputs = forward(state.system, data[0]), net(data[0]), fm.loss(state, data), fm.predict(state, data, batch_size=2)
fm.evaluate(state, data, attack=None)
describe(net)
'''

ROOT = Path(__file__).parents[1]
LINES = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "how-it-works.md").read_text(), re.DOTALL)[1]


def tool(name):
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    return found or pytest.skip(f"{name} is not installed")


def run(folder, *command):
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    return subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tour.py").write_text(TOUR.lstrip())
    return tmp_path


def test_pyright_reports_no_redefinition_and_checks_options(folder):
    wrong = 'fm.evaluate(state, data, attak=None)\nfm.fit(net, data, epochs="1")\n'
    (folder / "tour.py").write_text(TOUR.lstrip() + wrong)
    (folder / "pyproject.toml").write_text(f"[tool.pyright]\nextraPaths = [{json.dumps(str(ROOT / 'src'))}]\n")
    found = run(folder, tool("pyright"), "--pythonpath", sys.executable, "--outputjson", "tour.py").stdout
    rules = [(each["rule"], each["range"]["start"]["line"]) for each in json.loads(found)["generalDiagnostics"]]
    last = len(TOUR.lstrip().splitlines())
    assert rules[-2:] == [("reportCallIssue", last), ("reportArgumentType", last + 1)]
    assert {rule for rule, _ in rules[:-2]} == {*re.findall("report[A-Za-z]+", LINES)}


def test_ruff_needs_one_line(folder):
    command = tool("ruff"), "check", "--isolated", "--no-cache", "--select", "E4,E7,E9,F", "--output-format", "json"
    assert {each["code"] for each in json.loads(run(folder, *command, "tour.py").stdout)} == {"F811"}
    (folder / "pyproject.toml").write_text(LINES)
    configured = [part for part in command if part not in ("--isolated", "--select", "E4,E7,E9,F")]
    assert [each for each in json.loads(run(folder, *configured, "tour.py").stdout) if each["code"] == "F811"] == []


def test_mypy_needs_one_line(folder):
    (folder / "pyproject.toml").write_text(LINES)
    found = run(folder, tool("mypy"), "--python-executable", sys.executable, "--follow-imports", "skip", "tour.py")
    assert found.stdout.startswith("Success"), found.stdout


def test_the_readme_has_the_same_lines():
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [block for block in blocks if "F811" in block] in ([], [LINES])
