"""`fm.tune`: a learning rate by a range test, and a batch size by its speed."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch
from fulmen.train.tune import batch_speed, range_test

matplotlib.use("Agg")
import matplotlib.pyplot as plt

X = data(64)[0]
Y = X[:, :3].argmax(1).astype(np.int32)


class Bowl(fm.Model):
    """The loss ½ c ‖w‖², for which gradient descent converges at rates below 2 / c and fastest at 1 / c."""

    weight: jax.Array
    curvature: float = 10.0


@dispatch
def loss(bowl: Bowl, batch):
    return bowl.curvature * jnp.sum(bowl.weight**2) / 2


def bowl(**options):
    return fm.tune.learning_rate(Bowl(jnp.ones(3)), X, optimizer=optax.sgd, **options)


def test_the_rate_grows_exponentially_and_the_losses_are_those_of_the_run():
    found = bowl(lowest=1e-4, highest=1e-2, steps=21, smoothing=0.0, batch_size=8)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 1e-2, 21), rtol=1e-6)
    factors = np.cumprod(np.r_[1, 1 - 10 * found.rates[:-1]])
    np.testing.assert_allclose(found.losses, 15 * factors**2, rtol=1e-4)
    np.testing.assert_array_equal(found.smoothed, found.losses)


def test_a_run_ends_when_it_diverges_and_the_suggestion_is_below():
    found = bowl(lowest=1e-3, highest=100.0, steps=100, batch_size=8)
    assert len(found.rates) < 100 and found.rates[-1] > 0.2  # 2 / c
    assert 0.005 < found.suggestion < 0.2
    assert found.smoothed[-1] > 4 * found.smoothed.min()


def test_the_smoothed_loss_has_no_bias():
    np.testing.assert_allclose(range_test._smoothed(np.full(5, 3.0), 0.9), 3.0)
    np.testing.assert_allclose(range_test._smoothed(np.array([1.0, 2.0]), 0.5), [1, (0.25 + 1) / 0.75])


def test_there_is_no_suggestion_without_a_fall():
    falling = np.r_[np.ones(5), np.linspace(1, 0, 10)]
    rates = np.geomspace(1e-3, 1, 15)
    assert rates[4] <= range_test._steepest(rates, falling, 0.5) <= rates[-1]
    assert range_test._steepest(rates, falling[::-1], 0.5) is None
    assert range_test._steepest(rates[:5], falling[:5], 0.5) is None
    assert range_test._steepest(rates, np.full(15, np.nan), 0.5) is None


def test_a_suggestion_is_not_made_by_the_noise_of_the_first_losses():
    losses = np.concatenate([[3.0, 1.0, 2.5], np.full(37, 2.0), np.linspace(2.0, 1.0, 20)])
    rates = np.geomspace(1e-6, 1.0, 60)
    assert range_test._steepest(rates, range_test._smoothed(losses, 0.9), 0.9) > rates[40]


def test_the_suggestion_trains():
    system = fm.Classifier(fm.models.MLP(4, 16, 3))
    found = fm.tune.learning_rate(system, (X, Y), batch_size=16, steps=80)
    options = {"optimizer": optax.adam, "batch_size": 16, "epochs": 20, "progress": False}
    suggested, low = (
        fm.fit(system, (X, Y), lr=lr, **options)[1]["loss"] for lr in (found.suggestion, found.suggestion / 300)
    )
    assert suggested[-1] < 0.8 * suggested[0] and suggested[-1] < low[-1]


def test_searches_share_a_program_and_take_other_systems():
    from tiny import Compilations

    system = fm.Classifier(Linear(4, 3))
    fm.tune.learning_rate(system, (X, Y), steps=10, batch_size=16)
    with Compilations() as count:
        fm.tune.learning_rate(system, (X, Y), steps=10, batch_size=16, highest=0.5)
    assert "jit(_train_step)" not in count.names, count.names
    game, raw = fm.testing.tiny("game")
    for other, rows in ((game, raw), (fm.Population(system, 2), (X, Y)), (system, lambda: iter([(X, Y)] * 12))):
        found = fm.tune.learning_rate(other, rows, steps=10)
        assert len(found.losses) == 10


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lowest": 1.0, "highest": 0.1}, ValueError, "0 < lowest < highest, got 1.0 and 0.1"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be .* got 1.0"),
        ({"steps": 0}, ValueError, "steps must be a positive integer"),
        ({"optimizer": optax.sgd(0.1)}, TypeError, "lr: there is no optimizer constructor"),
    ],
)
def test_wrong_arguments_of_learning_rate(options, error, words):
    with pytest.raises(error, match=words):
        fm.tune.learning_rate(Bowl(jnp.ones(3)), X, **{"optimizer": optax.sgd, **options})


# Batch sizes


class Large(fm.Model):
    """Does not fit into memory with more than 16 examples."""

    layer: Linear
    error: str


@dispatch
def loss(model: Large, batch):
    if len(batch) > 16:
        raise {"python": MemoryError(), "jax": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), "other": KeyError("x")}[
            model.error
        ]
    return jnp.mean(model.layer(batch.x) ** 2)


def test_sizes_are_measured(monkeypatch):
    speeds = {8: 100.0, 16: 180.0, 32: 300.0, 64: 310.0}
    monkeypatch.setattr(batch_speed, "_measured", lambda system, data, size, seconds, **options: size / speeds[size])
    found = fm.tune.batch_size(fm.Classifier(Linear(4, 3)), (X, Y))
    assert found.sizes.tolist() == [8, 16, 32, 64] and found.suggestion == 32 and found.failed is None
    np.testing.assert_allclose(found.examples_per_second, [*speeds.values()])
    assert fm.tune.batch_size(fm.Classifier(Linear(4, 3)), (X, Y), tolerance=0.5).suggestion == 16
    speeds |= {16: 100.0, 32: 100.0}
    assert fm.tune.batch_size(fm.Classifier(Linear(4, 3)), (X, Y)).sizes.tolist() == [8, 16, 32]
    assert fm.tune.batch_size(fm.Classifier(Linear(4, 3)), (X, Y), sizes=[8, 16, 32, 64]).sizes.tolist() == [8, 16, 32, 64]


@pytest.mark.parametrize("kind", ["python", "jax"])
def test_it_stops_where_memory_runs_out(kind):
    found = fm.tune.batch_size(Large(Linear(4, 3), kind), X, sizes=[8, 16, 32, 64], seconds=0.01)
    assert found.sizes.tolist() == [8, 16] and found.failed == 32
    assert isinstance(found.error, batch_speed.OUT_OF_MEMORY) and "failed" in repr(found) and "32" in fm.show(found)
    assert (found.seconds > 0).all() and found.suggestion in (8, 16)


def test_other_errors_and_a_first_size_that_fails_are_raised():
    with pytest.raises(KeyError):
        fm.tune.batch_size(Large(Linear(4, 3), "other"), X, sizes=[8, 32], seconds=0.01)
    with pytest.raises(MemoryError):
        fm.tune.batch_size(Large(Linear(4, 3), "python"), X, sizes=[32, 64], seconds=0.01)


@pytest.mark.parametrize(
    ("raw", "options", "error", "words"),
    [
        (X, {"sizes": [16, 8]}, ValueError, r"sizes must be in increasing order and at most 64.*got \[16, 8\]"),
        (X, {"sizes": [128]}, ValueError, "at most 64"),
        (X, {"sizes": [0]}, ValueError, "sizes must be a positive integer"),
        (iter([X]), {}, TypeError, "needs arrays"),
    ],
)
def test_wrong_arguments_of_batch_size(raw, options, error, words):
    with pytest.raises(error, match=words):
        fm.tune.batch_size(Bowl(jnp.ones(3)), raw, optimizer=optax.sgd, **options)


def test_a_state_is_refused():
    state = fm.setup(fm.Classifier(Linear(4, 3)), (X, Y), optimizer=optax.sgd, lr=0.1)
    for search in (fm.tune.learning_rate, fm.tune.batch_size):
        with pytest.raises(TypeError, match=r"takes a component, got a State; write state\.system"):
            search(state, (X, Y))


# Display


def draw(search):
    figure = fm.plot(search)
    figure.draw_without_rendering()
    plt.close(figure)
    return figure.axes[0]


def test_searches_are_drawn_and_printed():
    found = bowl(lowest=1e-3, highest=100.0, steps=60, batch_size=8)
    axes = draw(found)
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.texts] == [f"suggestion {found.suggestion:.2g}"]
    np.testing.assert_array_equal(axes.lines[0].get_data(), [found.rates, found.losses])
    assert repr(found).splitlines()[0].split() == ["lr", "loss", "smoothed"] and repr(found).count("suggestion") == 1
    assert len(repr(found).splitlines()) <= 14 and "suggestion" in fm.show(found) == found._repr_html_()
    without = range_test.LearningRateSearch(found.rates, found.losses, found.smoothed, None)
    assert not draw(without).texts and "suggestion" not in repr(without)
    sizes = batch_speed.BatchSizeSearch(np.array([8, 16, 32]), np.array([0.1, 0.1, 0.2]), 16, 64, MemoryError())
    axes = draw(sizes)
    assert [t.get_text() for t in axes.texts] == ["suggestion 16"] and "64" in axes.get_xlabel()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [80, 160, 160])
    assert [line.split()[0] for line in repr(sizes).splitlines()] == ["batch", "8", "16", "32", "64"]
