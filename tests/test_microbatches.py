"""`microbatches=k`: a step computes its batch in parts, and equals the step of the whole batch to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import data, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, Chain, Dense, Dropout, Embedding

N = 12
X, Y = data(N)
REGION = fm.LinfBall(0.1)
WEIGHTS = np.r_[np.zeros(4), np.linspace(0.1, 3.0, N - 4)].astype(np.float32)  # of three microbatches one may be all padding


def classifier(*layers, **options):
    return fm.Classifier(Chain(*(layers or (Dense(4, 8), jax.nn.relu, Dense(8, 3)))), **options)


class Counting(fm.Model):
    """Records the mean of its inputs and a number of steps."""

    layer: Dense
    mean: fm.Buffer
    count: fm.Buffer


@dispatch
def forward(net: Counting, x):
    y = fm.record(net.layer(x), net.mean, x.mean(0))
    return fm.record(y, net.count, net.count.value + 1)


class Scalar(fm.Model):
    """A loss that is one number, and a penalty."""

    layer: Dense


@dispatch
def loss(model: Scalar, batch):
    return jnp.mean(model.layer(batch.x) ** 2) + 0.1 * jnp.sum(model.layer.weight**2)


@dispatch
def forward(model: Scalar, x):
    return model.layer(x)


def one_step(system, raw, k, steps=2, **options):
    # Not Adam, which makes a gradient of rounding errors alone as large as any.
    options = {"optimizer": optax.sgd, "lr": 0.1, "steps": 4, **options}
    state = fm.setup(system, raw, microbatches=k, **options)
    found = []
    for _ in range(steps):
        state, logs = fm.train_step(state, raw)
        found.append(logs)
    return state, found


def same(ours, theirs, tolerance=1e-5):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def equals_the_whole_batch(system, raw, k=3, tolerance=1e-5, **options):
    whole, logs = one_step(system, raw, 1, **options)
    parts, logs_of_parts = one_step(system, raw, k, **options)
    assert parts.plan.microbatches == k
    same((parts.system, parts.optimizer_state), (whole.system, whole.optimizer_state), tolerance)
    assert [each.keys() for each in logs] == [each.keys() for each in logs_of_parts]
    same(logs_of_parts, logs, tolerance)
    return parts


PENALIZED = classifier(objective=fm.CrossEntropy() + 1e-2 * fm.L2())


@pytest.mark.parametrize(("k", "weight"), [(12, None), (3, WEIGHTS), (5, WEIGHTS)], ids=["12", "3", "5"])
def test_a_step_equals_the_step_of_the_whole_batch(k, weight):
    equals_the_whole_batch(PENALIZED, (X, Y) if weight is None else (X, Y, weight), k)


ATTACK = fm.FGSM(REGION, start=fm.attacks.Uniform())
LINEAR = fm.Classifier(Dense(4, 3))

OTHERS = {
    "parts": (pair(), (X, Y, WEIGHTS), 3, {}),
    "scalar": (Scalar(Dense(4, 3)), X, 5, {}),
    "adversarial": (fm.Adversarial(LINEAR, ATTACK, clean_weight=0.5), (X, Y, WEIGHTS), 3, {}),
    "trades": (fm.TRADES(LINEAR, ATTACK), (X, Y), 3, {}),
    "sam": (fm.defences.SAM(LINEAR), (X, Y, WEIGHTS), 3, {}),
    "population": (fm.Population(LINEAR, 2), (X, Y, WEIGHTS), 3, {"lr": [0.1, 0.01]}),
    "per_member": (fm.Population(LINEAR, 2), fm.systems.PerMember([(X, Y), (X[:9] + 1, Y[:9])]), 3, {}),
    "around": (fm.Adversarial(fm.Population(LINEAR, 2), ATTACK), (X, Y), 3, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_systems_equal_the_whole_batch(name):
    system, raw, k, options = OTHERS[name]
    equals_the_whole_batch(system, raw, k, 5e-5, **options)


SYSTEMS = fm.testing.systems()
SYSTEMS["language_model"] = fm.LanguageModel(Chain(Embedding(3, 4), Dense(4, 3))), SYSTEMS["language_model"][1]
# Those that the tests above and below compare with the whole batch, and parts of systems of other kinds.
OTHERWISE = "classifier model pair population adversarial game alternating batch_norm_and_dropout mean_teacher actor_critic"
# In single precision, as parts and whole give the same; the others in mixed precision too, so that one program shows both.
EXACT = "regressor frozen language_model scanned multi_task weighted"


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in OTHERWISE.split()])
def test_every_kind_of_system_takes_microbatches_and_mixed_precision(name):
    system, raw = SYSTEMS[name]
    system = system if name in f"{EXACT} ema".split() else fm.MixedPrecision(system)
    # Batches of 10 examples; in microbatches of 4, 3 and 3 there are two loops to compile.
    options = {"batch_size": 10, "epochs": 1, "optimizer": optax.sgd, "lr": 0.1, "progress": False, "seed": 1}
    state, history = fm.fit(system, raw, microbatches=3 if name == "semi_supervised" else 2, **options)
    assert all(np.isfinite(values).all() for values in history.values())
    if name in EXACT.split():
        whole, other = fm.fit(system, raw, **options)
        same(state.system, whole.system, 5e-5)
        assert history.keys() == other.keys()


def test_a_game_whose_players_have_rates():
    class Fixed(fm.Game):
        one: Scalar
        two: Scalar

    @dispatch
    def losses(game: Fixed, batch):
        return {"one": fm.loss(game.one, batch), "two": (game.two(batch.x) - game.one(batch.x)).mean(1) ** 2}

    optimizer = {"one": fm.optimizers.every(2, optax.sgd), "two": optax.sgd}
    equals_the_whole_batch(Fixed(Scalar(Dense(4, 3)), Scalar(Dense(4, 3))), (X, Y), 5, optimizer=optimizer, steps=3)
    equals_the_whole_batch(fm.systems.Alternating(Fixed(Scalar(Dense(4, 3)), Scalar(Dense(4, 3)))), (X, Y), 3)


def test_buffers_are_means_over_the_batch():
    net = Counting(Dense(4, 3), fm.Buffer(jnp.zeros(4)), fm.Buffer(jnp.int32(5)))
    state = equals_the_whole_batch(fm.Classifier(net), (X, Y), 5)
    np.testing.assert_allclose(state.system.model.mean.value, X.mean(0), rtol=1e-6)
    assert int(state.system.model.count.value) == 7


def test_batch_norm_sees_each_microbatch_by_itself():
    norm = classifier(Dense(4, 8), BatchNorm(8), Dense(8, 3))
    state, _ = one_step(norm, (X, Y), 3, steps=1)
    start = fm.setup(norm, (X, Y), optimizer=optax.sgd, lr=0.1, steps=4, microbatches=3).system
    hidden = np.asarray(start.model.layers[0](X))
    np.testing.assert_allclose(state.system.model.layers[1].mean.value, 0.1 * hidden.mean(0), rtol=1e-5, atol=1e-6)
    each = np.mean([hidden[i::3].var(0, ddof=1) for i in range(3)], 0)
    np.testing.assert_allclose(state.system.model.layers[1].variance.value, 0.9 + 0.1 * each, rtol=1e-5)


def test_each_microbatch_has_its_own_dropout_mask():
    class Kept(fm.Model):
        drop: Dropout
        factor: jax.Array

    @dispatch
    def forward(net: Kept, x):
        return net.drop(x) * net.factor[None]

    @dispatch
    def loss(net: Kept, batch):
        return net(batch.x).sum(1)

    ones, sums = np.ones((8, 64), np.float32), []
    for k in (1, 4):
        state, _ = one_step(Kept(Dropout(0.5), jnp.ones(64)), ones, k, steps=1, optimizer=optax.sgd, lr=1.0)
        sums.append(np.round(np.asarray(1 - state.system.factor) * 4).astype(int))  # how often each feature was kept, of 8
    for kept in sums:
        assert 0 <= kept.min() < kept.max() <= 8 and len(set(kept)) > 3  # with one mask for all it is 0 or 8
    assert not (sums[0] == sums[1]).all()


@pytest.mark.parametrize("n", [14, 13])
def test_a_short_last_batch_is_exact(n):
    x, y = data(n)
    options = {"batch_size": 12, "epochs": 2, "seed": 0, "progress": False, "optimizer": optax.sgd, "lr": 0.1}
    ours, history = fm.fit(classifier(), (x, y), microbatches=4, **options)
    whole, other = fm.fit(classifier(), (x, y), **options)
    same(ours.system, whole.system)
    same(history["loss"], other["loss"])


def test_the_plan_of_a_state_keeps_the_number_and_the_steps_of_plans_share_a_program():
    raw, options = (X, Y, WEIGHTS), {"optimizer": optax.sgd, "lr": 0.1}
    state = fm.setup(PENALIZED, raw, steps=4, microbatches=3, **options)
    longer = fm.setup(PENALIZED, raw, steps=9, microbatches=3, **options)
    other = fm.setup(PENALIZED, raw, steps=4, **options)
    from fulmen.core.state import without_plan

    assert without_plan(state.structure) is without_plan(longer.structure) is not without_plan(other.structure)
    again = state.replace(plan=fm.replace(state.plan, microbatches=5))
    assert again.structure is not state.structure
    same(fm.train_step(again, raw)[0].system, fm.train_step(state, raw)[0].system)


def test_the_memory_of_a_step_falls():
    raw = np.zeros((2048, 4), np.float32), np.zeros(2048, np.int32)
    state = fm.setup(classifier(), raw, optimizer=optax.sgd, lr=0.1, microbatches=8)

    def temporary_bytes(state):
        return jax.jit(fm.train_step).lower(state, raw).compile().memory_analysis().temp_size_in_bytes

    whole, parts = temporary_bytes(state.replace(plan=fm.replace(state.plan, microbatches=1))), temporary_bytes(state)
    assert parts < 0.4 * whole, (whole, parts)


@pytest.mark.parametrize(
    ("k", "error", "words"), [(0, ValueError, "positive"), (2.5, TypeError, "positive"), (13, ValueError, "at most 12")]
)
def test_impossible_numbers(k, error, words):
    with pytest.raises(error, match=f"microbatches must be .*{words}"):
        fm.setup(classifier(), (X, Y), optimizer=optax.adam, lr=0.1, microbatches=k)


def impossible():
    agents, rows = SYSTEMS["actor_critic"]
    yield "agents", agents, rows
    yield "perturbation", fm.defences.FreeAdversarial(classifier(), REGION), (X, Y)
    yield "weights", pair(), {"one": (X, Y, WEIGHTS), "two": (X, Y)}
    uneven = fm.data.Mixed(fm.Labeled(X[:4], Y[:4]), fm.Unlabeled(X))
    yield "row", SYSTEMS["semi_supervised"][0], uneven


@pytest.mark.parametrize(("words", "system", "raw"), list(impossible()), ids=["agents", "free", "weights", "uneven"])
def test_what_cannot_be_split_is_an_error(words, system, raw):
    with pytest.raises(ValueError, match=f"microbatches: .*{words}.*write microbatches=1"):
        state = fm.setup(system, raw, optimizer=optax.adam, lr=0.1, microbatches=2, batch_size=len(fm.as_batch(system, raw)))
        fm.train_step(state, raw)


def accumulating(lr):
    return optax.MultiSteps(optax.adam(lr), 2)


@pytest.mark.parametrize(
    "options", [{"optimizer": optax.adam, "microbatches": 3}, {"optimizer": accumulating}], ids=["in", "over"]
)
def test_accumulation_does_not_divide_the_schedule_and_the_rate_is_logged(options):
    _, history = fm.fit(classifier(), (X, Y), lr=fm.cosine(0.1), batch_size=3, epochs=2, progress=False, **options)
    expected = jax.jit(fm.cosine(0.1)(fm.Plan(total_steps=8)))
    np.testing.assert_allclose(history["lr"], [expected(3), expected(7)], rtol=1e-5)
