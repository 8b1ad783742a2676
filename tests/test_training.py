"""setup, train_step, fit, steps, evaluate, predict: what they return, what they compile, and what they do not change."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.dispatching.registry import Verb
from fulmen.train import Event


@pytest.fixture(scope="module")
def raw():
    return data()


def adam(component=None, lr=1e-2, **options):
    return fm.setup(net() if component is None else component, data(), optimizer=optax.adam, lr=lr, batch_size=16, **options)


def leaves(tree):
    return [np.asarray(v) for v in jax.tree.leaves(tree)]


def equal(a, b):
    a, b = leaves(a), leaves(b)
    return len(a) == len(b) and all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


def test_train_step_is_pure_and_moves_the_parameters(raw):
    state = adam()
    before = leaves(state)
    after, logs = fm.train_step(state, raw)
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(state), strict=True))
    assert after.step == 1 and state.step == 0
    assert not equal(state.system, after.system)
    assert set(logs) == {"loss", "lr"}
    expected = optax.softmax_cross_entropy_with_integer_labels(state.system(raw[0]), raw[1]).mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-6)
    assert float(logs["lr"]) == pytest.approx(1e-2)


def test_the_gradient_is_of_the_mean_over_examples(raw):
    state = fm.setup(net(), raw, optimizer=optax.sgd(1.0))
    after, _ = fm.train_step(state, raw)

    def mean_loss(layer):
        return optax.softmax_cross_entropy_with_integer_labels(layer(raw[0]), raw[1]).mean()

    slope = jax.jit(jax.grad(mean_loss))(state.system.layer)
    moved = jax.tree.map(jnp.subtract, state.system.layer, after.system.layer)
    for a, b in zip(leaves(moved), leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_weights_count(raw):
    x, y = raw
    weight = np.zeros(len(x), np.float32)
    weight[:7] = 2.0
    state = adam()
    _, weighted = fm.train_step(state, (x, y, weight))
    _, few = fm.train_step(state, (x[:7], y[:7]))
    np.testing.assert_allclose(weighted["loss"], few["loss"], rtol=1e-6)


def test_fit_equals_steps_equals_a_loop(raw):
    state = adam()
    fitted, history = fm.fit(state, raw, epochs=2, batch_size=16, progress=False)
    *_, (stepped, _) = fm.steps(state, raw, epochs=2, batch_size=16)
    looped = state
    for batch in fm.batches(raw, batch_size=16, seed=0, epochs=2):
        looped, _ = fm.train_step(looped, batch)
    assert int(fitted.step) == int(stepped.step) == int(looped.step) == 8
    for a, b, c in zip(leaves(fitted), leaves(stepped), leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(b, c, atol=1e-6)
    assert history["loss"].shape == (2,)


def test_the_epochs_loss_is_the_mean_over_its_examples(raw):
    state = fm.setup(net(), raw, optimizer=optax.sgd(0.0), batch_size=16)  # nothing changes, so the loss is known
    _, history = fm.fit(state, raw, epochs=1, batch_size=16, progress=False)
    expected = optax.softmax_cross_entropy_with_integer_labels(state.system(raw[0]), raw[1]).mean()
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-6)


def test_fit_continues_where_it_stopped(raw):
    state = adam()
    whole, _ = fm.fit(state, raw, epochs=3, batch_size=16, progress=False)
    half, _ = fm.fit(state, raw, epochs=1, batch_size=16, progress=False)
    rest, _ = fm.fit(half, raw, epochs=2, batch_size=16, progress=False)
    assert equal(whole, rest)


def test_fit_does_not_change_the_given_state(raw):
    state = adam()
    before = leaves(state)
    fm.fit(state, raw, epochs=1, progress=False)
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(state), strict=True))


@pytest.mark.parametrize("name", ["step", "system", "optimizer_state", "key", "plan", "another"])
def test_a_state_is_not_changed(raw, name):
    with pytest.raises(AttributeError):
        setattr(adam(), name, 7)


class Noisy(fm.Model):
    """Adds noise, in evaluations too."""


@dispatch
def forward(noisy: Noisy, x, mode: fm.Mode):
    return x + jax.random.normal(mode.key, x.shape)


def test_an_evaluation_draws_differently_in_each_batch():
    x, system = np.zeros((8, 3), np.float32), fm.Regressor(Noisy())
    outputs = fm.predict(system, x, batch_size=4)
    assert (outputs[:4] != outputs[4:]).all()
    np.testing.assert_array_equal(outputs, fm.predict(system, x, batch_size=4))
    found = fm.evaluate(system, (x, x), batch_size=4)
    np.testing.assert_allclose(found["loss"], (outputs**2).mean(), rtol=1e-6)
    assert found == fm.evaluate(system, (x, x), batch_size=4)


def test_seed_none_keeps_the_order_and_initializes_as_seed_0(raw):
    options = dict(optimizer=optax.adam, lr=1e-2, epochs=1, batch_size=16, progress=False)
    state, _ = fm.fit(net(), raw, seed=None, **options)
    start = fm.setup(net(), raw, seed=0, optimizer=optax.adam, lr=1e-2, epochs=1, batch_size=16)
    assert equal(state.system, fm.fit(start, raw, epochs=1, batch_size=16, seed=None, progress=False)[0].system)
    assert not equal(state.system, fm.fit(net(), raw, seed=0, **options)[0].system)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), ("0", TypeError), (2**64, ValueError)])
def test_an_invalid_seed_is_refused(raw, seed, error):
    start, options = adam(), dict(optimizer=optax.adam, lr=1e-2)
    for call in (
        lambda: fm.setup(net(), raw, seed=seed, **options),
        lambda: fm.fit(net(), raw, epochs=1, seed=seed, progress=False, **options),
        lambda: fm.fit(start, raw, epochs=1, seed=seed, progress=False),
        lambda: [*fm.steps(start, raw, steps=1, seed=seed)],
        lambda: [*fm.batches(raw, batch_size=16, seed=seed)],
        lambda: fm.cross_validate(net(), raw, epochs=1, seed=seed, progress=False, **options),
    ):
        with pytest.raises(error, match=r"seed must be .*got " + repr(seed)):
            call()
    (found,) = fm.check(net(), raw, seed=seed, **options).errors
    assert "seed must be" in found.what


def test_seeds(raw):
    run = lambda seed: fm.fit(net(), raw, optimizer=optax.adam, lr=1e-2, epochs=1, seed=seed, progress=False)[0]
    assert equal(run(0), run(0))
    assert not equal(run(0).system, run(1).system)


def test_validation_and_history(raw):
    state, history = fm.fit(pair(), raw, optimizer=optax.adam, lr=1e-2, epochs=3, validation=raw, progress=False)
    assert {"loss", "loss/one", "loss/two", "lr", "validation/loss", "seconds"} <= set(history)
    assert all(v.shape == (3,) and np.isfinite(v).all() for v in history.values())
    np.testing.assert_allclose(history["validation/loss"][-1], fm.evaluate(state, raw)["loss"], rtol=1e-6)
    np.testing.assert_allclose(history["loss"], history["loss/one"] + history["loss/two"], rtol=1e-6)
    assert "3 epochs" in repr(history)


@pytest.mark.parametrize("batch_size", [7, 16, 50, 64])
def test_evaluate_counts_each_example_once(raw, batch_size):
    state = adam(pair())
    expected = sum(
        float(optax.softmax_cross_entropy_with_integer_labels(n(raw[0]), raw[1]).mean())
        for n in (state.system.one, state.system.two)
    )
    np.testing.assert_allclose(fm.evaluate(state, raw, batch_size=batch_size)["loss"], expected, rtol=1e-5)


def test_predict_is_in_order(raw):
    state = adam()
    np.testing.assert_allclose(fm.predict(state, raw, batch_size=16), state.system(raw[0]), atol=1e-6)
    np.testing.assert_allclose(fm.predict(state.system, raw[0], batch_size=16), state.system(raw[0]), atol=1e-6)


def test_verbs_of_a_system_take_states_and_raw_data(raw):
    state = adam(pair())
    entries = fm.losses(state, raw)
    assert {k: v.shape for k, v in entries.items()} == {"one": (50,), "two": (50,)}
    np.testing.assert_allclose(fm.loss(state, raw), sum(v.mean() for v in entries.values()), rtol=1e-6)
    assert fm.metrics(state, raw) == {}
    assert set(fm.eval_step(state, raw)) == {"loss", "loss/one", "loss/two"}


# What is compiled


def test_one_program_per_shape_and_none_again_for_an_equal_system(raw):
    class Unseen(fm.System):
        one: Net

    run = lambda state: fm.fit(state, raw, epochs=1, batch_size=16, progress=False)[0]
    with Compilations() as first:
        state = run(adam(Unseen(net(7))))
    assert sum("program" in name for name in first.names) == 2  # 16 rows, and the last 2
    assert "jit(copy)" not in first.names  # the arrays that steps donate are copied without a program
    with Compilations() as again:
        run(adam(Unseen(net(7))))
        run(state)
    assert again.names == []


class Weighed(fm.System):
    """A loss with a number in it."""

    part: Net
    factor: float = 1.0


@dispatch
def reduce_losses(system: Weighed, losses, batch):
    return system.factor * losses["part"].mean()


@pytest.mark.parametrize("change", [{"system.factor": 2.0}, {"optimizer.lr": 1e-3}])
def test_a_changed_number_compiles_nothing(raw, change):
    state = adam(Weighed(net()))
    state, _ = fm.train_step(state, raw)
    fm.fit(state, raw, epochs=1, progress=False)
    changed = fm.replace(state, change)
    fm.train_step(changed, raw)
    with Compilations() as compiled:
        fm.train_step(fm.replace(state, change), raw)
        fm.fit(fm.replace(state, change), raw, epochs=1, progress=False)
    assert compiled.names == []
    with Compilations() as compiled:
        other = adam(Weighed(net(), factor=3.0), lr=5e-3)
        fm.train_step(other, raw)
    assert compiled.names == []


def test_hyperparameters_are_not_trained(raw):
    state = adam(Weighed(net(), factor=1.5))
    state, _ = fm.fit(state, raw, epochs=2, progress=False)
    assert float(state.system.factor) == 1.5
    assert float(state.optimizer.lr) == pytest.approx(1e-2)


def test_no_verb_is_called_per_step_once_compiled(raw, monkeypatch):
    state = adam()
    fm.fit(state, raw, epochs=1, batch_size=10, progress=False)

    def counted(epochs):
        calls = []
        with monkeypatch.context() as patch:
            original = Verb.__call__
            patch.setattr(Verb, "__call__", lambda verb, *a, **k: calls.append(verb) or original(verb, *a, **k))
            fm.fit(state, raw, epochs=epochs, batch_size=10, progress=False)
        return calls

    assert [verb for verb in counted(6) if verb is not fm.run_epoch] == [
        verb for verb in counted(1) if verb is not fm.run_epoch
    ]


# Callbacks and interruption


class Watch:
    def __init__(self):
        self.seen, self.states = [], []


@dispatch
def on(event: Event, callback: Watch, run):
    self = callback
    self.seen.append(type(event).__name__)
    if isinstance(event, fm.StepEnd):
        self.states.append((run.state, run.logs["loss"]))


class StopAfter:
    def __init__(self, epochs):
        self.epochs = epochs


@dispatch
def on(event: fm.EpochEnd, callback: StopAfter, run):
    if run.epoch + 1 >= callback.epochs:
        run.stop()


def test_events_in_order_and_states_that_may_be_kept(raw):
    watch = Watch()
    state, _ = fm.fit(adam(), raw, epochs=1, batch_size=25, callbacks=[watch], validation=raw, progress=False)
    seen = [name for name in watch.seen if name != "LogsRead"]
    assert seen == ["FitStart", "EpochStart", "StepEnd", "StepEnd", "EpochEnd", "ValidationEnd", "FitEnd"]
    assert [int(s.step) for s, _ in watch.states] == [1, 2]
    assert equal(watch.states[-1][0], state)
    assert not equal(watch.states[0][0].system, state.system)


def test_step_end_has_the_logs_of_its_step(raw):
    watch, state = Watch(), adam()
    fm.fit(state, raw, epochs=1, batch_size=25, callbacks=[watch], progress=False)
    stepped = [float(logs["loss"]) for _, logs in fm.steps(state, raw, epochs=1, batch_size=25)]
    np.testing.assert_allclose([loss for _, loss in watch.states], stepped, rtol=1e-6)


def test_a_callback_stops_the_run(raw):
    state, history = fm.fit(adam(), raw, epochs=9, batch_size=25, callbacks=[StopAfter(2)], progress=False)
    assert len(history["loss"]) == 2 and int(state.step) == 4


class Press:
    """Presses Ctrl-C during the run."""


@dispatch
def on(event: fm.EpochStart, callback: Press, run):
    if run.epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_returns_the_current_state(raw, capsys):
    state, history = fm.fit(adam(), raw, epochs=50, batch_size=25, callbacks=[Press()])
    assert 2 < int(state.step) < 100
    assert np.isfinite(history["loss"]).all()
    assert "Interrupted" in capsys.readouterr().out
    assert np.isfinite(fm.evaluate(state, raw)["loss"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress_is_plain_lines_without_a_terminal(raw, capsys):
    fm.fit(adam(), raw, epochs=2, batch_size=25, validation=raw)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1") and "loss" in lines[0] and "lr 0.01" in lines[0]
    assert any("validation/loss" in line for line in lines)
    fm.fit(adam(), raw, epochs=1, progress=False)
    assert capsys.readouterr().out == ""


# A state is data


def test_a_state_is_a_pytree(raw):
    state = adam()
    doubled = jax.tree.map(lambda v: v + v if jnp.issubdtype(v.dtype, jnp.floating) else v, state)
    np.testing.assert_array_equal(doubled.system.layer.weight, 2 * state.system.layer.weight)
    stepped = jax.jit(lambda s, b: fm.train_step(s, b)[0])(state, raw)
    np.testing.assert_allclose(stepped.system.layer.weight, fm.train_step(state, raw)[0].system.layer.weight, atol=1e-6)


def test_a_gradient_through_training(raw):
    """train_step is pure, so the loss after a step has a gradient with respect to a number in the state."""
    state = adam(Weighed(net()), lr=1e-2)

    def after(lr):
        return fm.loss(fm.train_step(fm.replace(state, {"optimizer.lr": lr}), raw)[0], raw)

    after = jax.jit(after)
    slope = jax.grad(after)(jnp.asarray(1e-2))
    near = (after(jnp.asarray(1.1e-2)) - after(jnp.asarray(0.9e-2))) / 2e-3
    np.testing.assert_allclose(slope, near, rtol=2e-2)


def test_setup_of_a_trained_system_keeps_its_arrays(raw):
    state, _ = fm.fit(adam(), raw, epochs=1, progress=False)
    again = adam(state.system)
    assert equal(again.system, state.system) and int(again.step) == 0
    assert not equal(again.optimizer_state, state.optimizer_state)


@pytest.mark.parametrize(("n", "who"), [(None, ""), (3, r" \(members 1\)")])
def test_a_loss_that_is_not_finite_warns_once(n, who, raw):
    state = adam(n and fm.Population(net(), n))
    path = "system.layer.weight" if n is None else "system.members.layer.weight"
    weight = fm.get(state, path)
    broken = fm.replace(state, {path: weight.at[1].set(jnp.nan)})
    with pytest.warns(UserWarning, match=f"the loss{who} is not finite in epoch 1.*fm.check") as caught:
        fm.fit(broken, raw, epochs=2, batch_size=16, progress=False)
    assert len(caught) == 1


def test_a_run_past_its_plan_warns(raw):
    state = adam(lr=fm.cosine(1e-2), epochs=1)
    state, _ = fm.fit(state, raw, epochs=1, batch_size=16, progress=False)
    with pytest.warns(UserWarning, match="plan ends at 4"):
        fm.fit(state, raw, epochs=1, batch_size=16, progress=False)


def test_a_step_that_changes_a_type_names_the_array(raw):
    class Growing(fm.System):
        part: Net

    @dispatch
    def after_update(system: Growing, batch, mode):
        return fm.replace(system, {"part.layer.bias": system.part.layer.bias.astype(jnp.bfloat16)})

    with pytest.raises(TypeError, match=r"part\.layer\.bias from float32\[3\] to bfloat16\[3\]"):
        adam(Growing(net()))


def test_after_update_reaches_the_parts(raw):
    class Clipped(fm.Model):
        layer: Linear

    @dispatch
    def forward(net: Clipped, x):
        return net.layer(x)

    @dispatch
    def loss(net: Clipped, batch: fm.Labeled):
        return optax.softmax_cross_entropy_with_integer_labels(net(batch.x), batch.y)

    @dispatch
    def after_update(net: Clipped, batch, mode):
        return jax.tree.map(lambda v: jnp.clip(v, -0.01, 0.01), net)

    class Two(fm.System):
        nets: list[Clipped]

    state = adam(Two([Clipped(Linear(4, 3)), Clipped(Linear(4, 3))]))
    state, _ = fm.train_step(state, raw)
    assert all(np.abs(v).max() <= 0.01 for v in leaves(state.system))


def test_a_custom_update(raw):
    class Still(Pair):
        pass

    @dispatch
    def update(system: Still, state, batch, mode):
        value, *_ = fm.differentiate(system, batch, mode)
        return state, {"seen": value}

    state = adam(Still(net(), net()))
    after, logs = fm.train_step(state, raw)
    assert equal(after.system, state.system) and set(logs) == {"seen", "lr"}


def test_steps_continue_mid_epoch(raw):
    state = adam()
    whole, _ = fm.fit(state, raw, steps=9, batch_size=16, progress=False)
    for part in (2, 3, 4):
        state, _ = fm.fit(state, raw, steps=part, batch_size=16, progress=False)
    assert equal(whole, state)


def test_evaluations_and_attacks_between_steps_change_nothing(raw):
    """A run with evaluations, gradients and attacks in between is bit for bit the run without."""
    net = fm.models.Chain(fm.models.Dense(4, 8), fm.models.BatchNorm(8), fm.models.Dropout(0.5), fm.models.Dense(8, 3))
    quiet = busy = adam(fm.Classifier(net))
    gradient = jax.jit(jax.grad(lambda s: fm.loss(s, fm.Labeled(*raw)), allow_int=True))
    for _ in range(3):
        quiet, _ = fm.train_step(quiet, raw)
        busy, _ = fm.train_step(busy, raw)
        fm.evaluate(busy, raw)
        gradient(busy.system)
        fm.perturb(fm.FGSM(fm.LinfBall(0.1)), busy, raw, jax.random.key(0))
    assert equal(quiet, busy)
    assert not equal(quiet.system.model.layers[1].mean, adam(fm.Classifier(net)).system.model.layers[1].mean)


class Unheard:
    """A class without a method of `on`."""


@pytest.mark.parametrize(("callback", "word"), [(Unheard(), "def on"), (Watch, r"got the class Watch; write Watch\(…\)")])
def test_callbacks_that_are_never_called_are_refused(raw, callback, word):
    with pytest.raises(TypeError, match=word):
        fm.fit(adam(), raw, epochs=1, callbacks=[callback], progress=False)


@pytest.mark.parametrize("option", ["epoch", "batchsize", "validaton"])
def test_a_misspelt_option_is_corrected(raw, option):
    with pytest.raises(TypeError, match=f"{option} is no option.*did you mean"):
        fm.fit(net(), raw, optimizer=optax.adam, lr=1e-2, epochs=1, progress=False, **{option: 3})


def test_a_system_with_a_loss_whose_parts_have_none(raw):
    class Encoder(fm.Model):
        layer: Linear

    @dispatch
    def forward(encoder: Encoder, x):
        return encoder.layer(x)

    class Both(fm.System):
        encoder: Encoder
        head: Encoder

    @dispatch
    def loss(system: Both, batch: fm.Labeled):
        return optax.softmax_cross_entropy_with_integer_labels(system.head(system.encoder(batch.x)), batch.y)

    state, history = fm.fit(
        Both(Encoder(Linear(4, 5)), Encoder(Linear(5, 3))), raw, optimizer=optax.sgd, lr=0.5, epochs=3, progress=False
    )
    assert set(history) == {"loss", "lr", "seconds"} and history["loss"][-1] < history["loss"][0]
    assert set(fm.evaluate(state, raw)) == {"loss"}
