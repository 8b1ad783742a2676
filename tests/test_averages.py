"""Averages of weights for evaluations: the warm-up of `EMA`, `Averaged`, schedule-free optimizers."""

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm

X, Y = data(24)


def weights(component):
    return np.concatenate([np.ravel(v) for v in jax.tree.leaves(component)])


def states_of(system, steps=6, **options):
    state = fm.setup(system, (X, Y), optimizer=optax.sgd, lr=0.5, **options)
    found = [state]
    for _ in range(steps):
        found.append(fm.train_step(found[-1], (X, Y))[0])
    return found


def test_the_decay_of_an_ema_rises_during_the_warm_up():
    states = states_of(fm.Classifier(fm.EMA(Linear(4, 3), 0.7, warmup=2.0)))
    expected = weights(states[0].system.model.component)
    for t, state in enumerate(states[1:]):
        decay = min(0.7, t / (t + 2))
        expected = decay * expected + (1 - decay) * weights(state.system.model.component)
        np.testing.assert_allclose(weights(state.system.model.average.part), expected, rtol=1e-5, atol=1e-6)
    assert 5 / 7 > 0.7 > 4 / 6  # both branches


def test_a_warm_up_forgets_the_first_weights():
    started, without = (states_of(fm.EMA(fm.Classifier(Linear(4, 3)), 0.999, warmup=w))[-1].system for w in (9.0, 0.0))
    far = [np.abs(weights(s.average.part) - weights(s.component)).max() for s in (started, without)]
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize("start", [0, 3])
def test_averaged_is_the_mean_of_the_weights_from_a_step_on(start):
    states = states_of(fm.Averaged(fm.Classifier(Linear(4, 3)), start=start))
    each = [weights(s.system.component) for s in states[1:]]
    for step, state in enumerate(states[1:]):
        expected = np.mean(each[start : step + 1], 0) if step >= start else each[step]
        np.testing.assert_allclose(weights(state.system.average.part), expected, rtol=1e-5, atol=1e-6)
    of = lambda system: fm.evaluate(system, (X, Y))["loss"]
    assert (
        of(states[-1]) == pytest.approx(of(states[-1].system.average.part)) != pytest.approx(of(states[-1].system.component))
    )


def test_averaged_resumes_and_trains_in_a_population():
    half = fm.setup(fm.Averaged(fm.Classifier(Linear(4, 3))), (X, Y), optimizer=optax.sgd, lr=0.5)
    options = {"batch_size": 8, "progress": False}
    straight, _ = fm.fit(half, (X, Y), steps=6, **options)
    resumed, _ = fm.fit(fm.fit(half, (X, Y), steps=4, **options)[0], (X, Y), steps=2, **options)
    np.testing.assert_array_equal(weights(resumed.system), weights(straight.system))
    state, _ = fm.fit(
        fm.Population(fm.Averaged(fm.Classifier(Linear(4, 3)), start=1), 2),
        (X, Y),
        steps=6,
        optimizer=optax.sgd,
        lr=0.5,
        **options,
    )
    members = fm.members(state)
    assert (weights(members[0].system.average) != weights(members[1].system.average)).all()


def test_averaged_around_a_population_is_refused():
    with pytest.raises(
        TypeError, match=r"Averaged must not be around a Population, .*Population\(fm.Averaged\(system, start=3\), 2\)"
    ):
        population = fm.Population(fm.Classifier(Linear(4, 3)), 2)
        fm.setup(fm.Averaged(population, start=3), (X, Y), optimizer=optax.sgd, lr=0.1)


# Schedule-free


def schedule_free(lr):
    return optax.chain(optax.clip_by_global_norm(10.0), optax.contrib.schedule_free_sgd(lr, b1=0.9))


@pytest.fixture(scope="module")
def trained():
    system = fm.Classifier(Linear(4, 3))
    options = {"optimizer": schedule_free, "lr": 0.5, "batch_size": 8, "epochs": 3, "progress": False}
    return fm.fit(system, (X, Y), validation=(X, Y), **options)


def test_evaluations_use_the_averaged_weights_of_schedule_free_optimizers(trained):
    state, history = trained
    found = fm.optimizers.evaluation_weights(state)
    inner = state.optimizer_state[0][1]
    expected = optax.contrib.schedule_free_eval_params(inner, state.system)
    np.testing.assert_allclose(weights(found), weights(expected), rtol=1e-5, atol=1e-6)
    assert np.abs(weights(found) - weights(state.system)).max() > 1e-3
    loss = fm.evaluate(found, (X, Y))["loss"]
    assert loss != pytest.approx(fm.evaluate(state.system, (X, Y))["loss"], rel=1e-4)
    batch = fm.Labeled(X, Y)
    assert fm.evaluate(state, (X, Y))["loss"] == pytest.approx(loss) == pytest.approx(history["validation/loss"][-1])
    assert float(jax.jit(fm.loss)(state, batch)) == pytest.approx(loss)
    assert float(fm.eval_step(state, batch)["loss"].compute()) == pytest.approx(loss)
    np.testing.assert_allclose(fm.predict(state, X), fm.predict(found, X), rtol=1e-5)
    key = jax.random.key(0)
    assert float(jax.jit(fm.loss)(state, batch, fm.Train(key))) == pytest.approx(fm.evaluate(state.system, (X, Y))["loss"])


def test_only_the_parameters_of_that_optimizer_are_averaged():
    system = fm.Classifier(fm.models.Chain(Linear(4, 5), Linear(5, 3)))
    optimizer = {"model.layers.0": fm.optimizers.Optimizer(schedule_free, 0.5), "": fm.optimizers.Optimizer(optax.sgd, 0.5)}
    state, _ = fm.fit(system, (X, Y), optimizer=optimizer, steps=5, batch_size=8, progress=False)
    found = fm.optimizers.evaluation_weights(state)
    moved = [(np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state.system), strict=True)]
    assert moved == [True, True, False, False]


def test_a_population_with_a_schedule_free_optimizer():
    population = fm.Population(fm.Classifier(Linear(4, 3)), 2)
    options = {"optimizer": schedule_free, "lr": [0.5, 0.1], "batch_size": 8, "epochs": 2, "progress": False}
    state, history = fm.fit(population, (X, Y), validation=(X, Y), **options)
    for i, member in enumerate(fm.members(state)):
        own = fm.members(fm.optimizers.evaluation_weights(state))[i]
        np.testing.assert_allclose(weights(own), weights(fm.optimizers.evaluation_weights(member)), rtol=1e-5, atol=1e-6)
        assert history["validation/loss/members"][-1][i] == pytest.approx(fm.evaluate(member, (X, Y))["loss"])


def test_other_optimizers_have_the_weights_of_the_state():
    state = fm.setup(fm.Classifier(Linear(4, 3)), (X, Y), optimizer=optax.adam, lr=0.1)
    assert fm.optimizers.evaluation_weights(state) is state.system
