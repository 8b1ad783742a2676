"""Whose optimizer: the forms, the precedence, the groups."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import configure_optimizers, dispatch, update
from fulmen.optimizers import groups, unfreeze
from fulmen.train.gradients import learning_rates

PLAN = fm.Plan(steps_per_epoch=4, epochs=2, total_steps=8, batch_size=16)


BATCH = tuple(v[:16] for v in data(64))  # of the shape that `setup` has traced


def by_total(plan: fm.Plan):
    return 1.0 / plan.total_steps


def sgd_by_epoch(plan: "fm.Plan"):
    return fm.optimizers.Optimizer(optax.sgd, 1.0 / plan.steps_per_epoch)


class Own(Net):
    """Brings an optimizer."""


@dispatch
def configure_optimizers(net: Own):
    return fm.optimizers.Optimizer(optax.sgd, 0.5)


class Deep(fm.System):
    """Says for a field what its parts shall have."""

    first: Own
    others: list[Net]


class Telling(Deep):
    pass


@dispatch
def configure_optimizers(system: Telling, plan):
    return {"first": optax.sgd(1.0 / plan.epochs), "others": {"0": fm.frozen}}


def own():
    return Own(Linear(4, 3))


def ready(component):
    return fm.init(component, jax.random.key(0))


def grouped(component, hand=None):
    """From each group's path to the paths of its members."""
    component = ready(component)
    paths = [leaf.path for leaf in fm.leaves(component)]
    return {g.path: [paths[i] for i in g.members] for g in groups(component, hand, PLAN)}


SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("component", "hand", "expected"),
    [
        (pair(), SGD, {"": ["one.layer.weight", "one.layer.bias", "two.layer.weight", "two.layer.bias"]}),
        (
            pair(),
            {"one": SGD, "two": fm.frozen},
            {"one": ["one.layer.weight", "one.layer.bias"]},
        ),
        # by hand beats a component's own method
        (Deep(own(), [net()]), SGD, {"": [f"{p}.layer.{a}" for p in ("first", "others.0") for a in ("weight", "bias")]}),
        # a dict by hand goes on below: what it leaves out has its own method
        (
            Deep(own(), [net()]),
            {"others": SGD},
            {
                "first": ["first.layer.weight", "first.layer.bias"],
                "others": ["others.0.layer.weight", "others.0.layer.bias"],
            },
        ),
        # a parent's dict beats the part's own method
        (
            Telling(own(), [net(), net()]),
            {"others": {"1": SGD}},
            {
                "first": ["first.layer.weight", "first.layer.bias"],
                "others.1": ["others.1.layer.weight", "others.1.layer.bias"],
            },
        ),
        # down to an array
        (net(), {"layer": {"weight": SGD, "bias": fm.frozen}}, {"layer.weight": ["layer.weight"]}),
    ],
)
def test_groups(component, hand, expected):
    if isinstance(component, Telling):
        with pytest.raises(ValueError, match=r"no optimizer for 'others\.0"):  # by hand, the dict replaces the parent's
            grouped(Deep(own(), [net()]), {"first": SGD})
    assert grouped(component, hand) == expected


def test_parameters_that_inherit_form_one_group():
    """So that clipping by the global norm means what it says."""
    clip = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state = fm.setup(pair(), data(), optimizer=clip)
    after, _ = fm.train_step(state, data())
    moved = jax.tree.map(lambda a, b: a - b, state.system, after.system)
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "lr", "rate"),
    [
        (optax.adam, 1e-2, 1e-2),
        (optax.adam, optax.constant_schedule(0.3), 0.3),
        (optax.adam, fm.cosine(0.2), 0.2),
        (optax.adam, optax.linear_schedule(0.4, 0.0, 8), 0.4),
        (optax.adam, lambda step: 0.5 / (step + 1), 0.5),
        (optax.adam, by_total, 1 / 8),
        (sgd_by_epoch, None, 0.25),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=0.7), None, 0.7),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.4, 0.0, 8)), None, 0.4),
        (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.03, momentum=0.9)), None, 0.03),
        # of a finished transformation the rate is not known
        (optax.adam(0.05), None, None),
        (optax.adamw(optax.linear_schedule(0.4, 0.0, 8)), None, None),
    ],
)
def test_forms_and_their_learning_rate_in_the_logs(optimizer, lr, rate):
    given = {} if lr is None else {"lr": lr}
    state = fm.setup(net(), data(64), optimizer=optimizer, epochs=2, batch_size=16, **given)
    assert state.plan == PLAN
    _, logs = fm.train_step(state, BATCH)
    assert float(logs["lr"]) == pytest.approx(rate) if rate else "lr" not in logs


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (lambda rate: optax.MultiSteps(optax.sgd(rate), every_k_schedule=2), fm.schedules.linear(1.0)),
        (lambda rate: optax.MultiSteps(optax.sgd(rate), every_k_schedule=2), optax.linear_schedule(1.0, 0.0, 8)),
        (optax.sgd, fm.schedules.linear(1.0)),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 8)), None),
        (fm.plateau(optax.sgd, factor=0.5, patience=1, tolerance=0.99), fm.schedules.linear(1.0)),
    ],
    ids=["multisteps", "multisteps of optax", "schedule", "injected", "plateau"],
)
def test_the_logged_rate_is_the_one_of_the_update(optimizer, lr):
    state = fm.setup(net(), data(16), optimizer=optimizer, steps=8, **({"lr": lr} if lr else {}))

    @jax.jit
    def step(state):
        after = fm.apply_gradients(state, jax.tree.map(jnp.ones_like, state.system), value=jnp.ones(()))
        change = (state.system.layer.bias - after.system.layer.bias).mean()
        return after, change, learning_rates(state, after)["lr"].value

    used, logged = [], []
    for _ in range(8):
        state, change, rate = step(state)
        used.append(float(change))
        logged.append(float(rate))
    used, logged = np.asarray(used), np.asarray(logged)
    np.testing.assert_allclose(used[used > 0], logged[used > 0], rtol=1e-5)
    assert (used > 0).sum() == (4 if "MultiSteps" in str(state.optimizer_state) else 8)
    assert used[used > 0].min() < 0.2 < 0.8 < used.max()


def test_a_function_of_the_plan_is_recognized_by_its_annotation():
    with pytest.raises(AttributeError, match="total_steps") as caught:
        fm.setup(net(), data(), optimizer=optax.adam, lr=lambda plan: 1.0 / plan.total_steps, steps=4)
    assert "`def lr(plan: fm.Plan)`" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match=r"needs a learning rate.*\(plan: fm.Plan\)"):
        fm.setup(net(), data(), optimizer=lambda plan: optax.sgd(1.0 / plan.total_steps), steps=4)


class Kept(Net):
    """Says `fm.Frozen` where it means `fm.frozen`."""


@dispatch
def configure_optimizers(net: Kept):
    return fm.Frozen


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (pair(), {"optimizer": {"one": fm.Frozen, "two": optax.sgd}, "lr": 0.1}),
        (pair(), {"optimizer": {"one": fm.Frozen, "two": optax.sgd(0.1)}}),
        (pair(), {"optimizer": {"one": fm.Frozen(net()), "two": optax.sgd(0.1)}}),
        (pair(), {"optimizer": fm.Frozen, "lr": 0.1}),
        (Kept(Linear(4, 3)), {}),
    ],
)
def test_a_component_as_an_optimizer(component, options):
    with pytest.raises(TypeError, match=r"Frozen is a component, not an optimizer.*fm\.frozen"):
        fm.setup(component, data(), **options)


def test_the_frozen_optimizer_as_a_component():
    with pytest.raises(TypeError, match=r"`fm.frozen` is an optimizer.*`fm.Frozen\(Net"):
        fm.frozen(net())


def test_each_group_logs_its_rate():
    state = fm.setup(Deep(own(), [net()]), data(), optimizer={"others": fm.optimizers.Optimizer(optax.adam, 1e-3)})
    _, logs = fm.train_step(state, data())
    assert {k: float(v) for k, v in logs.items() if k.startswith("lr")} == {
        "lr/first": pytest.approx(0.5),
        "lr/others": pytest.approx(1e-3),
    }


def test_options_go_to_the_constructor():
    made = configure_optimizers(net(), optax.adamw, 1e-3, weight_decay=0.1, nesterov=True)
    assert repr(made) == "adamw(0.001, weight_decay=0.1, nesterov=True)"
    state = fm.setup(net(), data(), optimizer=optax.adamw, lr=1e-3, weight_decay=0.1, nesterov=True)
    assert float(state.optimizer.numbers["weight_decay"]) == pytest.approx(0.1)
    plain = fm.setup(net(), data(), optimizer=optax.adamw(1e-3, weight_decay=0.1, nesterov=True))
    a, b = (fm.train_step(s, data())[0].system.layer.weight for s in (state, plain))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_frozen_parameters_do_not_change():
    state = fm.setup(pair(), data(), optimizer=dict(one=optax.sgd(0.1), two=fm.frozen))
    after, _ = fm.train_step(state, data())
    np.testing.assert_array_equal(after.system.two.layer.weight, state.system.two.layer.weight)
    assert not np.array_equal(after.system.one.layer.weight, state.system.one.layer.weight)


def test_frozen_parameters_form_no_group():
    hand = {"one": optax.sgd, "two": fm.frozen}
    state = fm.setup(pair(), data(), optimizer=hand, lr=0.1)
    assert [g.path for g in groups(state.system, state.optimizer, state.plan)] == ["one"]
    again = pickle.loads(pickle.dumps(state))
    assert [g.path for g in groups(again.system, again.optimizer, again.plan)] == ["one"]
    assert repr(again.optimizer["two"]) == "fm.frozen" and again.structure is state.structure


def test_a_schedule_spans_the_run():
    _, history = fm.fit(net(), data(64), optimizer=optax.sgd, lr=fm.cosine(1.0), epochs=4, batch_size=16, progress=False)
    steps = np.array([3, 7, 11, 15])
    np.testing.assert_allclose(history["lr"], 0.5 * (1 + np.cos(np.pi * steps / 16)), rtol=1e-5)


@pytest.mark.parametrize("warmup", [4, 0.25])
def test_warm_up(warmup):
    schedule = fm.cosine(1.0, warmup=warmup)
    state = fm.setup(net(), data(64), optimizer=optax.sgd, lr=schedule, epochs=4, batch_size=16)
    assert float(fm.train_step(state, BATCH)[1]["lr"]) == 0.0
    rate = fm.cosine(1.0, warmup=warmup, end=0.1)(fm.Plan(total_steps=16))
    assert [round(float(rate(i)), 4) for i in (0, 2, 4, 16)] == [0.0, 0.5, 1.0, 0.1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {},
            ValueError,
            ["no optimizer for 'one.layer.weight'", "optimizer=optax.adam, lr=1e-3", "def configure_optimizers(pair: Pair)"],
        ),
        ({"optimizer": optax.adam}, TypeError, ["adam", "lr="]),
        ({"optimizer": optax.adam(1e-3), "lr": 1e-3}, TypeError, ["lr", "constructor"]),
        ({"lr": 1e-3}, TypeError, ["lr", "optimizer=optax.adam"]),
        ({"optimizer": "adam", "lr": 1e-3}, TypeError, ["lr", "constructor"]),
        (
            {"optimizer": "adam"},
            TypeError,
            ["optimizer must be an optax constructor or transformation", "got 'adam'; write optax.adam"],
        ),
        ({"optimizer": {"on": optax.sgd(0.1)}}, ValueError, ["'on'", "did you mean 'one'"]),
        ({"optimizer": optax.sgd, "lr": fm.cosine(0.1)}, ValueError, ["cosine", "epochs="]),
    ],
)
def test_bad_optimizers(options, error, words):
    with pytest.raises(error) as caught:
        fm.setup(pair(), data(), **options)
    for word in words:
        assert word in str(caught.value)


def test_a_parameter_of_a_system_is_trained():
    class Scaled(fm.System):
        part: Net
        temperature: fm.Parameter

    @dispatch
    def reduce_losses(system: Scaled, losses, batch):
        return losses["part"].mean() * system.temperature.value

    state = fm.setup(Scaled(net(), fm.Parameter(np.float32(2.0))), data(), optimizer=optax.sgd(0.1))
    after, _ = fm.train_step(state, data())
    assert float(after.system.temperature.value) < 2.0


def test_a_pair_with_separate_optimizers():
    state = fm.setup(Pair(own(), own()), data())
    assert [g.path for g in groups(state.system, None, state.plan)] == ["one", "two"]


# Of the plan, only what depends on it is compiled again


class Fresh(Net):
    """Compiled by no other test."""


class Paced(Net):
    """Reads the plan in its optimizer, by the epochs."""


@dispatch
def configure_optimizers(net: Paced, plan):
    return fm.optimizers.Optimizer(optax.sgd, 1.0 / plan.epochs)


class Counting(Net):
    """Reads the plan in its step."""


@dispatch
def update(net: Counting, state, batch, mode):
    state, logs = update.invoke(fm.Component, object, object, object)(net, state, batch, mode)
    return state, {**logs, "total": jnp.asarray(state.plan.total_steps, jnp.float32)}


GROUPS = {"layer.bias": fm.optimizers.every(2, optax.sgd), "": optax.sgd}


@pytest.mark.parametrize(
    ("make", "options", "again"),
    [
        (Fresh, {"optimizer": optax.sgd, "lr": 0.1}, False),
        (Fresh, {"optimizer": optax.sgd, "lr": optax.exponential_decay(0.1, 10, 0.9)}, False),
        (Fresh, {"optimizer": optax.adam(0.1)}, False),
        (Fresh, {"optimizer": GROUPS, "lr": 0.1}, False),
        (Fresh, {"optimizer": optax.sgd, "lr": fm.cosine(0.1)}, True),
        (Fresh, {"optimizer": GROUPS, "lr": fm.cosine(0.1)}, True),
        (Fresh, {"optimizer": unfreeze(optax.sgd, at=0.5), "lr": 0.1}, True),
        (Paced, {}, True),
        (Counting, {"optimizer": optax.sgd, "lr": 0.1}, True),
    ],
)
def test_another_length_of_the_run_compiles_only_what_depends_on_it(make, options, again):
    alive = []

    def run(epochs):
        with Compilations() as compiled:
            state = fm.setup(make(Linear(4, 3)), data(64), epochs=epochs, batch_size=16, **options)
            _, logs = fm.train_step(state, BATCH)
            fm.eval_step(state, BATCH)
            _, history = fm.fit(state, data(64), epochs=epochs, batch_size=16, progress=False)
        alive.append(state)  # its programs with it
        if make is Paced:
            assert float(logs["lr"]) == history["lr"][0] == pytest.approx(1 / epochs)
        if make is Counting:
            assert float(logs["total"]) == history["total"][0] == 4 * epochs
        return {name for name in compiled.names if "program" in name or "_step" in name}

    first = run(2)
    assert any("program" in name for name in first) and any("train_step" in name for name in first)
    assert bool(run(4)) == again
