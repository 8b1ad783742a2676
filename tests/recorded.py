"""What PyTorch's blocks computed (`parity/record_blocks.py`), and how a model is held against it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from layers import close, filled, train

import fulmen as fm
from fulmen import dispatch

with np.load(Path(__file__).parent / "parity" / "blocks.npz") as _file:
    _arrays = dict(_file)


class Directed(fm.Model):
    """Its loss is the output along a given direction, so that its gradient is the output's at that cotangent."""

    model: fm.Component
    extra: tuple[jax.Array, ...] = fm.hyper(default=())


@dispatch
def loss(directed: Directed, batch: fm.Labeled):
    return (directed.model(batch.x, *directed.extra) * batch.y).sum()


@jax.jit
def _run(directed, batch):
    mode = train()
    y, backward = jax.vjp(lambda x: fm.forward(directed.model, x, *directed.extra, mode), batch.x)
    _, gradients, moved, _ = fm.differentiate(directed, batch, mode)
    return y, backward(batch.y)[0], gradients.model, moved.model, fm.forward(moved.model, batch.x, *directed.extra)


def agrees(name, model, weights, buffers=None, extra=()):
    """Raise unless a model with the recorded weights computes what was recorded.

    `weights` and `buffers` are dicts from the model's paths to PyTorch's. Outputs, gradients and buffers are compared, in
    training and then in evaluation.
    """
    of = lambda path: jnp.asarray(_arrays[f"{name}/{path}"])
    parameters = {
        leaf.path for leaf in fm.leaves(jax.eval_shape(fm.init, model, jax.random.key(0))) if leaf.role == "parameter"
    }
    assert parameters == set(weights)
    model = fm.replace(filled(model), {path: of(theirs) for path, theirs in weights.items()})
    zeros = {
        f"{path}.{kind}": fm.Buffer(value(of(theirs.format("mean"))))
        for path, theirs in (buffers or {}).items()
        for kind, value in (("mean", jnp.zeros_like), ("variance", jnp.ones_like))
    }
    model = fm.replace(model, zeros)
    batch = fm.Labeled(of("x"), of("direction"))
    y, gradient, gradients, moved, evaluated = _run(Directed(model, tuple(map(jnp.asarray, extra))), batch)
    close(y, of("y"), rtol=1e-5, atol=5e-6)
    close(gradient, of("grad/x"), rtol=1e-4, atol=1e-5)
    for path, theirs in weights.items():
        close(fm.get(gradients, path), of(f"grad/{theirs}"), rtol=1e-4, atol=3e-5)
    for path, theirs in (buffers or {}).items():
        close(fm.get(moved, f"{path}.mean.value"), of(theirs.format("mean")))
        close(fm.get(moved, f"{path}.variance.value"), of(theirs.format("var")))
    close(evaluated, of("eval_y"), rtol=1e-5, atol=5e-6)


def recorded(path):
    return _arrays[path]
