"""What a system's loss is made of: parts, nesting, per-example entries, games, buffers of players."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.core.component import record
from fulmen.core.tree import remake
from fulmen.train.compiled_step import traced_step


@pytest.fixture(scope="module")
def batch():
    return fm.Labeled(*data())


def ready(component):
    return fm.init(component, jax.random.key(0))


def entropy(part, batch):
    return optax.softmax_cross_entropy_with_integer_labels(part(batch.x), batch.y)


class Penalized(fm.Wrapper):
    part: fm.System


class Tripled(fm.Wrapper):
    part: fm.System


@dispatch
def losses(system: Penalized, batch):
    return {**fm.losses(system.part, batch), "penalty": jnp.sum(system.part.one.layer.weight**2)}


@dispatch
def reduce_losses(system: Tripled, losses, batch):
    return 3 * fm.reduce_losses(system.part, losses, batch)


def with_own_loss(wrapper):
    """A class of the wrapper whose loss is made of its `losses`."""

    class Own(wrapper):
        pass

    @dispatch
    @fm.marks.sums_losses
    def loss(system: Own, batch):
        return fm.reduce_losses(system, fm.losses(system, batch), batch)

    return Own


@pytest.mark.parametrize(("wrapper", "verb"), [(Penalized, "losses"), (Tripled, "reduce_losses")])
def test_a_wrapper_whose_entries_would_not_count(wrapper, verb):
    with pytest.raises(
        TypeError, match=rf"{wrapper.__name__} has a method of `{verb}` and none of `loss`.*Write\s+@dispatch"
    ):
        fm.setup(fm.EMA(wrapper(pair())), data(), optimizer=optax.sgd, lr=0.1)

    state = fm.setup(fm.EMA(with_own_loss(wrapper)(pair())), data(), optimizer=optax.sgd, lr=0.1)
    _, logs = fm.train_step(state, data())
    entries = sum(float(v) for name, v in logs.items() if name.startswith("loss/"))
    assert float(logs["loss"]) == pytest.approx(entries * (3 if wrapper is Tripled else 1), rel=1e-6)


class Rivals(fm.Game):
    one: Net
    two: Net


class AroundRivals(fm.Wrapper):
    game: fm.Game


class OwnStep(fm.Wrapper):
    part: fm.System


@dispatch
def losses(duel: Rivals, batch):
    return {"one": fm.loss(duel.one, batch), "two": fm.loss(duel.two, batch)}


@dispatch
def losses(wrapper: AroundRivals | OwnStep, batch):
    return {name: 2 * entry for name, entry in fm.losses(wrapper.__part__, batch).items()}


@dispatch
def update(wrapper: OwnStep, state, batch, mode):
    return fm.update.invoke(fm.System, object, object, object)(wrapper, state, batch, mode)


def test_losses_of_a_wrapper_around_a_game():
    with pytest.raises(TypeError, match="AroundRivals has a method of `losses` and none of `loss`"):
        fm.setup(AroundRivals(Rivals(net(), net())), data(), optimizer=optax.sgd, lr=0.1)

    state = fm.setup(with_own_loss(AroundRivals)(Rivals(net(), net())), data(), optimizer=optax.sgd, lr=0.1)
    plain = fm.setup(state.system.game, data(), optimizer=optax.sgd, lr=0.1)
    moved, before = fm.train_step(state, data())[0].system.game, state.system.game
    once = fm.train_step(plain, data())[0].system
    change = lambda after: np.asarray(after.one.layer.weight - before.one.layer.weight)
    np.testing.assert_allclose(change(moved), 2 * change(once), atol=1e-6)


def test_a_wrapper_with_a_step_of_its_own_may_use_its_losses():
    fm.setup(OwnStep(pair()), data(), optimizer=optax.sgd, lr=0.1)


class Nested(fm.System):
    pair: Pair
    more: list[Net]
    by_name: dict[str, Net]


class Doubling(Pair):
    """Weighs its parts."""


@dispatch
def reduce_losses(system: Doubling, losses, batch):
    return 2 * losses["one"].mean() + losses["two"].mean()


class Direct(Pair):
    """Has a loss of its own, and no entries."""


@dispatch
def loss(system: Direct, batch):
    return 7.0 * entropy(system.one, batch).mean()


def test_entries_survive_nesting(batch):
    system = ready(Nested(pair(), [net(), net()], {"a": net()}))
    entries = fm.losses(system, batch)
    assert jax.tree.map(jnp.shape, entries) == {
        "pair": {"one": (50,), "two": (50,)},
        "more.0": (50,),
        "more.1": (50,),
        "by_name.a": (50,),
    }
    parts = [system.pair.one, system.pair.two, *system.more, system.by_name["a"]]
    np.testing.assert_allclose(fm.loss(system, batch), sum(entropy(p, batch).mean() for p in parts), rtol=1e-6)


def test_a_nested_system_is_reduced_by_its_own_method(batch):
    class Around(fm.System):
        inner: Doubling

    system = ready(Around(Doubling(net(), net())))
    one, two = (entropy(p, batch).mean() for p in (system.inner.one, system.inner.two))
    np.testing.assert_allclose(fm.loss(system, batch), 2 * one + two, rtol=1e-6)


def test_a_nested_system_with_a_custom_loss_keeps_it(batch):
    class Around(fm.System):
        inner: Direct
        other: Net

    system = ready(Around(Direct(net(), net()), net()))
    expected = 7 * entropy(system.inner.one, batch).mean() + entropy(system.other, batch).mean()
    np.testing.assert_allclose(fm.loss(system, batch), expected, rtol=1e-6)


def test_the_gradient_of_a_sum_is_each_parts_own(batch):
    system = ready(pair())
    whole = jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system)
    of_part = jax.jit(jax.grad(lambda p: entropy(p, batch).mean()))
    for part, slope in ((system.one, whole.one), (system.two, whole.two)):
        alone = of_part(part)
        np.testing.assert_allclose(slope.layer.weight, alone.layer.weight, atol=1e-7)


def test_parts_select_their_batch():
    class Half(Net):
        pass

    @dispatch
    def as_batch(part: Half, batch: fm.Labeled):
        return batch[::2]

    class Both(fm.System):
        half: Half
        whole: Net

    system = ready(Both(Half(Linear(4, 3)), net()))
    batch = fm.Labeled(*data())
    entries = fm.losses(system, batch)
    assert (entries["half"].shape, entries["whole"].shape) == ((25,), (50,))
    expected = entropy(system.half, batch[::2]).mean() + entropy(system.whole, batch).mean()
    np.testing.assert_allclose(fm.loss(system, batch), expected, rtol=1e-6)


X3, Y3 = np.zeros((3, 2), np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (X3, fm.Unlabeled),
        ((X3, Y3), fm.Labeled),
        ((X3, Y3, Y3 + 1), fm.Labeled),
        ({"x": X3, "y": Y3}, fm.Labeled),
        ({"x": X3}, fm.Unlabeled),
        (fm.Unlabeled(X3), fm.Unlabeled),
    ],
)
def test_as_batch(raw, kind):
    batch = fm.as_batch(net(), raw)
    assert type(batch) is kind and len(batch) == 3
    assert (batch.weight is not None) == (isinstance(raw, tuple) and len(raw) == 3)


# Games


class Player(fm.Model):
    layer: Linear


@dispatch
def forward(player: Player, x):
    return player.layer(x)


class Duel(fm.Game):
    first: Player
    second: Player


@dispatch
def losses(duel: Duel, batch):
    value = (duel.first(batch.x) * duel.second(batch.x)).mean()
    return {"first": value, "second": {"a": -value, "b": 0.5 * value}}


def duel():
    return Duel(Player(Linear(4, 3)), Player(Linear(4, 3)))


class AroundGame(fm.System):
    game: Duel
    net: Net


def joint(first, second, batch):
    return (first(batch.x) * second(batch.x)).mean()


by_both = jax.jit(jax.grad(joint, (0, 1)))


@pytest.mark.parametrize("nested", [False, True, "twice"])
def test_each_entry_trains_only_its_player(batch, nested):
    system = ready(duel())
    if nested:
        system = AroundGame(system, ready(net()))
    if nested == "twice":

        class Outer(fm.System):
            inner: AroundGame

        system = Outer(system)
    slopes = jax.jit(jax.grad(lambda s: fm.loss(s, batch)))(system)
    for name in ["inner"] * (nested == "twice") + ["game"] * bool(nested):
        system, slopes = getattr(system, name), getattr(slopes, name)
    first, second = by_both(system.first, system.second, batch)
    np.testing.assert_allclose(slopes.first.layer.weight, first.layer.weight, atol=1e-6)
    np.testing.assert_allclose(slopes.second.layer.weight, -0.5 * second.layer.weight, atol=1e-6)


def test_the_loss_of_a_game_is_the_sum_of_its_entries(batch):
    system = ready(duel())
    value = joint(system.first, system.second, batch)
    np.testing.assert_allclose(fm.loss(system, batch), 0.5 * value, rtol=1e-5)
    assert set(fm.losses(system, batch)["second"]) == {"a", "b"}


def test_an_entry_without_a_player_is_an_error(batch):
    class Wrong(fm.Game):
        first: Player

    @dispatch
    def losses(game: Wrong, batch):
        return {"third": jnp.zeros(())}

    with pytest.raises(ValueError, match=r"the fields, first, got 'third'"):
        fm.loss(ready(Wrong(Player(Linear(4, 3)))), batch)


def test_a_game_costs_what_the_joint_program_costs():
    """Both gradients in one program, at most 2 % over the joint program written by hand."""
    width, x = 256, np.ones((64, 256), np.float32)

    def player():
        return Player(Linear(width, width))

    class Big(fm.Game):
        first: Player
        second: Player

    soft = lambda v: jax.nn.softplus(v).mean()

    @dispatch
    def losses(game: Big, batch):
        made = jnp.tanh(game.first(batch.x))
        return {"first": soft(-game.second(made)), "second": soft(game.second(made)) + soft(-game.second(batch.x))}

    state = fm.setup(Big(player(), player()), x, optimizer=optax.sgd(0.1), batch_size=64)
    ours = traced_step(state, x).lower().compile().cost_analysis()["flops"]

    def by_hand(first, second, x):
        lin = lambda p, x: x @ p[0] + p[1][None]

        def of_both(first, second):
            still = jax.lax.stop_gradient
            made = jnp.tanh(lin(first, x))
            return soft(-lin(still(second), made)) + soft(lin(second, still(made))) + soft(-lin(second, x))

        value, slopes = jax.value_and_grad(of_both, (0, 1))(first, second)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, (first, second), slopes)

    arrays = [(p.layer.weight, p.layer.bias) for p in (state.system.first, state.system.second)]
    theirs = jax.jit(by_hand).lower(*arrays, x).compile().cost_analysis()["flops"]
    assert ours <= 1.02 * theirs


class Counting(fm.Model):
    """Counts the steps in which its player moved."""

    layer: Linear
    count: fm.Buffer


@dispatch
def forward(player: Counting, x):
    return record(player.layer(x), player.count, player.count.value + 1)


class CountedDuel(fm.Game):
    first: Counting
    second: Counting


@dispatch
def losses(duel: CountedDuel, batch):
    value = (duel.first(batch.x) * duel.second(batch.x)).mean()
    return {"first": value, "second": -value}


class Passive(CountedDuel):
    """Only the first has a loss."""


@dispatch
def losses(duel: Passive, batch):
    return {"first": (duel.first(batch.x) * duel.second(batch.x)).mean(), "second": 0.0}


class AroundCounted(fm.System):
    game: CountedDuel
    net: Net


def counted(kind):
    player = lambda: Counting(Linear(4, 3), fm.Buffer(jnp.int32(0)))
    return kind(player(), player())


@pytest.mark.parametrize(("kind", "expected"), [(CountedDuel, (3, 3)), (Passive, (3, 0))])
@pytest.mark.parametrize("nested", [False, True])
def test_buffers_of_a_game_are_updated_by_their_players_entry(kind, expected, nested):
    system = AroundCounted(counted(kind), net()) if nested else counted(kind)
    state = fm.setup(system, data(), optimizer=optax.sgd(0.1))
    for _ in range(3):
        state, _ = fm.train_step(state, data())
    game = state.system.game if nested else state.system
    assert (int(game.first.count.value), int(game.second.count.value)) == expected


# Frozen


def test_frozen_parts_stay_and_have_no_optimizer_state():
    class Taught(fm.System):
        teacher: fm.Frozen
        student: Net

    @dispatch
    def losses(system: Taught, batch):
        return {"match": jnp.mean((system.teacher(batch.x) - system.student(batch.x)) ** 2)}

    state = fm.setup(Taught(fm.Frozen(net()), net()), data(), optimizer=optax.adam, lr=0.1)
    after, _ = fm.train_step(state, data())
    np.testing.assert_array_equal(after.system.teacher.part.layer.weight, state.system.teacher.part.layer.weight)
    assert fm.count_parameters(state.system) == 15
    moments = [v for v in jax.tree.leaves(state.optimizer_state) if v.shape == (4, 3)]
    assert len(moments) == 2  # Adam's two, of the student alone


def test_metrics_of_parts_join_their_names(batch):
    class Measured(Net):
        pass

    @dispatch
    def metrics(net: Measured, batch):
        return {"size": fm.Mean(jnp.abs(net(batch.x)).mean(-1), batch.weight)}

    class Two(fm.System):
        a: Measured
        b: Measured

    state = fm.setup(Two(Measured(Linear(4, 3)), Measured(Linear(4, 3))), data(), optimizer=optax.sgd(0.1))
    figures = fm.evaluate(state, data())
    assert set(figures) == {"loss", "loss/a", "loss/b", "a/size", "b/size"}
    np.testing.assert_allclose(figures["a/size"], np.abs(state.system.a(batch.x)).mean(), rtol=1e-5)


def test_parts_augment_their_own_batches(batch):
    class Shifted(Net):
        by: float = 1.0

    @dispatch
    def augment(net: Shifted, batch, mode):
        return fm.replace(batch, x=batch.x + net.by)

    class Two(fm.System):
        a: Shifted
        b: Net

    state = fm.setup(Two(Shifted(Linear(4, 3)), net()), data(), optimizer=optax.sgd(0.0))
    _, logs = fm.train_step(state, data())
    system = state.system
    np.testing.assert_allclose(logs["loss/a"], entropy(system.a, fm.Labeled(batch.x + 1, batch.y)).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["loss/b"], entropy(system.b, batch).mean(), rtol=1e-5)


CALLS = []


class Counted(fm.System):
    net: Linear


@dispatch
def losses(counted: Counted, batch):
    CALLS.append(counted)
    value = counted.net(batch.x).sum(1)
    return dict(one=value, two=2 * value)


class Shifted(fm.Wrapper):
    """Its loss is that of its system for other inputs."""

    system: fm.System


@dispatch
@fm.marks.sums_losses
def loss(shifted: Shifted, batch):
    return fm.loss(shifted.system, remake(batch, {"x": batch.x + 1}))


COUNTED, MODE = Counted(Linear(4, 3)), fm.Train(jax.random.key(0))


@pytest.mark.parametrize(
    "around", [lambda it: it, fm.EMA, lambda it: fm.Weighted(it, {"one": 2.0})], ids=["", "EMA", "Weighted"]
)
def test_the_loss_and_its_logs_are_computed_once(batch, around):
    component = ready(around(COUNTED))
    CALLS.clear()
    _, _, _, logs = jax.eval_shape(lambda: fm.differentiate(component, batch, MODE))
    assert len(CALLS) == 1 and {"loss", "loss/one", "loss/two"} <= logs.keys()


def test_entries_of_one_batch_are_not_those_of_a_changed_one(batch):
    component = ready(Shifted(COUNTED))
    value, _, _, logs = jax.jit(fm.differentiate)(component, batch, MODE)
    np.testing.assert_allclose(value, 3 * component.system.net(batch.x + 1).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["loss/one"].compute(), component.system.net(batch.x).sum(1).mean(), rtol=1e-5)


class Proxied(fm.System):
    net: Linear
    per_row: bool = fm.static()


@dispatch
def losses(proxied: Proxied, batch):
    value = proxied.net(batch.x).sum(1)
    return types.MappingProxyType({"one": value} if proxied.per_row else {"one": value.mean(), "two": value.mean()})


@pytest.mark.parametrize(("per_row", "names"), [(True, {"loss"}), (False, {"loss", "loss/one", "loss/two"})])
def test_entries_are_counted_in_any_mapping(batch, per_row, names):
    _, _, _, logs = jax.eval_shape(lambda: fm.differentiate(ready(Proxied(Linear(4, 3), per_row)), batch, MODE))
    assert logs.keys() == names


class Narrow(fm.System):
    net: Linear


@dispatch
def losses(narrow: Narrow, batch):
    return {"one": narrow.net(batch.x[:, :2]).sum(1)}


@pytest.mark.parametrize(
    ("around", "path"),
    [(lambda it: fm.Weighted(it, {}), "system.net"), (fm.EMA, "component.net"), (fm.MixedPrecision, "system.net")],
    ids=["Weighted", "EMA", "MixedPrecision"],
)
def test_an_error_in_losses_names_the_path_from_the_wrapper(around, path, batch):
    component = ready(around(Narrow(Linear(4, 3))))
    with pytest.raises(TypeError) as caught:
        jax.eval_shape(lambda: fm.differentiate(component, batch, MODE))
    assert any(f"in '{path}' of {type(component).__name__}" in note for note in caught.value.__notes__)
