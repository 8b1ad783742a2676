"""`Smoothed`: the class that a model gives most often under Gaussian noise, with its certificate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Component, Eval, State, fold_name, hyper, inputs, static, with_inputs
from fulmen.core.structure import Structure, per_structure
from fulmen.core.verbs import bind, predictions
from fulmen.robust.report.confidence import lower_confidence_bound


class Smoothed(Component):
    """Randomized smoothing: the class that a model gives most often under noise N(0, σ²). Cohen et al. 2019, arXiv:1902.02918.

    `fm.certify(Smoothed(state, sigma=0.25), data, fm.L2Ball(0.5))` gives a radius of the 2-norm in which this class cannot
    change. It holds for any model, except with probability `alpha` for each example. Train the model on noise of the same size:
    `fm.Classifier(model, augment=fm.augmentations.Noise(sigma))`. `fm.predict(smoothed, x)` returns the classes, `(n,)`, -1 where it
    abstains because no class is sure enough, and `fm.evaluate(smoothed, data)` the `accuracy`, for which abstaining is wrong, and the
    share that is `abstained`. Both draw as `fm.certify` does.

    Args:
        system: a system or a state with one classifier in it, or a model, also of another library.
        sigma: σ, in the input's units.
        samples: the number of draws that the radius is estimated from. No radius is larger than σ · Φ⁻¹(alpha^(1 / samples)), 1.5 σ
            for 100 samples, 3.8 σ for 100,000.
        selection: the number of draws that choose the class.
        alpha: the probability of an error, in (0, 1).
        draws: the number of draws in one forward pass, per example; it limits the memory and does not change the result.

    >>> fm.Smoothed(fm.Classifier(fm.models.MLP(64, 32, 10)), sigma=0.25).samples
    100000
    """

    system: Component
    sigma: float = hyper(above=0)
    samples: int = static(minimum=1, default=100_000)
    selection: int = static(minimum=1, default=100)
    alpha: float = hyper(above=0, below=1, default=0.001)
    draws: int = static(minimum=1, default=100)

    def __post_init__(self) -> None:
        if isinstance(self.system, State):
            self.__dict__["system"] = self.system.system


def smoothed_class(structure: Structure, leaves: Any, smoothed: Smoothed, batch: Any, key: Any, classes: int) -> Any:
    """The class and the radius of each example, `(n,)` each; −1 and 0 where it abstains.

    The batch has an `index`, which determines each example's draws.
    """
    count = lambda name, n: _counts(structure, leaves, smoothed, batch, fold_name(key, name), classes, n)
    top = count("selection", smoothed.selection).argmax(1)
    votes = np.take_along_axis(count("estimation", smoothed.samples), top[:, None], 1)[:, 0]
    from scipy.special import ndtri  # its import takes a quarter of a second

    p = lower_confidence_bound(votes, smoothed.samples, float(smoothed.alpha))
    sure = p > 0.5
    return np.where(sure, top, -1), np.where(sure, float(smoothed.sigma) * ndtri(np.where(sure, p, 0.5)), 0.0)


def _counts(structure: Structure, leaves: Any, smoothed: Smoothed, batch: Any, key: Any, classes: int, n: int) -> np.ndarray:
    """How often each class is predicted among n draws, `(examples, classes)`."""
    size, sigma = smoothed.draws, np.float32(smoothed.sigma)
    counts: Any = np.zeros((len(batch), classes), np.int32)
    for start in range(0, n, size):  # not a loop inside the program, in which convolutions are slow on the CPU
        counts = _add_votes(
            structure, leaves, batch, key, sigma, np.arange(size, dtype=np.int32) + np.int32(start), n, counts
        )
    return np.asarray(counts)


@per_structure()
def _add_votes(
    structure: Structure, leaves: Any, batch: Any, key: Any, sigma: Any, numbers: Any, n: Any, counts: Any
) -> jax.Array:
    examples, draws = counts.shape[0], numbers.shape[0]
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(each, (0, None))(each(key, batch.index), numbers)

    def noisy(number: int, x: jax.Array) -> jax.Array:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x.shape[1:], x.dtype)
        noise = sigma.astype(x.dtype) * jax.vmap(jax.vmap(draw))(keys)
        return (x[:, None] + noise).reshape(examples * draws, *x.shape[1:])

    flat, tree = jax.tree.flatten(inputs(batch))
    repeated = jax.tree.map(lambda v: jnp.repeat(v, draws, 0), batch)
    repeated = with_inputs(repeated, tree.unflatten([noisy(i, jnp.asarray(x)) for i, x in enumerate(flat)]))
    (found,) = predictions(bind(structure.unpack(leaves), Eval(key)), repeated).values()
    outputs = found.outputs.reshape(examples, draws, -1)
    best = outputs.max(-1, keepdims=True) <= outputs  # no vote if logits are NaN or tie
    votes = best & (best.sum(-1, keepdims=True) == 1) & (numbers < n)[None, :, None]
    return counts + votes.sum(1, dtype=jnp.int32)
