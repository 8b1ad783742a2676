"""A run: its time points, what callbacks may change, kinds of epochs, validation, quick looks, and how it ends and continues."""

import dataclasses
import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import optax
import pytest
from forked import run_code
from fulmen.callbacks import due, on, owns, restore_run_state, run_state
from tiny import data, net

import fulmen as fm
from fulmen import dispatch
from fulmen.testing.equality import bits
from fulmen.testing.equality import same as same_bits
from fulmen.train.progress import ProgressBar
from fulmen.train.resume import run_data

X, Y = data(60)


def same(a, b):
    return same_bits(bits(a), bits(b))


@pytest.fixture(scope="module")
def state():
    return fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.adam, lr=0.1, batch_size=10)


def run(state, *callbacks, data=(X, Y), epochs=2, **options):
    return fm.fit(state, data, epochs=epochs, callbacks=callbacks, progress=False, **options)


class Call:
    """Calls a function at the times of an `Every`."""

    def __init__(self, function, every):
        self.function, self.every, self.seen = function, every, []


@dispatch
def due(callback: Call):
    return callback.every


@dispatch
def on(event: fm.Due, callback: Call, run):
    callback.seen.append(callback.function(run))


class Save(Call, fm.callbacks.Saver):
    """The same, after all other callbacks."""


# Time points


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (fm.Every(steps=4), [4, 8, 12]),
        (fm.Every(epochs=1), [6, 12]),
        (fm.Every(epochs=2), [12]),
        (fm.Every(steps=5) | fm.Every(epochs=1), [5, 6, 10, 12]),
        (fm.Every(minutes=1e-9), [*range(1, 13)]),
    ],
    ids=repr,
)
def test_callbacks_are_called_when_they_are_due(state, every, steps):
    call = Call(lambda run: run.step, every)
    run(state, call)
    assert call.seen == steps if every.minutes is None else set(call.seen) <= set(steps)


def test_logs_of_a_due_step_are_those_of_the_epoch_so_far(state):
    call = Call(lambda run: (run.step, run.logs["loss"]), fm.Every(steps=4))
    run(state, call, epochs=1)
    losses = [float(logs["loss"]) for _, logs in fm.steps(state, (X, Y), epochs=1)]
    [(step, loss)] = call.seen
    assert step == 4
    assert loss == pytest.approx(np.mean(losses[:4]), rel=1e-6)


class EachStep:
    """Keeps the loss of each step, and logs something more."""

    def __init__(self):
        self.losses = []


@dispatch
def on(event: fm.StepEnd, callback: EachStep, run):
    callback.losses.append(run.logs["loss"])
    run.logs["own"] = run.logs["loss"]


def test_logs_of_a_due_step_are_the_same_with_a_callback_for_each_step(state):
    def logged(*callbacks):
        call = Call(lambda run: dict(run.logs), fm.Every(steps=2))
        options = dict(validation=(X, Y), validate_every=fm.Every(steps=4), epochs=1)
        _, history = run(state, *callbacks, call, **options)
        return call.seen, history["loss"]

    each = EachStep()
    (seen, losses), (alone, expected) = logged(each), logged()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for new, old, newest in zip(seen, alone, each.losses[1::2], strict=True):
        assert new.pop("own") == newest
        assert new == pytest.approx(old, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"steps": 0}, {"epochs": -1}, {"minutes": 0}, {"steps": 1.5}], ids=repr)
def test_an_interval_must_be_positive(options):
    with pytest.raises((TypeError, ValueError), match=r"Every"):
        fm.Every(**options)


def test_history_does_not_depend_on_when_it_is_read(state, monkeypatch):
    _, first = run(state)
    monkeypatch.setattr("fulmen.train.step_loop._REFRESH", 0.0)
    _, second = run(state, Call(lambda run: run.logs, fm.Every(steps=1)))
    assert all(np.array_equal(first[name], second[name]) for name in first if name != "seconds")


# What callbacks may change


class Owner:
    pass


@dispatch
def owns(callback: Owner):
    return ("learning_rate",)


@dispatch
def on(event: fm.EpochEnd, callback: Owner, run):
    return None


def test_two_owners_of_one_property_are_refused(state):
    with pytest.raises(ValueError, match=r"Owner and Owner both own 'learning_rate'.*leave one"):
        run(state, Owner(), Owner())
    run(state, Owner(), epochs=1)


def test_a_callback_can_replace_the_state(state):
    def reset(run):
        run.state = fm.replace(state, step=run.step)

    trained, _ = run(state, Call(reset, fm.Every(steps=5)), epochs=1)
    expected = fm.replace(state, step=5)
    for raw in itertools.islice(fm.batches((X, Y), batch_size=10, seed=0), 5, None):
        expected, _ = fm.train_step(expected, raw)
    assert same(trained, expected)


def test_a_state_of_another_structure_compiles_again(state):
    other = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=0.5, batch_size=10)

    def replace(run):
        run.state = fm.replace(other, step=run.step)

    trained, history = run(state, Call(replace, fm.Every(steps=5)), epochs=1)
    assert trained.structure is other.structure
    assert history["lr"][-1] == 0.5


def test_the_state_must_be_a_state(state):
    def replace(run):
        run.state = run.state.system

    with pytest.raises(TypeError, match=r"run.state must be a State, got Classifier"):
        run(state, Call(replace, fm.Every(steps=5)))


@pytest.mark.parametrize("lr", [0.1, fm.cosine(0.1)], ids=["number", "schedule"])
def test_a_callback_can_change_the_learning_rate(lr):
    def lower(run):
        before, run.learning_rate = run.learning_rate, 0.0
        return float(before), run.learning_rate

    state = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=lr, batch_size=10, epochs=2)
    call = Call(lower, fm.Every(steps=6))
    trained, history = run(state, call)
    half, _ = fm.fit(state, (X, Y), steps=6, progress=False)
    _, logs = fm.train_step(half, (X[:10], Y[:10]))
    assert call.seen == [(pytest.approx(float(logs["lr"])), 0.0), (0.0, 0.0)]
    assert history["lr"][-1] == 0
    assert same(trained.system, half.system)


def test_the_learning_rate_of_a_population_under_a_schedule_is_one_per_member():
    call = Call(lambda run: run.learning_rate, fm.Every(steps=2))
    system = fm.Population(fm.Classifier(net()), 2)
    fm.fit(system, (X, Y), optimizer=optax.sgd, lr=fm.cosine(0.1), steps=2, batch_size=10, callbacks=[call], progress=False)
    np.testing.assert_allclose(call.seen, np.zeros((1, 2)), atol=1e-8)


def test_a_learning_rate_must_be_data():
    def lower(run):
        run.learning_rate = 0.0

    state = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd(0.1), batch_size=10)
    with pytest.raises(ValueError, match=r"run.learning_rate.*optimizer=optax.adam, lr=1e-3"):
        run(state, Call(lower, fm.Every(steps=6)))


# Kinds of epochs


class FirstBatches(fm.Training):
    n: int


@dispatch
def run_epoch(phase: FirstBatches, state, source, run):
    phase_states.append(state)
    return fm.run_epoch(fm.Training(), state, itertools.islice(source, phase.n), run)


phase_states = []


def test_a_phase_is_another_kind_of_epoch(state):
    phase_states.clear()
    trained, history = run(state, phase=FirstBatches(2))
    assert int(trained.step) == 4
    assert len(history["loss"]) == 2
    assert [int(s.step) for s in phase_states] == [0, 2]
    assert np.isfinite(np.asarray(phase_states[0].arrays[0])).all()  # not donated


class Constant(fm.Validation):
    pass


@dispatch
def run_epoch(phase: Constant, state, source, run):
    return state, {"constant": float(run.step)}


# Validation


def test_several_validation_sets_have_names(state):
    sets = {"clean": (X, Y), "shifted": (X + 1, Y), "other": Constant()}
    trained, history = run(state, validation=sets)
    expected = fm.evaluate(trained, (X + 1, Y))
    assert history["validation/shifted/loss"][-1] == pytest.approx(expected["loss"])
    assert history["validation/clean/loss"][-1] == pytest.approx(fm.evaluate(trained, (X, Y))["loss"])
    assert history["validation/other/constant"].tolist() == [6, 12]


def endless():
    while True:
        yield from fm.batches((X, Y), batch_size=10, seed=0)


class Validated:
    def __init__(self):
        self.seen = []


@dispatch
def on(event: fm.ValidationEnd, callback: Validated, run):
    callback.seen.append(run.logs["validation/loss"])


def test_an_endless_stream_is_validated_every_n_steps():
    state = fm.setup(fm.Classifier(net()), endless, optimizer=optax.adam, lr=0.1)
    watch = Validated()
    options = dict(steps=10, validation=(X, Y), validate_every=fm.Every(steps=4), progress=False)
    _, history = fm.fit(state, endless, callbacks=[watch], **options)
    assert history["step"][:2].tolist() == [4, 8]
    assert history["validation/loss"][:2].tolist() == watch.seen
    assert len(watch.seen) == 2


# Quick looks


@pytest.mark.parametrize("given", [(X, Y), lambda: fm.batches((X, Y), batch_size=10, seed=None)], ids=["arrays", "function"])
def test_limit_ends_each_epoch_early(given):
    state, history = fm.fit(
        fm.Classifier(net()), given, optimizer=optax.adam, lr=0.1, epochs=3, limit=2, progress=False, batch_size=10
    )
    assert int(state.step) == 6
    assert len(history["loss"]) == 3


def test_overfit_of_an_iterator_trains_on_the_batches_that_it_was_set_up_with():
    seen, batch = (
        Call(lambda run: run.batch[0], fm.Every(steps=1)),
        lambda i: (X[10 * i : 10 * i + 10], Y[10 * i : 10 * i + 10]),
    )
    options = dict(optimizer=optax.adam, lr=0.1, steps=4, overfit=2, progress=False)
    _, history = fm.fit(fm.Classifier(net()), map(batch, range(5)), callbacks=[seen], **options)
    assert [v[0, 0] for v in seen.seen] == [X[0, 0], X[10, 0]] * 2
    assert "validation/loss" in history


def test_overfit_repeats_and_validates_on_the_first_batches(state):
    seen = Call(lambda run: run.batch[0], fm.Every(steps=1))
    trained, history = run(state, seen, epochs=30, overfit=2)
    assert int(trained.step) == 60
    assert np.array_equal(seen.seen[0], X[:10]) and np.array_equal(seen.seen[3], X[10:20])
    assert history["validation/loss"][-1] == pytest.approx(fm.evaluate(trained, (X[:20], Y[:20]))["loss"])


def test_long_logs_do_not_cut_the_numbers_of_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    bar, logs = ProgressBar(), {f"metric{i}": 0.5 for i in range(9)}
    run = SimpleNamespace(steps=1234, done=1234, epoch=6, logs=logs, speed=1.0, history=fm.History())
    for event in (fm.FitStart(), fm.FitEnd()):
        on(event, bar, run)
    assert " 1234/1234 " in capsys.readouterr().out


# How a run ends


class Boom(Exception):
    pass


def failing(run):
    raise Boom("no")


def broken():
    yield from itertools.islice(fm.batches((X, Y), batch_size=10, seed=0), 5)
    raise Boom("no")


@pytest.mark.parametrize("where", ["callback", "data"])
def test_an_error_has_the_state_and_the_history(where):
    given = (X, Y) if where == "callback" else broken
    state = fm.setup(fm.Classifier(net()), given, optimizer=optax.adam, lr=0.1, batch_size=10)
    callbacks = [Call(failing, fm.Every(steps=5))] if where == "callback" else []
    with pytest.raises((Boom, RuntimeError)) as error:
        run(state, *callbacks, data=given)
    expected, _ = fm.fit(state, (X, Y), steps=5, progress=False)
    assert same(error.value.state, expected)
    assert isinstance(error.value.history, fm.History)
    assert "`state`" in error.value.__notes__[-1]


def hanging():
    yield from itertools.islice(fm.batches((X, Y), batch_size=10, seed=0), 5)
    time.sleep(60)


@pytest.mark.parametrize("how", ["ctrl-c", "stop"])
def test_data_that_hangs_does_not_keep_a_run_from_ending(how):
    state = fm.setup(fm.Classifier(net()), hanging, optimizer=optax.adam, lr=0.1)

    def end(run):
        run.stop() if how == "stop" else os.kill(os.getpid(), signal.SIGINT)

    begun = time.perf_counter()
    trained, _ = run(state, Call(end, fm.Every(steps=5)), data=hanging)
    assert int(trained.step) == 5
    assert time.perf_counter() - begun < 30


SCRIPT = """
import os, signal
import numpy as np, optax
import fulmen as fm
from fulmen import dispatch

class Press:
    pass

@dispatch
def due(callback: Press):
    return fm.Every(steps=3)

@dispatch
def on(event: fm.Due, callback: Press, run):
    os.kill(os.getpid(), sent)

x, y = np.ones((64, 4), np.float32), np.zeros(64, np.int32)
system = fm.Classifier(fm.models.Dense(4, 3))
fit = lambda: fm.fit(system, (x, y), optimizer=optax.sgd, lr=0.1, steps=10, batch_size=32, callbacks=[Press()])[0]

sent = signal.SIGINT
print("returned", int(fit().step))
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ignored", int(fit().step))
sent = signal.SIGTERM
try:
    print("returned", int(fit().step))
except SystemExit as error:
    print("state", int(error.state.step))
    raise
"""


def test_signals_in_a_script(tmp_path):
    """After Ctrl-C `fit` returns, unless the script ignores it; after SIGTERM the script ends."""
    lines = run_code(SCRIPT, tmp_path, exitcode=143).splitlines()
    said = [line for line in lines if line.startswith(("returned", "ignored", "state"))]
    assert said == ["returned 3", "ignored 10", "state 3"]


# How it continues


class Memory:
    """Counts the steps at which it is called, and remembers them."""

    def __init__(self):
        self.steps = []


@dispatch
def due(callback: Memory):
    return fm.Every(steps=2)


@dispatch
def on(event: fm.Due, callback: Memory, run):
    callback.steps.append(run.step)


@dispatch
def run_state(callback: Memory):
    return {"steps": callback.steps}


@dispatch
def restore_run_state(callback: Memory, saved):
    callback.steps = list(saved["steps"])


@dataclasses.dataclass
class Found:
    state: fm.State
    run: dict
    step = 0

    def load(self, like):
        return fm.State.of(self.state.arrays, self.state.raw_key, self.state.step, like.structure)


class Positioned:
    """Batches in an order that is not a function of the epoch's number; it keeps its own position."""

    def __init__(self):
        self.rows = 0

    def __len__(self):
        return 6

    def __iter__(self):
        for _ in range(6 - self.rows // 10 % 6):
            rows = np.arange(self.rows, self.rows + 10) * 7 % 60
            self.rows += 10
            yield X[rows], Y[rows]

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]


SOURCES = {
    "arrays": lambda: (X, Y),
    "function": lambda: lambda epoch: fm.batches((X, Y), batch_size=10, seed=epoch),
    "positioned": Positioned,
}


@pytest.mark.filterwarnings("ignore:.*cannot seek", "ignore:.*saves nothing there")
@pytest.mark.parametrize("step", [1, 5, 6, 7, 12, 13])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_resumed_run_equals_one_that_was_not_stopped(source, step, monkeypatch):
    system = fm.Classifier(
        fm.models.Chain(fm.models.Dense(4, 8), fm.models.BatchNorm(8), fm.models.Dropout(0.5), fm.models.Dense(8, 3))
    )
    options = dict(
        epochs=3, batch_size=10, optimizer=optax.adam, lr=fm.cosine(0.1), seed=3, validation=(X, Y), progress=False
    )
    if not isinstance(source(), tuple):
        options |= dict(batch_size=None, lr=0.1)  # without a length, no schedule over the run
    memory = Memory()
    whole, history = fm.fit(system, source(), callbacks=[memory], **options)

    found = []

    def save(run):
        if run.step == step and not found:
            found.append(Found(run.state, json.loads(json.dumps(run_data(run)))))

    fm.fit(system, source(), callbacks=[Save(save, fm.Every(steps=1)), Memory()], **options)
    monkeypatch.setattr("fulmen.train.loop.find_resumable", lambda directory: found[0])
    again = Memory()
    resumed, resumed_history = fm.fit(system, source(), callbacks=[again], resume="there", **options)
    assert same(resumed, whole)
    assert history.keys() == resumed_history.keys()
    assert all(np.array_equal(history[name], resumed_history[name]) for name in history if name != "seconds")
    assert again.steps == memory.steps


def test_a_complete_run_is_not_trained_again(state, monkeypatch):
    found = []
    call = Call(lambda run: found.append(Found(run.state, json.loads(json.dumps(run_data(run))))), fm.Every(epochs=2))
    trained, history = run(state, call)
    monkeypatch.setattr("fulmen.train.loop.find_resumable", lambda directory: found[0])
    resumed, resumed_history = run(state, resume="there")
    assert same(resumed, trained)
    assert np.array_equal(history["loss"], resumed_history["loss"])


@pytest.mark.filterwarnings("ignore:.*saves nothing there")
@pytest.mark.parametrize("option", [{"seed": 1}, {"batch_size": 20}, {"drop_last": True}, {"microbatches": 2}], ids=repr)
def test_a_run_is_resumed_with_its_own_options(state, monkeypatch, option):
    found = []
    run(state, Call(lambda run: found.append(Found(run.state, run_data(run))), fm.Every(steps=5)), epochs=1)
    monkeypatch.setattr("fulmen.train.loop.find_resumable", lambda directory: found[0])
    [(name, value)] = option.items()
    component, new = fm.Classifier(net()), dict(optimizer=optax.adam, lr=0.1)
    with pytest.raises(ValueError, match=f"{name}={value!r} instead of"):
        run(component, epochs=1, resume="there", **{"batch_size": 10, **new, **option})
    with pytest.warns(UserWarning, match=r"another length.*epochs=2 instead of 1"):
        resumed, _ = run(state, epochs=2, resume="there")
    assert int(resumed.step) == 12
