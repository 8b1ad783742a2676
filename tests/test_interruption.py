"""Ctrl-C at any time in `fit`, and callbacks that stop it."""

import os
import signal

import jax
import optax
import pytest
from forked import run_code
from tiny import data, net

import fulmen as fm
from fulmen import dispatch
from fulmen.train.events import Event

X, Y = data(50)

MANY_SIGNALS = """
import os, random, signal, threading, time
import numpy as np, optax
import fulmen as fm

x, y = np.ones((64, 4), np.float32), np.zeros(64, np.int32)
random.seed(0)
signal.signal(signal.SIGINT, signal.default_int_handler)

def fit(rate, steps):
    system = fm.Classifier(fm.models.Dense(4, 3))
    return fm.fit(system, (x, y), optimizer=optax.sgd(rate), steps=steps, batch_size=32, progress=False)

fit(1.0, 1)
begun = time.perf_counter()
fit(2.0, 1)
longest = time.perf_counter() - begun
for number in range(12):
    timer = threading.Timer(0.02 + random.random() ** 2 * longest, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        state, _ = fit(3.0 + number, 10**7)
        print("returned", int(state.step) > 0)
    except KeyboardInterrupt as error:
        print("raised", *error.args)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_ctrl_c_at_random_times_ends_the_run(tmp_path):
    outcomes = run_code(MANY_SIGNALS, tmp_path).splitlines()  # errors that are printed and ignored too
    assert len(outcomes) == 12
    assert set(outcomes) <= {"returned True", "raised interrupted before the first step"}


class Press:
    """Presses Ctrl-C at an event."""

    def __init__(self, kind):
        self.kind, self.seen = kind, []


@dispatch
def on(event: Event, callback: Press, run):
    callback.seen.append(type(event).__name__)
    if type(event) is callback.kind:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def state():
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=25)


def test_an_interrupt_before_the_first_step_is_an_exception(state):
    press = Press(fm.FitStart)
    with pytest.raises(KeyboardInterrupt, match="before the first step"):
        fm.fit(state, (X, Y), epochs=2, callbacks=[press], progress=False)
    assert press.seen[-1] == "FitEnd"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_setup_is_an_exception(verbs_restored):
    class Slow(fm.Model):
        """Ctrl-C is pressed while it is drawn."""

        layer: fm.Model

    @dispatch
    def init(model: Slow, key):
        os.kill(os.getpid(), signal.SIGINT)
        return fm.replace(model, layer=fm.init(model.layer, key))

    @dispatch
    def forward(model: Slow, x):
        raise AssertionError("setup has gone on")

    with pytest.raises(KeyboardInterrupt, match="before the first step"):
        fm.fit(fm.Classifier(Slow(net())), (X, Y), epochs=1, optimizer=optax.sgd, lr=0.1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("progress", [True, False])
def test_an_interrupt_is_printed_with_progress_only(state, progress, capsys):
    trained, _ = fm.fit(state, (X, Y), epochs=50, callbacks=[Press(fm.EpochEnd)], progress=progress)
    assert 0 < int(trained.step) < 100
    assert ("Interrupted" in capsys.readouterr().out) is progress


def test_an_epoch_that_is_complete_before_the_interrupt_is_validated(state):
    _, history = fm.fit(state, (X, Y), epochs=50, callbacks=[Press(fm.EpochEnd)], validation=(X, Y), progress=False)
    assert len(history["validation/loss"]) == len(history["loss"]) == 1


class Epochs:
    """Stops after an epoch and remembers the number of the last one."""

    last = None


@dispatch
def on(event: fm.EpochEnd, callback: Epochs, run):
    if run.epoch == 1:
        run.stop()


@dispatch
def on(event: fm.FitEnd, callback: Epochs, run):
    callback.last = run.epoch


def test_the_last_epoch_is_the_number_at_the_end_of_a_stopped_run(state):
    epochs = Epochs()
    _, history = fm.fit(state, (X, Y), epochs=9, callbacks=[epochs], progress=False)
    assert len(history["loss"]) == 2
    assert epochs.last == 1


def over(state, function):
    return jax.vmap(function)(jax.tree.map(lambda v: jax.numpy.stack([v, v]), state))


HOW = {
    "jit": lambda function, state: jax.jit(function)(state),
    "vmap": lambda function, state: over(state, function),
    "grad": lambda function, state: jax.grad(lambda x: function(fm.replace(state, {"system.model.layer.weight": x})))(
        state.system.model.layer.weight
    ),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize(
    ("verb", "call", "instead"),
    [
        ("fit", lambda state: fm.fit(state, (X, Y), epochs=1), "train_step"),
        ("steps", lambda state: next(fm.steps(state, (X, Y), epochs=1)), "train_step"),
        ("evaluate", lambda state: fm.evaluate(state, (X, Y))["loss"], "eval_step"),
        ("predict", lambda state: fm.predict(state, X), "forward"),
    ],
)
def test_loops_on_the_host_are_refused_under_transformations(state, how, verb, call, instead):
    with pytest.raises(TypeError, match=f"^{verb} .*fm.{instead}"):
        how(call, state)
