"""Components and verbs as copies, and in other processes."""

import copy
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import fulmen as fm
from fulmen import dispatch, forward

cloudpickle = pytest.importorskip("cloudpickle")


class Curve(fm.Model):
    weight: jax.Array
    activation: object = fm.static(default=jax.nn.relu)
    others: tuple = fm.static(default=(jax.nn.silu, jnp.tanh, jax.nn.gelu, jax.nn.relu6))


@dispatch
def forward(curve: Curve, x):
    return curve.activation(curve.weight * x)


def curve() -> Curve:
    return Curve(jnp.arange(3.0))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", [curve, lambda: fm.bind(curve(), fm.Train(jax.random.key(0)))], ids=["plain", "bound"])
def test_a_copy_is_the_same_component(duplicate, make):
    original = make()
    found = duplicate(original)
    assert type(found) is Curve
    assert jax.tree.structure(found) == jax.tree.structure(original)
    assert (found(2.0) == original(2.0)).all()


SESSION = """
import jax, jax.numpy as jnp
import fulmen as fm

class Base(fm.Model):
    scale: float = 2.0

class Net(Base):
    weight: "jax.Array | None" = None
    activation: "object" = fm.static(default=jax.nn.relu)

@fm.dispatch
def init(net: Net, key): return fm.replace(net, weight=jnp.ones(2))
@fm.dispatch
def forward(net: Net, x): return helper(net.activation(net.scale * net.weight * x))
@fm.dispatch
def forward(net: Net, x, mode: fm.Train): return "training"

def helper(x): return x + 1

net = fm.init(Net(), jax.random.key(0))
"""


def test_unpickling_in_the_session_changes_no_class(notebook, capsys):
    book = notebook(SESSION)
    cloudpickle.register_pickle_by_value(book)  # as the classes of `__main__` are
    try:
        assert book.net(1.0).tolist() == [3.0, 3.0]
        found = cloudpickle.loads(cloudpickle.dumps(book.net))
    finally:
        cloudpickle.unregister_pickle_by_value(book)
    assert type(found) is book.Net
    assert found(1.0).tolist() == book.net(1.0).tolist() == [3.0, 3.0]
    assert capsys.readouterr().err == ""  # nothing was registered again
    notebook("class Sub(Net):\n    more: int = 1")
    assert fm.count_parameters(book.Sub(weight=jnp.ones(2))) == 2


def test_a_class_of_main_has_its_methods_in_another_process(tmp_path):
    """As in a worker of joblib, dask or ray: the class cannot be imported there."""
    send = "import cloudpickle, sys; sys.stdout.buffer.write(cloudpickle.dumps(net))"
    receive = """
import pickle, sys
data = sys.stdin.buffer.read()
nets = [pickle.loads(data) for _ in range(2)]
import fulmen as fm, jax
for net in nets:
    print(net(1.0).tolist(), fm.forward(net, 1.0, fm.Train(jax.random.key(0))), fm.init(type(net)(), jax.random.key(0)))
print([(leaf.path, leaf.role) for leaf in fm.leaves(net)])
"""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    run = lambda code, data: subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, env=environment, timeout=240
    )
    found = run(receive, run(SESSION + send, b"").stdout)
    line = "[3.0, 3.0] training Net(scale=2.0, weight=f32[2], activation=relu)"
    roles = "[('scale', 'hyperparameter'), ('weight', 'parameter')]"
    assert found.stdout.decode().split("\n")[:3] == [line, line, roles]
    assert found.stderr == b""
