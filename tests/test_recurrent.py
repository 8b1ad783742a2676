"""Recurrent cells against Equinox's, `Scan` against a Python loop, and layers that are used several times."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import close, filled, train

import fulmen as fm
from fulmen import dispatch
from fulmen.models import GRU, LSTM, BatchNorm, Dropout, Scan, fold


def drawn(cell, dtype=jnp.float32):
    leaves, structure = jax.tree.flatten(jax.eval_shape(fm.init, cell, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return structure.unflatten([jnp.asarray(rng.normal(size=v.shape).astype(dtype)) for v in leaves])


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_cells_are_those_of_equinox(kind):
    eqx = pytest.importorskip("equinox")
    with jax.enable_x64(True):
        cell = drawn(kind(3, 5), jnp.float64)
        x, y, memory = (jnp.asarray(np.random.default_rng(i).normal(size=s)) for i, s in enumerate(((2, 3), (2, 5), (2, 5))))
        theirs = getattr(eqx.nn, f"{kind.__name__}Cell")(3, 5, key=jax.random.key(0))
        arrays = dict(weight_ih=cell.inputs.weight.T, weight_hh=cell.recurrent.weight.T, bias=cell.inputs.bias)
        if kind is GRU:
            arrays |= dict(bias_n=cell.recurrent.bias[10:])
            cell = fm.replace(cell, {"recurrent.bias": cell.recurrent.bias.at[:10].set(0)})
        theirs = eqx.tree_at(lambda t: [getattr(t, name) for name in arrays], theirs, [*arrays.values()])
        carry = y if kind is GRU else (y, memory)
        after, output, expected = jax.jit(lambda: (*cell(carry, x), jax.vmap(theirs)(x, carry)))()
        close(np.stack(jax.tree.leaves(after)), np.stack(jax.tree.leaves(expected)), rtol=1e-12)
        close(output, jax.tree.leaves(after)[0], rtol=0)


def test_the_memory_is_kept_at_first(key):
    assert fm.init(LSTM(2, 3), key).inputs.bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_scan_is_a_loop(kind, reverse):
    cell, xs = drawn(kind(3, 5)), jax.random.normal(jax.random.key(0), (2, 4, 3))

    @jax.jit
    def loop(xs):
        carry, ys = fm.models.initial_carry(cell, xs[:, 0]), [None] * 4
        for i in (range(4), reversed(range(4)))[reverse]:
            carry, ys[i] = cell(carry, xs[:, i])
        return carry, jnp.stack(ys, 1)

    @jax.jit
    def scanned(xs):
        scan = Scan(cell, reverse)
        return scan(xs), *scan(xs, fm.models.initial_carry(cell, xs[:, 0]))

    (carry, ys), (alone, last, again) = loop(xs), scanned(xs)
    close(alone, ys)
    close(again, ys)
    assert jax.tree.structure(last) == jax.tree.structure(carry)
    close(np.stack(jax.tree.leaves(last)), np.stack(jax.tree.leaves(carry)))


def test_scan_refuses_what_is_no_sequence():
    with pytest.raises(ValueError, match=r"Scan takes sequences \(n, length, …\) of at least one step, got \(2, 0, 3\)"):
        Scan(GRU(3, 5))(jnp.ones((2, 0, 3)))


class Noisy(fm.Model):
    """A cell with a dropout and running statistics."""

    drop: Dropout
    norm: BatchNorm


@dispatch
def forward(cell: Noisy, carry, x):
    y = cell.norm(cell.drop(x))
    return carry + y, y


@dispatch
def initial_carry(cell: Noisy, x):
    return jnp.zeros_like(x)


class Recurrent(fm.Model):
    scan: Scan


@dispatch
def loss(net: Recurrent, batch: fm.Unlabeled):
    return (net.scan(batch.x) ** 2).mean((1, 2))


def test_each_step_of_a_scan_draws_its_own_mask_and_records():
    xs = jnp.ones((2, 3, 64))
    scan = Scan(filled(Noisy(Dropout(0.5), BatchNorm(64))))
    masks = np.asarray(fm.forward(scan, xs, train()) > scan.cell.norm.bias[None, None])
    assert (masks[:, 0] != masks[:, 1]).any() and (masks[:, 1] != masks[:, 2]).any()
    state = fm.setup(Recurrent(scan), xs, optimizer=optax.sgd(0.0), batch_size=2)
    after, _ = fm.train_step(state, xs)
    by_step = [fm.models.fold(fm.bind(scan.cell.drop, train()), i)(xs[:, 0]) for i in range(20)]
    assert len({np.asarray(mask).tobytes() for mask in by_step}) == 20
    mean = after.system.scan.cell.norm.mean.value
    assert 0.05 < float((mean - 0.9 * scan.cell.norm.mean.value).mean()) < 0.15  # 0.1 of about 1, once and not three times


def test_fold_changes_the_random_numbers_of_all_parts_and_nothing_else():
    net = fm.models.Chain(Dropout(0.5), fm.Frozen(Dropout(0.5)), fm.models.Dense(64, 2))
    bound = fm.bind(filled(net), train())
    x = jnp.ones((1, 64))
    first, second = fold(bound, 0), fold(bound, 1)
    assert (first[0](x) != second[0](x)).any() and (first[0](x) != bound[0](x)).any()
    assert (first[1](x) == x).all() and first[2].weight is bound[2].weight
    assert fold(net, 0) is net
    run = jax.jit(lambda i: fold(bound, i)[0](x))
    assert (run(1) == second[0](x)).all()
