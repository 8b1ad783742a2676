"""`cross_validate`: each member leaves out a fold, and is measured on it."""

import jax
import numpy as np
import optax
import pytest
from tiny import data

import fulmen as fm
from fulmen.models import BatchNorm, Chain, Dense

OPTIONS = dict(optimizer=optax.sgd, lr=0.3, epochs=2, batch_size=6, progress=False)


def classifier():
    return fm.Classifier(Chain(Dense(4, 5, use_bias=False), BatchNorm(5), jax.nn.relu, Dense(5, 3)))


def rows(some, raw):
    return tuple(v[some] for v in raw)


def test_equal_folds():
    raw = data(18)
    state, history, figures, folds = fm.cross_validate(classifier(), raw, folds=3, seed=4, **OPTIONS)
    assert sorted(np.concatenate(folds)) == list(range(18)) and {len(fold) for fold in folds} == {6}
    for i, fold in enumerate(folds):
        seen = rows(np.concatenate([f for j, f in enumerate(folds) if j != i]), raw)
        alone = fm.setup(classifier(), seen, seed=4 + i, optimizer=optax.sgd, lr=0.3, epochs=2, batch_size=6)
        alone, record = fm.fit(alone, seen, epochs=2, seed=4, validation=rows(fold, raw), progress=False)
        for a, b in zip(jax.tree.leaves(fm.members(state)[i].system), jax.tree.leaves(alone.system), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        for name in ("loss", "validation/loss", "validation/accuracy"):
            np.testing.assert_allclose(history[f"{name}/members"][:, i], record[name], rtol=1e-4)
        found = fm.evaluate(alone, rows(fold, raw))
        np.testing.assert_allclose(figures["loss/members"][i], found["loss"], rtol=1e-4)
    np.testing.assert_allclose(figures["loss"], figures["loss/members"].mean())
    np.testing.assert_allclose(figures["loss/std"], figures["loss/members"].std())
    np.testing.assert_allclose(figures["loss/members"], history["validation/loss/members"][-1], rtol=1e-4)


def test_folds_that_differ_by_one_example():
    raw, system = data(17), fm.Classifier(Dense(4, 3))
    options = {**OPTIONS, "batch_size": 12, "epochs": 1}
    state, history, figures, folds = fm.cross_validate(system, raw, folds=3, seed=2, **options)
    assert [len(fold) for fold in folds] == [6, 6, 5]
    for i, (member, fold) in enumerate(zip(fm.members(state), folds, strict=True)):
        seen = rows(np.concatenate([f for j, f in enumerate(folds) if j != i]), raw)
        alone = fm.setup(system, seen, seed=2 + i, optimizer=optax.sgd, lr=0.3, batch_size=11)
        if i < 2:  # of 11 examples: one step with all of them, in whatever order, and a twelfth of weight 0
            alone, _ = fm.train_step(alone, seen)
        else:
            assert len(seen[0]) == 12
            alone, _ = fm.fit(alone, seen, epochs=1, batch_size=12, seed=2, progress=False)
        for a, b in zip(jax.tree.leaves(member.system), jax.tree.leaves(alone.system), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(figures["accuracy/members"][i], fm.evaluate(alone, rows(fold, raw))["accuracy"])
    np.testing.assert_allclose(figures["accuracy/members"], history["validation/accuracy/members"][-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(folds=2.5), TypeError, "folds must be an integer, got 2.5"),
        (dict(folds=1), ValueError, "folds must be from 2 .*, got 1"),
        (dict(folds=19), ValueError, "folds must be .* number of examples, 18, got 19"),
        (dict(validation=data(18)), TypeError, "no option `validation`: each member"),
        (dict(lr=[0.1, 0.2], folds=3), ValueError, "lr must have one value for each of the 3 members"),
        (
            dict(system=fm.Population(classifier(), 2)),
            TypeError,
            r"a single system, got a population.*fm.cross_validate\(system",
        ),
    ],
)
def test_invalid_options(options, error, message):
    options = {"system": classifier(), **OPTIONS, **options}
    with pytest.raises(error, match=message):
        fm.cross_validate(options.pop("system"), data(18), **options)
