"""The library's callbacks, in runs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch
from fulmen.train.events import in_order
from fulmen.train.history import find_metric

X, Y = data(40)
QUIET = dict(progress=False, batch_size=10)


def system(*layers):
    return fm.Classifier(fm.models.Chain(*(layers or (Linear(4, 3),))), metrics=(fm.Accuracy(),))


def fit(callbacks, over=None, raw=(X, Y), lr=0.1, **options):
    options = {**QUIET, **(options if "steps" in options else {"epochs": 6, **options})}
    return fm.fit(system() if over is None else over, raw, optimizer=optax.sgd, lr=lr, callbacks=callbacks, **options)


class Script:
    """Replaces the logged values of a metric by given ones, epoch by epoch."""

    def __init__(self, name, values):
        self.name, self.values = name, values


@dispatch
def on(event: fm.EpochEnd | fm.ValidationEnd, script: Script, run):
    if isinstance(event, fm.ValidationEnd) == script.name.startswith("validation/"):
        run.logs[script.name] = script.values[run.epoch]


# A metric that should improve


@pytest.mark.parametrize(
    ("metric", "options", "values", "epochs", "best"),
    [
        ("loss", dict(patience=2), [3, 2, 2.5, 2, 1, 0], 4, 1),  # equal is no improvement
        ("loss", dict(patience=1, min_delta=0.5), [3, 2, 1.6, 1, 0, 0], 3, 1),
        ("loss", dict(patience=2), [3, np.nan, np.nan, 1, 0, 0], 3, 0),
        ("accuracy", dict(patience=2), [0.1, 0.3, 0.2, 0.1, 0.9, 1], 4, 1),
        ("validation/accuracy", dict(patience=1), [0.1, 0.3, 0.2, 0.1, 0.9, 1], 3, 1),
        ("validation/loss", dict(patience=1, mode="max"), [1, 2, 3, 2, 1, 1], 4, 2),
        ("loss", dict(patience=5), [3, 2, 1, 0, -1, -2], 6, 5),
    ],
)
def test_early_stopping_ends_the_run_after_its_patience(metric, options, values, epochs, best):
    stopping = fm.EarlyStopping(metric, **options)
    _, history = fit([Script(metric, values), stopping], validation=(X, Y))
    assert (len(history["loss"]), stopping.best_epoch, stopping.best) == (epochs, best, values[best])


def test_early_stopping_returns_the_best_state():
    states = {}

    class Keep:
        pass

    @dispatch
    def on(event: fm.EpochEnd, keep: Keep, run):
        states[run.epoch] = run.state

    stopping = fm.EarlyStopping("loss", patience=2, restore_best=True)
    state, _ = fit([Keep(), Script("loss", [3, 2, 2.5, 2.5, 1, 0]), stopping])
    assert int(state.step) == 8
    assert all((a == b).all() for a, b in zip(state.arrays, states[1].arrays, strict=True))
    state, _ = fit(
        [Script("loss", [3, 2, 1, 0, 4, 5]), fm.EarlyStopping("loss", restore_best=True)]
    )  # at the end of a run too
    assert int(state.step) == 16


def test_early_stopping_has_no_best_state_of_a_metric_that_is_never_finite():
    stopping = fm.EarlyStopping("loss", patience=2, restore_best=True)
    with pytest.warns(UserWarning, match=r"EarlyStopping: 'loss' was NaN each time.*so the last state is returned\.$"):
        state, _ = fit([Script("loss", [np.nan] * 6), stopping])
    assert int(state.step) == 8


def test_a_callback_that_is_used_again_starts_again():
    stopping = fm.EarlyStopping("loss", patience=1)
    for _ in range(2):
        _, history = fit([Script("loss", [1, 2, 3, 4, 5, 6]), stopping])
        assert len(history["loss"]) == 2


def test_early_stopping_counts_validations_after_steps():
    stopping = fm.EarlyStopping("validation/accuracy", patience=2)
    state, _ = fit([Script("validation/accuracy", [0.5] * 9), stopping], validation=(X, Y), validate_every=fm.Every(steps=3))
    assert int(state.step) == 9


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        ("acuracy", {}, ["EarlyStopping", "'acuracy'", "did you mean 'accuracy'", "loss"]),
        ("validation/acc", dict(validation=(X, Y)), ["'validation/acc'", "did you mean 'validation/accuracy'"]),
        ("validation/lss", dict(validation=(X, Y), validate_every=fm.Every(epochs=2)), ["did you mean 'validation/loss'"]),
    ],
)
def test_an_unknown_metric_is_an_error_after_the_first_epoch(metric, options, words):
    with pytest.raises(KeyError) as caught:
        fit([fm.EarlyStopping(metric, mode="max")], **options)
    assert all(word in str(caught.value) for word in words)
    assert int(caught.value.state.step) == (8 if "validate_every" in options else 4)


@pytest.mark.parametrize("make", [fm.EarlyStopping, fm.ReduceOnPlateau])
def test_a_metric_of_a_validation_that_the_run_does_not_have_is_an_error_at_its_start(make):
    steps = []
    with pytest.raises(ValueError, match=rf"{make.__name__}: 'validation/loss' .* no validation data; write fm\.fit"):
        fit([make("validation/loss"), fm.callbacks.Predictions(X[:2], fm.Every(steps=1), lambda *a: steps.append(a))])
    assert not steps


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: fm.EarlyStopping("norm"), ValueError, ["norm", "mode='max'"]),
        (lambda: fm.EarlyStopping(mode="up"), ValueError, ["mode", "'up'", "'min'"]),
        (lambda: fm.EarlyStopping(patience=0), ValueError, ["EarlyStopping.patience", "positive"]),
        (lambda: fm.EarlyStopping(min_delta=-1), ValueError, ["min_delta", "-1"]),
        (lambda: fm.ReduceOnPlateau(factor=2), ValueError, ["factor", "between 0 and 1"]),
        (lambda: fm.TimeLimit(), ValueError, ["TimeLimit", "fm.TimeLimit(minutes=30)"]),
        (lambda: fm.NaNGuard("ignore"), ValueError, ["policy", "'ignore'", "'rollback'"]),
        (lambda: fm.Profiler("there", start=5, stop=5), ValueError, ["Profiler.stop", "5"]),
    ],
)
def test_wrong_arguments_are_refused(make, kind, words):
    with pytest.raises(kind) as caught:
        make()
    assert all(word in str(caught.value) for word in words)


def test_what_a_watched_metric_remembers_is_restored():
    one, other = (fm.EarlyStopping("loss", patience=3) for _ in range(2))
    fit([Script("loss", [3, 2, 4, 5, 1, 0]), one], epochs=4)
    saved = json.loads(json.dumps(fm.callbacks.run_state(one)))
    fm.callbacks.restore_run_state(other, saved)
    assert (other.best, other.best_epoch, other.waited) == (one.best, one.best_epoch, one.waited) == (2, 1, 2)


def test_the_learning_rate_is_reduced_on_a_plateau():
    values = [3, 2, 2, 2, 1, 2]
    _, history = fit([Script("loss", values), fm.ReduceOnPlateau("loss", factor=0.5, patience=2)], epochs=6)
    np.testing.assert_allclose(history["lr"], [0.1] * 4 + [0.05] * 2, rtol=1e-6)
    _, history = fit([Script("loss", [1] * 6), fm.ReduceOnPlateau("loss", patience=1, floor=0.05)], epochs=4)
    np.testing.assert_allclose(history["lr"], [0.1, 0.1, 0.05, 0.05], rtol=1e-6)


def test_a_rate_that_is_no_number_is_not_reduced():
    with pytest.raises(ValueError, match=r"ReduceOnPlateau.*constant learning rate"):
        fit([Script("loss", [1] * 6), fm.ReduceOnPlateau("loss", patience=1)], lr=fm.cosine(0.1))


def test_two_owners_of_a_property_are_refused():
    with pytest.raises(ValueError, match="EarlyStopping and EarlyStopping both own 'stopping'"):
        fit([fm.EarlyStopping("loss"), fm.EarlyStopping("accuracy")])
    fit([fm.EarlyStopping("loss"), fm.NaNGuard(), fm.ReduceOnPlateau("loss"), fm.TimeLimit(9)], epochs=1)


# Order


def test_callbacks_that_read_what_others_write_come_later():
    saves, lines, norms, printer = fm.callbacks.Saver(), fm.JSONLines("x"), fm.GradientNorms(), fm.Printer()
    assert in_order([saves, lines, norms, printer]) == [norms, lines, printer, saves]


# Measurements


def test_gradient_norms_are_those_of_the_gradient():
    state, history = fit([fm.GradientNorms()], system(Linear(4, 5), Linear(5, 3)), epochs=1, batch_size=40)
    key = jax.random.fold_in(state.key, state.step)
    batch = fm.Labeled(*(v[np.lexsort(X.T)] for v in (X, Y)))  # the order does not matter
    _, gradients, _, _ = jax.jit(fm.differentiate)(state.system, batch, fm.Train(key, state.step))
    leaves = jax.tree.leaves(gradients)
    np.testing.assert_allclose(history["gradient_norm"], [optax.tree.norm(leaves)], rtol=1e-5)
    np.testing.assert_allclose(history["gradient_norm/model.layers.0"], [optax.tree.norm(leaves[:2])], rtol=1e-5)
    assert "gradient_norm/model.layers.1" in history


def test_gradient_norms_of_a_population_are_those_of_its_members():
    one = [fm.setup(system(), (X, Y), optimizer=optax.sgd, lr=0.0, seed=seed, batch_size=40) for seed in (0, 1)]
    alone = [
        fm.fit(state, (X, Y), epochs=1, batch_size=40, callbacks=[fm.GradientNorms()], progress=False)[1] for state in one
    ]
    _, history = fit([fm.GradientNorms()], fm.Population(system(), 2), epochs=1, batch_size=40, lr=1e-12)
    np.testing.assert_allclose(history["gradient_norm/members"][0], [h["gradient_norm"][0] for h in alone], rtol=1e-5)


def test_gradient_norms_within_an_interval_are_the_newest():
    norms = fm.GradientNorms(fm.Every(steps=6))
    _, history = fit([norms], epochs=3)
    first, second, third = history["gradient_norm"]  # measured after steps 4 (the first epoch), 6 and 12
    assert len({first, second, third}) == 3
    other = fm.GradientNorms()
    fm.callbacks.restore_run_state(other, json.loads(json.dumps(fm.callbacks.run_state(norms))))
    assert other.newest == norms.newest and other.newest["gradient_norm"] == history["gradient_norm"][2]
    _, history = fit([fm.GradientNorms(fm.Every(epochs=2))], epochs=4)
    first, second, third, fourth = history["gradient_norm"]
    assert first != second == third != fourth


def test_measurements_reach_callbacks_at_the_same_step():
    seen = {}

    class Look(fm.callbacks.LogReader):
        pass

    @dispatch
    def due(callback: Look):
        return fm.Every(steps=2)

    @dispatch
    def on(event: fm.Due, callback: Look, run):
        seen[run.step] = {name for name in run.logs if "norm" in name}

    fit([Look(), fm.GradientNorms(fm.Every(steps=4))], steps=6)
    assert seen == {2: set(), 4: {"gradient_norm"}, 6: set()}


def test_throughput_counts_examples_and_operations():
    _, history = fit([fm.Throughput(peak=1e12)], epochs=2)
    rates = {name: history[name][-1] for name in history if "_per_second" in name}
    assert rates["examples_per_second"] == pytest.approx(10 * rates["steps_per_second"])
    flops = fm.summary(fm.setup(system(), (X, Y), optimizer=optax.sgd, lr=0.1), (X, Y), batch_size=10).costs[0].flops
    assert rates["flops_per_second"] / rates["steps_per_second"] == pytest.approx(flops, rel=0.2)
    assert history["share_of_peak"][-1] == pytest.approx(rates["flops_per_second"] / 1e12)


def test_throughput_leaves_out_what_is_not_known():
    _, history = fit([fm.Throughput()], epochs=1)
    assert "flops_per_second" in history and "share_of_peak" not in history
    _, history = fit([fm.Throughput()], epochs=1, batch_size=40)  # one step, which was compiled
    assert "steps_per_second" not in history


# Ends


def test_the_time_limit_ends_a_run():
    limit = fm.TimeLimit(seconds=0.2)
    state, _ = fit([limit], epochs=10**6)
    assert limit.reached and 4 < int(state.step) < 10**6
    limit = fm.TimeLimit(minutes=9)
    fit([limit], epochs=1)
    assert not limit.reached


# NaN


class Log(fm.Model):
    """The logarithm, which is not finite at 0."""


@dispatch
def forward(model: Log, x):
    return jnp.log(x)


class Root(fm.Model):
    """The square root, whose gradient is not finite at 0."""


@dispatch
def forward(model: Root, x):
    return jnp.sqrt(x)


class Times(fm.Model):
    """Multiplies by a parameter."""

    weight: jax.Array


@dispatch
def forward(model: Times, x):
    return model.weight * x


POSITIVE = np.abs(X) + 0.1
SPOILT = POSITIVE.copy(), Y
SPOILT[0][22:24] = 0.0


def nan_run(policy, *layers, raw=SPOILT, epochs=1, batch_size=4, **options):
    guard = fm.NaNGuard(policy, **options)
    over = system(*(layers or (Times(jnp.ones(())), Log(), Linear(4, 3))))
    with pytest.warns(UserWarning, match="not finite") as caught:
        state, history = fit([guard], over, raw, epochs=epochs, seed=None, batch_size=batch_size)
    return state, history, guard, [text for w in caught if "NaNGuard" in (text := str(w.message))]


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_nan_does_what_the_policy_says(policy):
    state, history, guard, (message,) = nan_run(policy, every=2)
    by_hand = fm.setup(system(Times(jnp.ones(())), Log(), Linear(4, 3)), SPOILT, optimizer=optax.sgd, lr=0.1, batch_size=4)
    batches = [(SPOILT[0][i : i + 4], Y[i : i + 4]) for i in range(0, 40, 4)]
    used = {"stop": [0, 1, 2, 3, 4], "skip": [0, 1, 2, 3, 4, 6, 7, 8, 9], "rollback": [0, 1, 2, 3, 6, 7, 8, 9]}[policy]
    for i in used:
        by_hand, _ = fm.train_step(by_hand, batches[i])
    for a, b in zip(state.arrays, by_hand.arrays, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(state.step) == (5 if policy == "stop" else 10)
    assert np.isfinite(history["loss"]).all()
    (found,) = guard.found
    assert (found.step, found.epoch, found.batch) == (6, 0, 5)
    assert (found.component, found.data) == ("model.layers.1", {})
    assert found.leaves == ["model.layers.0.weight", "model.layers.2.weight", "model.layers.2.bias"]
    assert all(
        word in message for word in ("step 6", "batch 5 of epoch 1", "model.layers.1", "forward(Log, ", "layers.0.weight")
    )


def test_a_nan_in_the_data_is_reported_with_its_rows():
    raw = POSITIVE.copy(), Y
    batches = [(raw[0][i : i + 4].copy(), Y[i : i + 4]) for i in range(0, 40, 4)]

    def source():
        for i, (x, y) in enumerate(batches):
            yield (np.where(np.arange(4)[:, None] == 2, np.float32(3e38), x) if i == 3 else x), y

    guard = fm.NaNGuard("skip")
    with pytest.warns(UserWarning, match="NaNGuard"):
        fit([guard], raw=source, epochs=1, batch_size=None)
    (found,) = guard.found
    assert (found.batch, found.component) == (3, "model.layers.0")


def test_a_gradient_that_is_not_finite_is_reported_without_a_component():
    raw = np.where(np.arange(40)[:, None] == 22, np.float32(0), POSITIVE), Y
    _, _, guard, (message,) = nan_run("skip", Times(jnp.ones(())), Root(), Linear(4, 3), raw=raw)
    (found,) = guard.found
    assert (found.step, found.component, found.leaves) == (6, None, ["model.layers.0.weight"])
    assert "layers.0.weight" in message


def test_too_many_undone_steps_end_the_run():
    zeros = np.zeros((40, 4), np.float32), Y
    state, _, guard, messages = nan_run("skip", raw=zeros, limit=3)
    assert (len(guard.found), int(state.step)) == (3, 2)
    assert "the state before this step" in messages[-1]


def test_a_state_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"NaNGuard.*layers.0.weight"):
        fit([fm.NaNGuard()], system(Times(jnp.asarray(jnp.nan)), Linear(4, 3)))


def test_what_a_guard_found_is_restored():
    *_, guard, _ = nan_run("skip")
    other = fm.NaNGuard("skip")
    fm.callbacks.restore_run_state(other, json.loads(json.dumps(fm.callbacks.run_state(guard))))
    assert other.found == guard.found


# Output


def test_the_printer_prints_after_epochs_and_steps(capsys):
    fit([fm.Printer(fm.Every(steps=2), metrics=["validation/loss", "loss"])], validation=(X, Y), epochs=2)
    lines = [re.sub(r"\d\.\d+|\d\d*e\S+", "#", line) for line in capsys.readouterr().out.splitlines()]
    epochs = [f"epoch {n}  step {4 * n}  validation/loss #  loss #" for n in (1, 2)]
    assert lines == [
        "epoch 1  step 2  loss #", "epoch 1  step 4  loss #", epochs[0],
        "epoch 2  step 6  loss #", "epoch 2  step 8  loss #", epochs[1],
    ]  # fmt: skip
    with pytest.raises(KeyError, match="Printer: no metric 'los'; did you mean 'loss'"):
        fit([fm.Printer(metrics=["los"])], epochs=1)


def test_the_profiler_records_the_steps_that_were_asked_for(tmp_path):
    fit([fm.Profiler(tmp_path, start=4, stop=6)], epochs=3)
    (trace,) = tmp_path.rglob("*.trace.json.gz")
    import gzip

    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("program" in str(event.get("name")) or "run_epoch" in str(event.get("name")) for event in events)
    assert list(tmp_path.rglob("*.xplane.pb"))
    with pytest.warns(UserWarning, match="Profiler.*has recorded nothing"):
        fit([fm.Profiler(tmp_path / "other", start=100, stop=110)], epochs=1)
    fit([fm.Profiler(tmp_path / "cut", start=4, stop=100)], epochs=2)  # it ends with the run
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))


def test_predictions_are_computed_at_their_interval():
    seen = []
    record = lambda step, y: seen.append((step, y.shape)) or fm.loggers.Histogram(step, "logits", y)
    state, _ = fit([shown := fm.callbacks.Predictions(X[:7], fm.Every(epochs=2), record)], epochs=5)
    assert seen == [(8, (7, 3)), (16, (7, 3))] and shown.step == 16
    state, _ = fit([shown := fm.callbacks.Predictions(X[:7])], epochs=1)
    np.testing.assert_allclose(shown.outputs, fm.predict(state, X[:7]), rtol=1e-6)


def test_a_metric_is_found_by_name():
    assert find_metric({"loss": 1.0}, "loss", "Best") == 1.0
    with pytest.raises(KeyError, match=r"Best: no metric 'x'. The metrics are: none"):
        find_metric({}, "x", "Best")
