"""Games: players at different rates, one after another, several in one field, systems as players, batches of their own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.optimizers import every, groups
from fulmen.optimizers.update_schedule import update_schedule

X, Y = data(16)


class Player(fm.Model):
    """Counts the steps in which it moves, in a buffer and in `after_update`."""

    layer: Linear
    seen: fm.Buffer
    steps: float = 0.0


@dispatch
def forward(player: Player, x):
    return fm.record(player.layer(x), player.seen, player.seen.value + 1)


@dispatch
def after_update(player: Player, batch, mode):
    return fm.replace(player, steps=player.steps + 1)


class Duel(fm.Game):
    first: Player
    second: Player


@dispatch
def losses(duel: Duel, batch):
    value = (duel.first(batch.x) * duel.second(batch.x)).mean()
    return {"first": value, "second": -0.5 * value}


class Paced(Duel):
    every: int = 3


@dispatch
def intervals(duel: Paced):
    return {"first": duel.every}


def player():
    return Player(Linear(4, 3), fm.Buffer(jnp.int32(0)))


def same(a, b, **tolerance):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **{"rtol": 1e-6, "atol": 1e-7, **tolerance})


def differs(a, b):
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Rates

SAID = {
    "by the optimizer": (Duel, {"first": every(3, optax.adam), "second": optax.adam}),
    "by the game": (Paced, {"first": optax.adam, "second": optax.adam}),
    "by the game, of one optimizer": (Paced, optax.adam),
}


def started(said, **options):
    kind, optimizer = SAID[said]
    return fm.setup(kind(player(), player()), X, optimizer=optimizer, **{"lr": fm.cosine(0.1), "steps": 6, **options})


@pytest.fixture(scope="module", params=SAID)
def run(request):
    """The states and logs of six steps in which the first player moves in the third and the sixth."""
    state = started(request.param)
    return [(state, None), *fm.steps(state, X, steps=6)]


def test_a_player_is_updated_only_in_the_last_step_of_its_interval(run):
    for step, ((before, _), (after, _)) in enumerate(itertools.pairwise(run)):
        moves = step % 3 == 2
        assert differs(before.system.first, after.system.first) == moves
        assert differs(before.optimizer_state[0], after.optimizer_state[0]) == moves
        assert differs(before.system.second.layer, after.system.second.layer)
    first, second = run[-1][0].system.first, run[-1][0].system.second
    assert (int(first.seen.value), float(first.steps)) == (2, 2.0)
    assert (int(second.seen.value), float(second.steps)) == (6, 6.0)
    counts = [[int(n) for _, n in optax.tree.get_all_with_path(s, "count")] for s in run[-1][0].optimizer_state]
    assert counts == [[2, 2], [6, 6]]


def test_a_schedule_counts_the_updates_of_its_player(run):
    rates = {name: [float(logs[name]) for _, logs in run[1:]] for name in run[1][1] if name.startswith("lr")}
    first = rates.pop("lr/first")
    (second,) = rates.values()
    np.testing.assert_allclose(first, 0.05 * (1 + np.cos(np.pi * np.array([0, 0, 0, 1, 1, 1]) / 2)), rtol=1e-5)
    np.testing.assert_allclose(second, 0.05 * (1 + np.cos(np.pi * np.arange(6) / 6)), rtol=1e-5)


def test_losses_of_players_without_an_update_are_logged(run):
    assert all({"loss", "loss/first", "loss/second"} <= set(logs) for _, logs in run[1:])


def test_fit_updates_players_as_steps_do(run):
    state, history = fm.fit(run[0][0], X, steps=4, progress=False)
    state, _ = fm.fit(state, X, steps=2, progress=False)  # goes on in the midst of a cycle
    same(state.system, run[-1][0].system)
    same(state.optimizer_state, run[-1][0].optimizer_state)
    assert "lr/first" in history


def test_inside_a_custom_jit_the_players_to_update_are_computed(run):
    step = jax.jit(lambda state: fm.train_step(state, X)[0])
    state = run[0][0]
    for expected, _ in run[1:4]:
        state = step(state)
        same(state.system, expected.system)


def test_gradients_through_steps_with_an_interval():
    state = started("by the optimizer", lr=0.1)

    def after(lr):
        now = fm.replace(state, {"optimizer.first.optimizer.lr": lr})
        for _ in range(3):
            now, _ = fm.train_step(now, X)
        return now.system.first.layer.bias.sum()

    assert float(jax.grad(after)(0.1)) != 0


def test_without_intervals_there_is_one_program():
    state = fm.setup(Duel(player(), player()), X, optimizer=optax.adam, lr=0.1)
    assert (update_schedule(state).every, update_schedule(state).sets()) == ([], [frozenset()])


def test_one_program_per_set_of_updated_players():
    state = fm.setup(
        Duel(player(), player()),
        X,
        optimizer={"first": every(3, optax.sgd(0.1)), "second": every(2, optax.sgd(0.1))},
    )
    schedule = update_schedule(state)
    seen = [schedule.at(step) for step in range(12)]
    assert {*seen} == {*schedule.sets()} and len(schedule.sets()) == 4
    assert seen[:6] == seen[6:]
    assert ["first.layer.bias" in rest for rest in seen[:6]] == [True, True, False] * 2
    assert ["second.seen" in rest for rest in seen[:6]] == [True, False] * 3


class Outer(fm.Game):
    inner: Paced
    other: Player


@dispatch
def losses(outer: Outer, batch):
    return {"inner": fm.losses(outer.inner, batch), "other": outer.other(batch.x).mean()}


@dispatch
def intervals(outer: Outer):
    return {"inner": 2}


def test_the_rates_of_a_game_in_a_game_multiply():
    outer = Outer(Paced(player(), player()), player())
    state = fm.setup(outer, X, optimizer={"": optax.sgd(0.1), "inner.second": every(5, optax.sgd(0.1))})
    found = {group.path: group.every for group in groups(state.system, state.optimizer, state.plan)}
    assert found == {"inner.first": 6, "inner.second": 10, "": 1}


@pytest.mark.parametrize(
    "inside",
    [
        lambda o: every(2, o),
        lambda o: fm.plateau(every(2, o)),
        lambda o: fm.unfreeze(every(2, o), at=4),
    ],
)
def test_every_inside_and_around_others(inside):
    state = fm.setup(net(), (X, Y), optimizer=every(2, inside(fm.optimizers.Optimizer(optax.sgd, 0.1))), steps=16)
    (group,) = groups(state.system, state.optimizer, state.plan)
    assert group.every == 4
    assert update_schedule(state).at(2) and not update_schedule(state).at(3)


def test_unfreezing_counts_moves():
    optimizer = fm.unfreeze(every(2, fm.optimizers.Optimizer(optax.sgd, 0.1)), at=4)
    state = fm.setup(net(), (X, Y), optimizer=optimizer, steps=8)
    moved = [
        differs(a.system, b.system) for (a, _), (b, _) in itertools.pairwise([(state, 0), *fm.steps(state, (X, Y), steps=8)])
    ]
    assert moved == [False] * 5 + [True, False, True]


def test_clipping_by_a_global_norm_is_each_groups_own():
    clipped = lambda size: optax.chain(optax.clip_by_global_norm(size), optax.sgd(1.0))
    state = fm.setup(Duel(player(), player()), 10 * X, optimizer={"first": every(2, clipped(0.01)), "second": clipped(0.02)})
    run = [state, *(state for state, _ in fm.steps(state, 10 * X, steps=2))]
    norm = lambda a, b: float(optax.tree.norm(jax.tree.map(jnp.subtract, a.layer, b.layer)))
    found = [
        (norm(a.system.first, b.system.first), norm(a.system.second, b.system.second)) for a, b in itertools.pairwise(run)
    ]
    np.testing.assert_allclose(found, [(0.0, 0.02), (0.01, 0.02)], rtol=1e-3)


def test_summary_and_check_report_intervals():
    game = Paced(player(), player())
    names = [cost.name for cost in fm.summary(game, X, optimizer=optax.adam, lr=0.1).costs]
    assert names == ["training step without first", "training step", "evaluation"]
    report = fm.check(game, X, optimizer=optax.adam, lr=0.1)
    assert any((f.what, f.where) == ("rates: updated in the last of every 3 steps", "first") for f in report.findings)
    assert report.ok and not report.warnings


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "5"])
def test_every_with_an_invalid_number_of_steps(n):
    with pytest.raises(ValueError, match=rf"every: n must be a positive integer, .*got {n!r}"):
        every(n, optax.adam(0.1))


class Wrong(Duel):
    every: int
    name: str = "first"


@dispatch
def intervals(duel: Wrong):
    return {duel.name: duel.every}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((0,), r"`intervals` of Wrong: first must be a positive integer, .*got 0"),
        ((2, "frist"), r"`intervals` of Wrong names 'frist', which does not exist; it has: first, second"),
    ],
)
def test_invalid_intervals(wrong, message):
    with pytest.raises(ValueError, match=message):
        fm.setup(Wrong(player(), player(), *wrong), X, optimizer=optax.sgd(0.1))


def test_a_run_that_never_updates_a_part():
    with pytest.warns(UserWarning, match="'first' is updated every 3 steps, but the run has only 2: never"):
        started("by the game", steps=2)


# One after another


class Ordered(Duel):
    """Its losses come in the other order."""


@dispatch
def losses(duel: Ordered, batch):
    value = (duel.first(batch.x) * duel.second(batch.x)).mean()
    return {"second": -0.5 * value, "first": value}


@jax.jit
def joint(first, second):
    return (first.layer(X) * second.layer(X)).mean()


@jax.jit
def one_after_another(first, second):
    """The second player after a step of gradient descent, and the layer of the first after its own, which follows."""
    down = lambda part, slope: jax.tree.map(lambda p, g: p - 0.1 * g, part.layer, slope.layer)
    moved = fm.replace(second, layer=down(second, jax.grad(lambda s: -0.5 * joint(first, s), allow_int=True)(second)))
    return moved, down(first, jax.grad(joint, allow_int=True)(first, moved))


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), {"game": optax.sgd(0.1)}, {"game.first": optax.sgd(0.1), "game.second": optax.sgd(0.1)}]
)
def test_alternating_updates_start_from_the_updates_before(optimizer):
    state = fm.setup(fm.systems.Alternating(Ordered(player(), player())), X, optimizer=optimizer)
    first, second = state.system.game.first, state.system.game.second
    moved, expected = one_after_another(first, second)
    after, logs = fm.train_step(state, X)
    same(after.system.game.second.layer, moved.layer)
    same(after.system.game.first.layer, expected)
    assert float(logs["loss/second"]) == pytest.approx(-0.5 * float(joint(first, second)), rel=1e-5)
    assert float(logs["loss/first"]) == pytest.approx(float(joint(first, moved)), rel=1e-5)
    game = after.system.game
    assert [int(p.seen.value) for p in (game.first, game.second)] == [1, 1]
    assert [float(p.steps) for p in (game.first, game.second)] == [1.0, 1.0]


def test_alternating_with_different_intervals():
    state = fm.setup(fm.systems.Alternating(Paced(player(), player())), X, optimizer=optax.adam, lr=0.1, steps=6)
    found = {group.path: group.every for group in groups(state.system, state.optimizer, state.plan)}
    assert found == {"game.first": 3, "game.second": 1}
    after, history = fm.fit(state, X, steps=6, progress=False)
    game = after.system.game
    assert [int(p.seen.value) for p in (game.first, game.second)] == [2, 6]
    assert {"loss/first", "loss/second", "lr/game.first", "lr/game.second"} <= set(history)


def test_alternating_step_without_any_update():
    state = fm.setup(fm.systems.Alternating(Duel(player(), player())), X, optimizer=every(2, optax.sgd(0.1)))
    after, logs = fm.train_step(state, X)
    assert not differs(state.system, after.system)
    assert np.isfinite(float(logs["loss/first"]))


def test_alternating_inside_a_defence():
    """The players do not look at each other, so it is the same who moves first."""

    class Players(fm.Game):
        one: Net
        two: Net

    def trained(game):
        state = fm.setup(fm.Adversarial(game, fm.FGSM(fm.LinfBall(0.1))), (X, Y), optimizer=optax.sgd(0.1))
        return fm.train_step(state, (X, Y))[0].system.system

    arrays = fm.init(Players(net(), net()), jax.random.key(0))
    after = trained(fm.systems.Alternating(arrays)).game
    same(after, trained(arrays), rtol=1e-4)
    assert differs(after, arrays)


def test_alternating_requires_a_game():
    with pytest.raises(TypeError, match=r"Alternating.game must be a Game, got Pair"):
        fm.setup(fm.systems.Alternating(pair()), (X, Y), optimizer=optax.sgd(0.1))


def test_alternating_must_be_outermost():
    class Around(fm.System):
        inside: fm.systems.Alternating

    with pytest.raises(ValueError, match=r"Alternating defines its own training step.*inside Around"):
        fm.setup(Around(fm.systems.Alternating(Duel(player(), player()))), X, optimizer=optax.sgd(0.1))


# Several players in one field


class Panel(fm.Game):
    maker: Linear
    critics: list[Linear] | tuple[Linear, ...] | dict[str, Linear]
    form: str = "list"


def scores(panel, x):
    made = panel.maker(x)
    inside = panel.critics.items() if isinstance(panel.critics, dict) else enumerate(panel.critics)
    return {str(name): (weight + 1) * critic(made).mean() for weight, (name, critic) in enumerate(inside)}


@dispatch
def losses(panel: Panel, batch):
    found = scores(panel, batch.x)
    maker = -sum(found.values())
    match panel.form:
        case "list":
            return {"maker": maker, "critics": [*found.values()]}
        case "dict":
            return {"maker": maker, "critics": found}
        case "names":
            return {"maker": maker, **{f"critics.{name}": value for name, value in found.items()}}
        case "together":
            return {"maker": maker, "critics": {"all": sum(found.values()), "cross": found["0"] * found["1"]}}
        case "one is missing":
            return {"maker": maker, "critics.0": found["0"]}
        case "one is nobody":
            return {"maker": maker, "critics": {"0": found["0"], "7": found["1"]}}
        case "twice":
            return {"maker": maker, "critics": found, "critics.1": found["1"]}
        case "crossed":
            return {"maker": maker, "critics": [found["1"], found["0"]]}
        case "idle":
            return {"maker": maker, "critics": [found["0"], 0 * found["1"]]}


def panel(form="list", kind=list):
    critics = [Linear(3, 2), Linear(3, 2)]
    return Panel(Linear(4, 3), {str(i): c for i, c in enumerate(critics)} if kind is dict else kind(critics), form)


def names(system, batch):
    """The names of the entries in their order."""
    found = []
    jax.eval_shape(lambda: found.extend(fm.losses(system, batch)))
    return found


@pytest.mark.parametrize(
    ("form", "kind"), [("list", list), ("dict", tuple), ("names", list), ("dict", dict), ("list", dict)]
)
def test_each_of_several_players_is_differentiated_separately(form, kind):
    system = fm.init(panel(form, kind), jax.random.key(0))
    batch = fm.Unlabeled(jnp.asarray(X))
    assert names(system, batch) == ["maker", "critics.0", "critics.1"]
    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system)
    expected = jax.jit(jax.grad(lambda s: sum(scores(s, batch.x).values())))(system)
    same(slopes.critics, expected.critics, rtol=1e-5)
    same(slopes.maker, jax.tree.map(jnp.negative, expected.maker), rtol=1e-5)


def test_an_entry_gives_other_players_no_gradient():
    """The first one's entry holds the second alone, so nothing is differentiated."""
    system = fm.init(panel("crossed"), jax.random.key(0))
    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, fm.Unlabeled(jnp.asarray(X)))))(system)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes.critics))


def test_an_entry_shared_by_all_players_of_a_field():
    system = fm.init(panel("together"), jax.random.key(0))
    batch = fm.Unlabeled(jnp.asarray(X))
    assert names(system, batch) == ["maker", "critics"]

    def whole(s):
        found = scores(s, batch.x)
        return sum(found.values()) + found["0"] * found["1"]

    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system)
    same(slopes.critics, jax.jit(jax.grad(whole))(system).critics, rtol=1e-5)


def test_several_players_in_a_run():
    optimizer = {
        "maker": optax.adam(0.1),
        "critics.0": optax.sgd(0.1),
        "critics.1": every(2, fm.optimizers.Optimizer(optax.sgd, 0.1)),
    }
    state, history = fm.fit(panel(), X, optimizer=optimizer, steps=2, batch_size=16, progress=False)
    assert {"loss/critics.0", "loss/critics.1", "lr/critics.1"} <= set(history)
    alternating = fm.systems.Alternating(panel())
    state = fm.setup(alternating, X, optimizer=optax.sgd(0.1))
    assert [g.path for g in groups(state.system, state.optimizer, state.plan)] == [
        "game.maker",
        "game.critics.0",
        "game.critics.1",
    ]
    after, _ = fm.train_step(state, X)
    assert differs(after.system.game.critics[1], state.system.game.critics[1])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("one is missing", r"`losses` of Panel has no entry 'critics.1', so nothing trains that player"),
        ("one is nobody", r"`losses` of Panel has an entry 'critics.7', but the players are: maker, critics.0, critics.1"),
        ("twice", r"`losses` of Panel has two entries for 'critics.1'"),
    ],
)
def test_invalid_entries_for_several_players(form, message):
    with pytest.raises(ValueError, match=message):
        fm.setup(panel(form), X, optimizer=optax.sgd(0.1))


def test_check_finds_a_player_that_its_entry_ignores():
    report = fm.check(panel("idle"), X, optimizer=optax.sgd(0.1))
    (error,) = report.errors
    assert error.what == "game: no entry of `losses` depends on the parameters of 'critics.1'" and error.where == "critics.1"


def test_alternating_is_inside_other_wrappers():
    game, data = fm.testing.tiny("game")
    with pytest.raises(
        TypeError,
        match=r"Alternating\.game must be the game itself, got a Weighted; write Weighted\(fm\.systems\.Alternating",
    ):
        fm.setup(fm.systems.Alternating(fm.Weighted(game, {})), data, optimizer=optax.sgd, lr=0.1)


def test_components_with_the_same_name():
    class Clashing(fm.System):
        parts: dict[str, fm.Component | dict[str, fm.Component]]

    with pytest.raises(ValueError, match=r"Clashing has two parts with the path 'parts.a.b'"):
        fm.setup(Clashing({"a": {"b": net()}, "a.b": net()}), (X, Y), optimizer=optax.sgd(0.1))


def test_a_metric_with_the_name_of_a_loss():
    class Named(Pair):
        pass

    @dispatch
    def metrics(named: Named, batch):
        return {"loss/one": fm.Mean(jnp.zeros(()))}

    with pytest.raises(ValueError, match=r"'loss/one.*`metrics` of Named.*rename"):
        fm.setup(Named(net(), net()), (X, Y), optimizer=optax.sgd(0.1))


# A system as a player


class Team(fm.Game):
    pair: Pair
    rival: Net


@dispatch
def losses(team: Team, batch):
    return {"pair": fm.losses(team.pair, batch), "rival": fm.loss(team.rival, batch) - fm.loss(team.pair, batch)}


def test_a_player_that_is_a_system():
    system = fm.init(Team(pair(), net()), jax.random.key(0))
    batch = fm.Labeled(jnp.asarray(X), jnp.asarray(Y))
    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system)
    same(slopes.pair, jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system.pair))
    same(slopes.rival, jax.jit(jax.grad(lambda s: fm.loss(s, batch).mean()))(system.rival))
    state, logs = fm.train_step(fm.setup(fm.systems.Alternating(system), (X, Y), optimizer=optax.sgd(0.1)), (X, Y))
    assert {"loss/pair/one", "loss/pair/two", "loss/rival"} <= set(logs)
    assert differs(state.system.game.pair.two, system.pair.two)


# Batches of their own


def test_each_part_sees_its_own_batch():
    raw = {"one": (X[:8], Y[:8]), "two": (X[8:], Y[8:])}
    state = fm.setup(pair(), raw, optimizer=optax.sgd(0.1))
    found = fm.losses(state, raw)
    same(found["two"], fm.loss(state.system.two, fm.Labeled(X[8:], Y[8:])))
    after, history = fm.fit(state, raw, epochs=1, batch_size=4, progress=False)
    assert differs(after.system.two, state.system.two) and "loss/two" in history
    assert fm.evaluate(after, raw)["loss/one"] == pytest.approx(
        float(fm.loss(after.system.one, fm.Labeled(X[:8], Y[:8])).mean())
    )


class Fed(Duel):
    """Reads each player's data by its name."""


@dispatch
def losses(fed: Fed, batch):
    value = (fed.first(batch.first.x) * fed.second(batch.second.x)).mean()
    return {"first": value, "second": -value}


def test_a_game_that_reads_the_batches_of_its_players():
    raw = {"first": X, "second": 2 * X}
    state = fm.setup(fm.systems.Alternating(Fed(player(), player())), raw, optimizer=optax.sgd(0.1))
    first, second = state.system.game.first.layer, state.system.game.second.layer
    assert float(fm.losses(state, raw)["first"]) == pytest.approx(float((first(X) * second(2 * X)).mean()), rel=1e-5)
    with pytest.raises(AttributeError, match="the batch has no part 'third'; its parts are: first, second"):
        _ = fm.as_batch(state.system, raw).third


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ({"one": (X, Y)}, ValueError, r"the data has batches for one, but none for 'two'; add an entry"),
        ({"one": (X, Y), "tow": (X, Y)}, ValueError, r"or an entry for each part of Pair: one, two; got one, tow"),
        ({"one": (X, Y), "two": (X[:5], Y[:5])}, ValueError, r"different lengths: one.x 16, one.y 16, two.x 5, two.y 5"),
        ({"one": (X, Y), "two": (X, "labels")}, TypeError, r"two.y must be a NumPy or JAX array, got the str"),
    ],
)
def test_invalid_batches_by_part(raw, error, message):
    with pytest.raises(error, match=message):
        fm.setup(pair(), raw, optimizer=optax.sgd(0.1))
