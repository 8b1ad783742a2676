"""Validation happens once a call, and what it has to trace is traced once."""

import jax
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.core.output_shapes import evaluated, output_shapes

RNG = np.random.default_rng(0)
X, Y = RNG.random((40, 4), np.float32), RNG.integers(0, 3, 40).astype(np.int32)
REGION = fm.LinfBall(0.1) & fm.Box(0, 1)
PGD = fm.PGD(REGION, step_size=0.05, steps=2)
calls = []


class Counted(fm.Model):
    """A model that counts how often Python runs it: a compiled program does not."""

    layer: fm.models.Dense = fm.models.Dense(4, 3)


@dispatch
def forward(model: Counted, x):
    calls.append(x.shape)
    return model.layer(x)


def traces(call):
    """How often a model is traced by the second of two equal calls."""
    call()
    calls.clear()
    call()
    return len(calls)


@pytest.fixture(scope="module")
def state():
    return fm.setup(fm.Classifier(Counted()), (X, Y), optimizer=optax.sgd(0.1), batch_size=8)


KEY = jax.random.key(0)
CALLS = {
    "setup": lambda state: fm.setup(fm.Classifier(Counted()), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=8),
    "fit": lambda state: fm.fit(state, (X, Y), epochs=1, batch_size=8, progress=False),
    "evaluate": lambda state: fm.evaluate(state, (X, Y), batch_size=8),
    "evaluate under attack": lambda state: fm.evaluate(state, (X, Y), attack=PGD, batch_size=8),
    "evaluate, another size": lambda state: fm.evaluate(state, (X[:16], Y[:16]), attack=PGD, batch_size=8),
    "evaluate of a target": lambda state: fm.evaluate(
        state, (X, Y), attack=fm.PGD(REGION, step_size=0.05, steps=2, target=fm.attacks.Target(np.int32(1))), batch_size=8
    ),
    "evaluate of several": lambda state: fm.evaluate(state, (X, Y), attack=fm.WorstOf(PGD, fm.FGSM(REGION)), batch_size=8),
    "perturb": lambda state: fm.perturb(PGD, state, fm.Labeled(X[:8], Y[:8]), KEY),
    "perturb a system": lambda state: fm.perturb(PGD, state.system, (X[:8], Y[:8]), KEY),
    "predict": lambda state: fm.predict(state, X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_warm_call_traces_nothing(call, state):
    assert traces(lambda: call(state)) == 0


@pytest.mark.parametrize("wrap", [lambda s: fm.Adversarial(s, PGD), lambda s: fm.defences.TRADES(s, PGD), fm.EMA])
def test_setup_of_a_defence_traces_nothing_the_second_time(wrap):
    assert traces(lambda: fm.setup(wrap(fm.Classifier(Counted())), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=8)) == 0


def test_another_epsilon_traces_nothing(state):
    call = lambda eps: fm.perturb(fm.PGD(fm.LinfBall(eps), 0.05, 2), state, (X[:8], Y[:8]), KEY)
    call(0.1)
    calls.clear()
    call(0.2)
    assert not calls


def test_an_attack_is_checked_once_for_all_batches(state, monkeypatch):
    from fulmen.robust.attacks import attack as module

    seen = []
    check = module.require_inside
    monkeypatch.setattr(module, "require_inside", lambda region, inputs: (seen.append(1), check(region, inputs)))
    fm.evaluate(state, (X, Y), attack=PGD, batch_size=8)
    assert len(seen) == 1
    fm.evaluate(state, lambda: ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)), attack=PGD)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ((X, Y + 1), ValueError, "labels from 0 to 2"),
        ((X, Y.astype(np.float32)), TypeError, "integer labels"),
        ((X[:, :3], Y), ValueError, "Dense"),
        ((2 * X, Y), ValueError, "x must be in Box"),
    ],
    ids=["labels", "floats", "shape", "box"],
)
def test_a_warm_call_still_checks_the_data(raw, error, message, state):
    fm.evaluate(state, (X, Y), attack=PGD, batch_size=8)
    for call in (lambda: fm.evaluate(state, raw, attack=PGD, batch_size=8), lambda: fm.perturb(PGD, state, raw, KEY)):
        with pytest.raises(error, match=message):
            call()


def test_output_shapes_are_of_the_whole_batch():
    model = fm.init(Counted(), KEY)
    found = output_shapes(evaluated, model, X)
    assert (found.shape, found.dtype) == ((40, 3), np.float32)
    calls.clear()
    assert output_shapes(evaluated, model, X[:7]).shape == (7, 3)
    assert output_shapes(evaluated, jax.tree.map(lambda v: v + 1, model), X).shape == (40, 3)
    assert not calls
    with pytest.raises(ValueError, match="Dense"):
        output_shapes(evaluated, model, X[:, :3])


def test_a_new_method_is_traced_again():
    class Fresh(fm.Model):
        pass

    @dispatch
    def forward(model: Fresh, x):
        return x[:, :1]

    assert output_shapes(evaluated, Fresh(), X).shape == (40, 1)

    @dispatch
    def forward(model: Fresh, x):
        return x[:, :2]

    assert output_shapes(evaluated, Fresh(), X).shape == (40, 2)
