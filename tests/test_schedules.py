"""Schedules against optax's own, their lengths against the plan, plateaus, and their pictures."""

import warnings

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from tiny import Compilations, data, net

import fulmen as fm
from fulmen.optimizers import unfreeze

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOTAL = 100
PLAN = fm.Plan(total_steps=TOTAL, steps_per_epoch=20, epochs=5)
STEPS = np.arange(TOTAL + 20, dtype=np.int32)


def values(rate, steps=STEPS):
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        return jax.device_get(jax.jit(jax.vmap(rate))(np.asarray(steps, np.int32)))


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (fm.cosine(0.3, end=0.03), optax.cosine_decay_schedule(0.3, TOTAL, alpha=0.1)),
        (fm.cosine(0.3, warmup=10), optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, TOTAL)),
        (fm.schedules.linear(0.3, end=0.1), optax.linear_schedule(0.3, 0.1, TOTAL)),
        (
            fm.schedules.linear(0.3, warmup=0.2),
            optax.join_schedules([optax.linear_schedule(0.0, 0.3, 20), optax.linear_schedule(0.3, 0.0, 80)], [20]),
        ),
        (fm.one_cycle(0.3), optax.cosine_onecycle_schedule(TOTAL, 0.3)),
        (
            fm.one_cycle(0.3, rise=50, start=0.1, end=0.01),
            optax.cosine_onecycle_schedule(TOTAL, 0.3, 0.5, div_factor=10, final_div_factor=10),
        ),
        (fm.schedules.step_decay(0.3), optax.piecewise_constant_schedule(0.3, {50: 0.1, 75: 0.1})),
        (
            fm.schedules.step_decay(0.3, factor=0.5, at=(0.1, 40, 90)),
            optax.piecewise_constant_schedule(0.3, {10: 0.5, 40: 0.5, 90: 0.5}),
        ),
        (fm.warmup(0.3, 0.1), optax.warmup_constant_schedule(0.0, 0.3, 10)),
        (
            fm.warmup(optax.exponential_decay(0.3, 10, 0.5), 5),
            optax.join_schedules([optax.linear_schedule(0.0, 0.3, 5), optax.exponential_decay(0.3, 10, 0.5)], [5]),
        ),
        (fm.warmup(fm.cosine(0.3, end=0.1), 0.25), fm.cosine(0.3, warmup=0.25, end=0.1)(PLAN)),
        (fm.warmup(0.3, 0), optax.constant_schedule(0.3)),
    ],
)
def test_values_agree_with_optax(schedule, reference):
    rate = schedule(PLAN)
    found, expected = values(lambda step: (rate(step), reference(step)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


ALL = [
    fm.cosine(0.5, warmup=0.1),
    fm.schedules.linear(0.5, warmup=0.1),
    fm.one_cycle(0.5),
    fm.schedules.step_decay(0.5),
    fm.warmup(0.5, 0.1),
    fm.warmup(fm.schedules.step_decay(0.5), 0.1),
]


@pytest.mark.parametrize("schedule", ALL)
def test_in_a_run_the_peak_is_data(schedule):
    """And equal schedules are equal to jit."""
    options = {"optimizer": optax.sgd, "epochs": 4, "batch_size": 16}
    x, y = data(64)
    with Compilations() as compiled:
        _, history = fm.fit(net(), (x, y), lr=schedule, progress=False, **options)
    assert [name for name in compiled.names if "program" in name]
    plan = fm.Plan(total_steps=16)
    np.testing.assert_allclose(history["lr"], values(schedule(plan), [3, 7, 11, 15]), rtol=1e-5, atol=1e-7)
    path = "optimizer.schedule." + ("schedule." * (type(schedule).__name__ == "Warmup"))
    rate = "rate" if "Constant" in repr(schedule) else "peak"
    with Compilations() as compiled:
        fm.fit(fm.setup(net(), (x, y), lr=jax.tree.map(lambda v: v, schedule), **options), (x, y), epochs=4, progress=False)
        changed = fm.replace(fm.setup(net(), (x, y), lr=schedule, **options), {path + rate: jnp.asarray(0.25)})
        _, half = fm.fit(changed, (x, y), epochs=4, progress=False)
    assert not [name for name in compiled.names if "program" in name]
    np.testing.assert_allclose(half["lr"], history["lr"] / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "plan", "message"),
    [
        (fm.schedules.linear(0.1), fm.Plan(), "linear needs the length of the run: give `steps="),
        (fm.one_cycle(0.1), fm.Plan(), "one_cycle needs the length of the run"),
        (fm.schedules.step_decay(0.1), fm.Plan(), "step_decay, at needs the length of the run"),
        (fm.warmup(0.1, 0.5), fm.Plan(), "warmup needs the length of the run"),
        (fm.warmup(0.1, 100), PLAN, "warmup: `steps` must be below the length of the run, 100 steps.*got 100"),
        (fm.cosine(0.1, warmup=100), PLAN, "cosine: a warm-up of 100 steps must be shorter than the run, 100 steps"),
        (
            fm.one_cycle(0.1, rise=100),
            PLAN,
            "one_cycle: a rise of 100 steps must be at least 1 and shorter than the run, 100",
        ),
        (fm.schedules.step_decay(0.1, at=(0.5, 1.0)), fm.Plan(), "step_decay, at needs the length of the run"),
        (fm.cosine(0.1, warmup=1.0), PLAN, "cosine: a warm-up of 100 steps must be shorter than the run, 100 steps"),
    ],
)
def test_invalid_lengths(schedule, plan, message):
    with pytest.raises(ValueError, match=message):
        schedule(plan)


@pytest.mark.parametrize("n", [3, 7, 10, 13])
def test_a_line_ends_at_0_and_not_below(n):
    rate = fm.schedules.linear(1.0)(fm.Plan(total_steps=n))
    assert [float(rate(step)) for step in (n, n + 5)] == [0, 0] and float(rate(n - 1)) > 0


def test_schedules_in_steps_need_no_length_of_the_run():
    np.testing.assert_allclose([fm.warmup(0.3, 10)(fm.Plan())(step) for step in (5, 50)], [0.15, 0.3], rtol=1e-6)
    np.testing.assert_allclose(
        [fm.schedules.step_decay(0.3, at=(10,))(fm.Plan())(step) for step in (5, 50)], [0.3, 0.03], rtol=1e-6
    )


@pytest.mark.parametrize("length", [-1, 1.5, 10.0, "half"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda length: fm.cosine(0.1, warmup=length), "warmup"),
        (lambda length: fm.schedules.linear(0.1, warmup=length), "warmup"),
        (lambda length: fm.one_cycle(0.1, rise=length), "rise"),
        (lambda length: fm.schedules.step_decay(0.1, at=(0.5, length)), "at"),
        (lambda length: fm.warmup(0.1, length), "steps"),
        (lambda length: unfreeze(optax.sgd(0.1), at=length), "at"),
    ],
)
def test_an_int_counts_steps_and_a_float_is_a_fraction(make, name, length):
    with pytest.raises(ValueError, match=rf"`{name}` must be a number of steps \(an int\).*got {length!r}"):
        make(length)


def test_one_step_and_the_whole_run_are_two_schedules():
    """Also where one takes the other's place in a compiled program."""
    for at, expected in [((1,), [0.3, 0.03]), ((1.0,), [0.3, 0.3]), ((np.int32(1),), [0.3, 0.03]), ((1.0,), [0.3, 0.3])]:
        state = fm.setup(net(), data(), optimizer=optax.sgd, lr=fm.schedules.step_decay(0.3, at=at), steps=50)
        found = [float(logs["lr"]) for _, logs in fm.steps(state, data(), steps=2)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# Longer than the run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"optimizer": optax.sgd, "lr": fm.schedules.step_decay(0.1, at=(50, 150))},
            "has 151 updates, but the run has only 100",
        ),
        (
            {"optimizer": {"layer": optax.sgd}, "lr": fm.schedules.step_decay(0.1, at=(150,))},
            "schedule for 'layer' has 151 updates",
        ),
        ({"optimizer": fm.plateau(optax.sgd), "lr": fm.schedules.step_decay(0.1, at=(150,))}, "has 151 updates"),
        ({"optimizer": unfreeze(optax.sgd, at=50), "lr": fm.schedules.step_decay(0.1, at=(150,))}, "has 201 updates"),
        ({"optimizer": optax.sgd, "lr": fm.warmup(fm.schedules.step_decay(0.1, at=(150,)), 10)}, "has 161 updates"),
    ],
)
def test_setup_warns_of_a_schedule_that_is_longer_than_the_run(options, words):
    with pytest.warns(UserWarning, match=words) as caught:
        fm.setup(net(), data(), steps=TOTAL, **options)
    assert len(caught) == 1  # and the trace of the step says it no second time
    assert caught[0].filename == __file__  # the line to change, and not one of the library's
    fm.setup(net(), data(), steps=2000, **options)


# Past the plan


ENDLESS = optax.exponential_decay(0.1, 10, 0.9)


def by_length(plan: fm.Plan):
    return 0.1 / plan.total_steps


def falling(plan: fm.Plan):
    return lambda step: 0.1 / (step + plan.total_steps)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"optimizer": optax.sgd, "lr": 0.1}, False),
        ({"optimizer": optax.sgd(0.1)}, False),
        ({"optimizer": optax.sgd, "lr": ENDLESS}, False),
        ({"optimizer": optax.sgd, "lr": by_length}, False),
        ({"optimizer": optax.sgd, "lr": optax.linear_schedule(0.1, 0.0, 4)}, False),  # whose end is not known
        ({"optimizer": optax.sgd(optax.linear_schedule(0.1, 0.0, 4))}, False),
        ({"optimizer": optax.sgd, "lr": fm.warmup(0.1, 2)}, False),
        ({"optimizer": optax.sgd, "lr": fm.warmup(ENDLESS, 2)}, False),
        ({"optimizer": fm.plateau(optax.sgd(0.1))}, False),
        ({"optimizer": unfreeze(optax.sgd(0.1), at=0.5)}, False),
        ({"optimizer": optax.sgd, "lr": fm.cosine(0.1)}, True),
        ({"optimizer": optax.sgd, "lr": fm.warmup(fm.schedules.linear(0.1), 2)}, True),
        ({"optimizer": optax.sgd, "lr": fm.schedules.step_decay(0.1)}, True),
        ({"optimizer": optax.sgd, "lr": falling}, True),
        ({"optimizer": {"layer.bias": optax.sgd, "": optax.sgd(0.1)}, "lr": fm.cosine(0.1)}, True),
        ({"optimizer": unfreeze(optax.sgd, at=0.5), "lr": fm.cosine(0.1)}, True),
    ],
)
def test_a_run_past_its_plan_warns_where_a_schedule_has_ended(options, warned):
    x, y = data(16)
    state = fm.setup(net(), (x, y), steps=4, batch_size=16, **options)
    for run in (lambda s, **o: fm.fit(s, (x, y), progress=False, **o), lambda s, **o: fm.steps(s, (x, y), **o)):
        run(state, steps=4)  # to its end and no further
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(state, steps=5)
        assert {w.filename for w in caught} <= {__file__}
        assert [str(w.message).partition(": ")[0] for w in caught] == (
            ["this run ends at step 5, but the state's plan ends at 4"] if warned else []
        )


# Plateaus


def plateaued(optimizer):
    """The scale after each epoch of a model that cannot learn: its loss does not fall after the first epoch."""
    x, y = data(32)
    state = fm.setup(net(), (0 * x, y), optimizer=optimizer, batch_size=8, epochs=8)
    scales = []
    for i, (now, _) in enumerate(fm.steps(state, (0 * x, y), epochs=8)):
        if i % 4 == 3:
            scales.append(_scale(now))
    return scales


def _scale(state):
    found = jax.tree.leaves(state.optimizer_state, is_leaf=lambda v: hasattr(v, "plateau_count"))
    return float(next(v.scale for v in found if hasattr(v, "plateau_count")))


def test_a_plateau_is_counted_in_epochs():
    optimizer = fm.plateau(fm.optimizers.Optimizer(optax.sgd, 0.0), factor=0.5, patience=2, floor=0.2)
    with Compilations() as compiled:
        scales = plateaued(optimizer)
    step_was_compiled = [name for name in compiled.names if "train_step" in name]
    assert scales == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2])
    assert repr(optimizer).startswith("Plateau(optimizer=sgd(0")
    again = fm.plateau(fm.optimizers.Optimizer(optax.sgd, 0.0), factor=0.5, patience=2, floor=0.2)
    x, y = data(32)
    with Compilations() as compiled:  # an equal one is the same to jit
        other = fm.setup(net(), (0 * x, y), optimizer=again, batch_size=8, epochs=8)
        fm.train_step(other, (0 * x[:8], y[:8]))
    assert step_was_compiled and not [name for name in compiled.names if "train_step" in name]


def test_a_plateau_scales_the_steps_of_any_transformation():
    x, y = data(32)
    optimizer = fm.plateau(optax.sgd(0.1), factor=0.5, patience=1, tolerance=0.9)
    state = fm.setup(net(), (x, y), optimizer=optimizer)
    moved = []

    @jax.jit
    def slope(system):
        return jax.grad(lambda v: fm.loss(fm.replace(system, {"layer.bias": v}), fm.Labeled(x, y)).mean())(system.layer.bias)

    for _ in range(3):
        new, _ = fm.train_step(state, (x, y))
        step = np.asarray(state.system.layer.bias - new.system.layer.bias)
        moved.append((step / np.asarray(slope(state.system))).mean())
        state = new
    # The first step is the best so far; each one after it falls by less than nine tenths.
    np.testing.assert_allclose(moved, [0.1, 0.05, 0.025], rtol=1e-3)


def test_a_factor_that_makes_no_sense():
    with pytest.raises(ValueError, match="actor must be"):
        fm.setup(net(), data(), optimizer=fm.plateau(optax.sgd(0.1), factor=1.5))


# Pictures


@pytest.mark.parametrize("schedule", [*ALL, optax.linear_schedule(0.1, 0.0, 50), lambda step: 0.1 / (step + 1)])
def test_a_schedule_has_a_picture(schedule):
    options = {"plan": PLAN} if not callable(getattr(schedule, "__get__", None)) else {"steps": TOTAL}
    figure = fm.plot(schedule, **options)
    (axes,) = figure.axes
    steps, shown = axes.lines[0].get_data()
    rate = schedule(PLAN) if "plan" in options else schedule
    assert steps[0] == 0 and steps[-1] == TOTAL
    np.testing.assert_allclose(shown, values(rate, steps), rtol=1e-5, atol=1e-7)
    assert axes.get_xlabel().startswith("step") and axes.get_ylabel() == "learning rate"
    low, high = axes.get_ylim()
    assert low <= min(shown) and high >= max(shown)
    assert len(axes.lines) == (1 + 4 if "plan" in options else 1)  # and the ends of epochs
    figure.draw_without_rendering()
    plt.close(figure)


def test_a_picture_suits_light_and_dark_pages():
    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    figure = fm.plot(fm.cosine(1e-3))
    (axes,) = figure.axes
    assert figure.patch.get_alpha() == axes.patch.get_alpha() == 0
    colours = [
        axes.lines[0].get_color(),
        axes.title.get_color(),
        axes.xaxis.label.get_color(),
        axes.get_xticklabels()[0].get_color(),
    ]
    for colour in colours:
        for page in ("white", "#111111"):
            lighter, darker = sorted((luminance(colour), luminance(page)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) > 3.5
    plt.close(figure)
