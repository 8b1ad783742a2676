"""`Population`: members train as they would alone, each with its own numbers, in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, Linear, Net, Pair

import fulmen as fm
from fulmen import dispatch
from fulmen.compose.vectorized import around, inside, members_of, over_members, over_states
from fulmen.core.mergeable import Mergeable, Spread
from fulmen.models import BatchNorm, Chain, Dense, Dropout
from fulmen.train.progress import line

REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)
FEATURES, CLASSES, BATCH = 4, 3, 8


def examples(n=24, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.random((n, FEATURES)).astype(dtype), rng.integers(0, CLASSES, n).astype(np.int32)


DATA = examples()


def classifier(weight=1e-3, rate=0.3):
    # A bias before a `BatchNorm` has a gradient of rounding errors alone, which Adam makes as large as any.
    layers = Dense(FEATURES, 6, use_bias=False), BatchNorm(6), jax.nn.relu, Dropout(rate), Dense(6, CLASSES)
    return fm.Classifier(Chain(*layers), fm.CrossEntropy() + weight * fm.L2())


def small():
    return fm.Classifier(Dense(FEATURES, CLASSES))


def clipped(plan: fm.Plan):
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.02))


OPTIONS = dict(batch_size=BATCH, epochs=2)


def fit(state, data=DATA, **options):
    return fm.fit(state, data, epochs=2, progress=False, **options)


def close(ours, theirs, tolerance=2e-5):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and np.shape(a) == np.shape(b)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def same_as_alone(population, systems, data=DATA, seed=3, tolerance=2e-5, each=None, **options):
    """Train a population, and its members each by itself from the same seed; compare all there is. Returns both."""
    state = fm.setup(population, data, seed=seed, **OPTIONS, **options)
    state, history = fit(state, data)
    for i, system in enumerate(systems):
        own = {**options, **({} if each is None else each[i])}
        alone = fm.setup(system, data, seed=seed + i, **OPTIONS, **own)
        start = jax.device_get(alone.system)
        alone, record = fit(alone, data)
        member = fm.members(state)[i]
        assert jax.tree.structure(member.system) == jax.tree.structure(alone.system)
        close((member.system, member.optimizer_state), (alone.system, alone.optimizer_state), tolerance)
        assert (
            member.step == alone.step and jax.random.key_data(member.key).tolist() == jax.random.key_data(alone.key).tolist()
        )
        for name, values in record.items():
            if name != "seconds":
                np.testing.assert_allclose(history[f"{name}/members"][:, i], values, rtol=1e-4, atol=1e-5)
        ends = jax.tree.leaves(jax.device_get(alone.system)), jax.tree.leaves(start)
        moved = [np.abs(a - b).max() for a, b in zip(*ends, strict=True)]
        assert max(moved) > 100 * tolerance  # or nothing would have been shown
    return state, history


def test_members_train_like_single_systems():
    """Members that differ in their seeds, with dropout, batch norm, clipping and a short last batch, in double precision."""
    with jax.enable_x64(True):
        data = examples(22, np.float64)
        state, history = same_as_alone(
            fm.Population(classifier(), 3), [classifier()] * 3, data, tolerance=1e-12, optimizer=clipped
        )
    weights = np.asarray(state.system.members.model.layers[0].weight)
    assert weights.dtype == np.float64
    assert weights.shape == (3, FEATURES, 6) and not np.allclose(weights[0], weights[1], atol=0.05)
    means, spread = np.asarray(state.system.members.model.layers[1].mean.value), history["loss/members"]
    assert (means.std(0) > 0).all() and spread.shape == (2, 3)
    np.testing.assert_allclose(history["loss"], spread.mean(1), rtol=1e-6)
    np.testing.assert_allclose(history["loss/std"], spread.std(1), rtol=1e-4)


def test_members_that_differ_in_their_numbers():
    numbers = [(1e-3, 0.3), (0.1, 0.0)]
    systems = [classifier(*each) for each in numbers]
    state, _ = same_as_alone(
        fm.Population(systems), systems, optimizer=optax.adam, lr=[0.003, 0.05], each=[dict(lr=0.003), dict(lr=0.05)]
    )
    np.testing.assert_allclose(state.optimizer.lr, [0.003, 0.05], rtol=1e-6)
    np.testing.assert_allclose(state.system.members.objective.terms[1].weight, [1e-3, 0.1], rtol=1e-6)


def test_each_member_may_have_a_schedule():
    def halved(step):
        return 0.02 / 2**step

    rates, alone = ([fm.warmup(0.01, 0.5), second, halved] for second in (0.003, lambda step: 0.003))
    options = dict(optimizer=clipped_adam, lr=rates, each=[dict(lr=rate) for rate in alone])
    state, history = same_as_alone(fm.Population(small(), 3), [small()] * 3, **options)
    first, last = history["lr/members"]
    assert (first != last).tolist() == [True, False, True]
    members = fm.members(state)
    with Compilations() as count:
        _, logs = fm.train_step(members[0], (DATA[0][:BATCH], DATA[1][:BATCH]))
    assert float(logs["lr"]) == pytest.approx(0.01) and len(count)


def clipped_adam(lr):
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adam(lr))


def test_a_schedule_for_each_member_needs_as_many_as_members():
    population = fm.Population(small(), 3)
    with pytest.raises(ValueError, match=r"member must have one value for each of the 3 members"):
        fm.setup(population, DATA, optimizer=optax.adam, lr=[fm.cosine(0.1), fm.cosine(0.2)], steps=4)


class Weighed(fm.Wrapper):
    """A wrapper with a parameter of its own."""

    system: fm.Component
    factor: fm.Parameter


class Tuned(fm.Model):
    """A model that brings its learning rate along."""

    layer: Linear
    lr: float


@dispatch
def forward(net: Tuned, x):
    return net.layer(x)


@dispatch
def configure_optimizers(net: Tuned):
    return optax.adam(net.lr)


def test_a_learning_rate_that_a_method_reads():
    systems = [fm.Classifier(Tuned(Linear(FEATURES, CLASSES), lr)) for lr in (0.003, 0.05)]
    same_as_alone(fm.Population(systems), systems)


def adversarial(eps, start=fm.attacks.Uniform()):
    return fm.Adversarial(small(), fm.PGD(fm.LinfBall(eps) & fm.Box(0.0, 1.0), step_size=eps / 2, steps=2, start=start))


def test_an_attack_inside_attacks_each_member_separately():
    systems = [adversarial(eps) for eps in (0.05, 0.3)]
    state, history = same_as_alone(fm.Population(systems), systems, optimizer=optax.adam, lr=0.02)
    assert history["robust/accuracy/members"].shape == (2, 2)
    np.testing.assert_allclose(state.system.members.attack.region.regions[0].eps, [0.05, 0.3], rtol=1e-6)


def test_an_attack_outside_is_on_the_mean_loss():
    attack = fm.FGSM(REGION)
    robust = fm.Adversarial(fm.Population(small(), 3), attack)
    state = fm.setup(robust, DATA, optimizer=optax.adam, lr=0.02, **OPTIONS)
    raw = tuple(v[:BATCH] for v in DATA)
    after, logs = fm.train_step(state, raw)

    def mean_loss(x):
        return fm.loss(state.system.system, fm.Labeled(x, raw[1]))

    x = np.clip(raw[0] + 0.1 * np.sign(jax.jit(jax.grad(mean_loss))(jnp.asarray(raw[0]))), 0, 1)
    assert np.abs(x - raw[0]).max() > 0.05
    for i, member in enumerate(fm.members(state)):
        assert type(member.system) is fm.Adversarial
        plain = fm.setup(member.system.system, DATA, optimizer=optax.adam, lr=0.02, **OPTIONS)
        alone, found = fm.train_step(plain, (x, raw[1]))
        close(fm.members(after)[i].system.system, alone.system, 1e-6)
        np.testing.assert_allclose(logs["loss/members"][i], found["loss"], rtol=1e-5)
    assert logs["robust/accuracy/members"].shape == (3,)
    figures = fm.evaluate(after, DATA, attack=attack)
    assert figures["robust/accuracy/members"].shape == (3,)


def test_a_defence_outside_attacks_one_batch_for_all_members():
    attack = fm.FGSM(REGION, start=fm.attacks.Uniform())
    state = fm.setup(fm.TRADES(fm.Population(small(), 2), attack, 6.0), DATA, optimizer=optax.sgd, lr=0.1)
    _, logs = fm.train_step(state, DATA)
    entries = [
        v for name, v in logs.items() if name.startswith("loss/") and name.count("/") == 2 and name.endswith("/members")
    ]
    assert len(entries) == 2
    np.testing.assert_allclose(logs["loss/members"], sum(entries), rtol=1e-5)
    clean = [fm.evaluate(member, DATA)["loss"] for member in fm.members(state)]
    np.testing.assert_allclose(entries[0], clean, rtol=1e-5)


def test_custom_training_steps_must_be_inside():
    same_as_alone(fm.Population(fm.defences.SAM(small()), 2), [fm.defences.SAM(small())] * 2, optimizer=optax.adam, lr=0.02)
    with pytest.raises(ValueError, match=r"fm.Population\(fm.defences.SAM\(system\), n\)"):
        fm.setup(fm.defences.SAM(fm.Population(small(), 2)), DATA, optimizer=optax.sgd, lr=0.1)


def test_members_that_augment_cannot_be_attacked_together():
    noisy = fm.Classifier(Dense(FEATURES, CLASSES), augment=fm.augmentations.Noise(0.1))
    with pytest.raises(ValueError, match=r"each member augments the batch differently. .*fm.Population\(Adversarial\("):
        fm.setup(fm.Adversarial(fm.Population(noisy, 2), fm.FGSM(REGION)), DATA, optimizer=optax.sgd, lr=0.1)


def test_players_at_different_rates():
    duel, x = fm.testing.tiny("game")
    x = np.concatenate([x, x[:4]])  # three full batches
    rates = dict(generator=fm.optimizers.every(3, optax.adam(0.05)), critic=optax.sgd(0.1))
    state, _ = same_as_alone(fm.Population(duel, 2), [duel] * 2, x, optimizer=rates)
    assert state.optimizer_state[0][0].count.tolist() == [2, 2]  # of six steps


def test_sums_of_models():
    pair = Pair(Net(Linear(FEATURES, CLASSES)), Net(Linear(FEATURES, CLASSES)))
    _, history = same_as_alone(fm.Population(pair, 2), [pair] * 2, optimizer=optax.adam, lr=0.02)
    assert {"loss/one/members", "loss/two/std"} <= set(history)


# Figures


@pytest.fixture(scope="module")
def trained():
    """Three members of a linear classifier after an epoch."""
    return fm.fit(
        fm.Population(small(), 3),
        DATA,
        optimizer=optax.adam,
        lr=0.02,
        epochs=2,
        validation=DATA,
        progress=False,
        batch_size=8,
    )


def test_metrics_are_those_of_the_members(trained):
    state, _ = trained
    attack = fm.FGSM(REGION)
    figures = fm.evaluate(state, DATA, attack=attack, batch_size=9)
    each = [fm.evaluate(member, DATA, attack=attack) for member in fm.members(state)]
    assert {f"{name}/members" for name in each[0]} == {name for name in figures if name.endswith("/members")}
    for name in each[0]:
        values = np.array([one[name] for one in each])
        np.testing.assert_allclose(figures[f"{name}/members"], values, rtol=1e-5)
        np.testing.assert_allclose(figures[name], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(figures[f"{name}/std"], values.std(), rtol=1e-3, atol=1e-6)
    outputs = fm.predict(state, DATA[0], batch_size=9)
    assert outputs.shape == (24, 3, CLASSES)
    close([outputs[:, 1]], [fm.predict(fm.members(state)[1], DATA[0])], 1e-6)
    close([fm.forward(state, DATA[0])], [outputs], 1e-6)


def test_losses_and_metrics_of_the_members(trained):
    state, _ = trained
    entries = fm.losses(state, DATA)
    assert list(entries) == ["0", "1", "2"]
    alone = [fm.losses(member, DATA) for member in fm.members(state)]
    close([entries[str(i)] for i in range(3)], alone, 1e-6)
    value = fm.reduce_losses(state.system, entries, fm.Labeled(*DATA))
    close([value], [fm.loss(state, DATA)], 1e-6)
    close([value], [np.mean([np.asarray(fm.loss(member, DATA)) for member in fm.members(state)])], 1e-6)
    found = fm.metrics(state, DATA)["accuracy"]
    assert found.compute().shape == (3,) and set(found.logged("accuracy")) == {
        "accuracy",
        "accuracy/std",
        "accuracy/members",
    }
    assert fm.eval_step(state, DATA)["loss"].compute().shape == (3,)
    assert [*fm.predictions(state, DATA)] == ["0", "1", "2"]
    assert "2" in str(fm.loss_tree(state, DATA)) and "members.model.weight" in str(fm.summary(state, DATA))


def test_a_bar_and_a_plot(trained):
    _, history = trained
    last = {name: float(v[-1]) if v.ndim == 1 else v[-1] for name, v in history.items()}
    text = line(last)
    assert " ± " in text and "/std" not in text and "/members" not in text
    assert f"loss {last['loss']:.4g} ± {last['loss/std']:.2g}" in text
    pytest.importorskip("matplotlib")
    loss = fm.plot(history).axes[0]
    # Training and validation, each a mean and three members.
    assert len(loss.lines) == 8 and [axes.get_title() for axes in fm.plot(history).axes] == [
        "loss",
        "accuracy",
        "lr",
        "seconds",
    ]
    assert any(f"± {history['loss/std'][-1]:.2g}" in text.get_text() for text in loss.texts)


def test_changing_a_number_compiles_nothing():
    systems = [adversarial(eps, fm.attacks.Clean()) for eps in (0.05, 0.3)]
    state = fm.setup(fm.Population(systems), DATA, optimizer=optax.adam, lr=[0.01, 0.02], batch_size=8)
    place = "system.members.attack.region.regions.0.eps"

    def changed(values):
        return fm.replace(state, {place: np.array(values, np.float32), "optimizer.lr": jnp.array(values)})

    fit(changed([0.0, 0.1])), fm.train_step(changed([0.0, 0.1]), DATA)
    with Compilations() as compiled:
        after, _ = fm.train_step(changed([0.2, 0.4]), DATA)
        fit(changed([0.2, 0.4]))
    assert not compiled.names
    assert not np.allclose(
        after.system.members.system.model.weight, fm.train_step(state, DATA)[0].system.members.system.model.weight
    )
    np.testing.assert_allclose(fm.members(after)[1].optimizer.lr, 0.4, rtol=1e-6)


# Members


def test_a_member_continues_as_a_single_system(trained):
    state, _ = trained
    member = fm.members(state)[-1]
    assert type(member) is fm.State and type(member.system) is fm.Classifier and member.step == state.step
    on, _ = fit(member)
    close(on.system, fm.members(fit(state)[0])[2].system)
    assert len(fm.members(state)) == 3 and [type(m) for m in fm.members(state)[1:]] == [fm.State] * 2
    with pytest.raises(IndexError):
        fm.members(state)[3]


def test_members_of_components():
    robust = fm.Adversarial(fm.Population(small(), 2), fm.FGSM(REGION))
    assert [type(m.system) for m in fm.members(robust)] == [fm.Classifier] * 2
    assert fm.members(robust)[0].attack is robust.attack
    with pytest.raises(TypeError, match=r"got Classifier; write fm.Population\(system, n\)"):
        fm.members(small())


def test_the_best_member(trained):
    state, history = trained
    best = int(history["validation/accuracy/members"][-1].argmax())
    close(fm.best_member(state, history, by="validation/accuracy"), fm.members(state)[best], 0)
    figures = fm.evaluate(state, DATA)
    close(fm.best_member(state, figures, by="loss"), fm.members(state)[int(figures["loss/members"].argmin())], 0)
    close(fm.best_member(state, by=[0.0, 2.0, np.nan], highest=True), fm.members(state)[1], 0)
    close(
        fm.best_member(state, figures, by="loss", highest=True), fm.members(state)[int(figures["loss/members"].argmax())], 0
    )


@pytest.mark.parametrize(
    ("figures", "options", "error", "message"),
    [
        (None, dict(by="loss"), TypeError, "`figures` must be a history .*got NoneType.*by='loss'"),
        ({"loss/members": np.zeros(3)}, dict(by="los"), KeyError, "no metric 'los' for each member; there are: loss"),
        (
            {"norm/members": np.zeros(3)},
            dict(by="norm"),
            ValueError,
            "whether a higher norm is better is unknown; write highest=True",
        ),
        (None, dict(by=np.zeros(3)), ValueError, "whether a higher value is better"),
        (None, dict(by=np.zeros(2), highest=True), ValueError, r"each of the 3 members, got shape \(2,\)"),
        (None, dict(by=[np.nan] * 3, highest=True), ValueError, "no member has a finite value"),
    ],
)
def test_no_best_member(trained, figures, options, error, message):
    with pytest.raises(error, match=message):
        fm.best_member(trained[0], figures, **options)


def test_saved_and_loaded(trained, tmp_path):
    state, _ = trained
    fm.save(tmp_path / "state", state)
    close(fm.load(tmp_path / "state", like=state), state, 0)


# Data of each member's own


def test_separate_data_for_each_member():
    x, y = DATA
    own = [(x[:12], y[:12]), (x[8:20], y[8:20])]
    data = fm.systems.PerMember(own)
    options = dict(optimizer=optax.adam, lr=0.02, batch_size=6, epochs=2)
    state, history = fm.fit(fm.Population(small(), 2), data, validation=data, progress=False, **options)
    for i, each in enumerate(own):
        alone, record = fm.fit(fm.setup(small(), each, seed=i, **options), each, epochs=2, validation=each, progress=False)
        close(fm.members(state)[i].system, alone.system)
        np.testing.assert_allclose(history["validation/loss/members"][:, i], record["validation/loss"], rtol=1e-4)
    attacked = fm.evaluate(state, data, attack=fm.FGSM(REGION))["robust/loss/members"]
    each = [fm.evaluate(m, d, attack=fm.FGSM(REGION))["robust/loss"] for m, d in zip(fm.members(state), own, strict=True)]
    np.testing.assert_allclose(attacked, each, rtol=1e-4)
    close([fm.predict(state, data)[:, 1]], [fm.predict(fm.members(state)[1], own[1])], 1e-6)


def test_a_member_with_fewer_examples():
    x, y = DATA
    own = [(x[:9], y[:9]), (x[9:16], y[9:16])]
    data = fm.systems.PerMember(own)
    assert data.weight.tolist() == [[1, 1]] * 7 + [[1, 0]] * 2
    state = fm.setup(fm.Population(small(), 2), data, optimizer=optax.sgd, lr=0.5, batch_size=9)
    after, logs = fm.train_step(state, data)
    for i, (member, each) in enumerate(zip(fm.members(state), own, strict=True)):
        alone, found = fm.train_step(member, each)
        close(fm.members(after)[i].system, alone.system, 1e-6)
        np.testing.assert_allclose(logs["loss/members"][i], found["loss"], rtol=1e-6)
    figures = fm.evaluate(state, data, batch_size=4)
    each = [fm.evaluate(m, d)["accuracy"] for m, d in zip(fm.members(state), own, strict=True)]
    np.testing.assert_allclose(figures["accuracy/members"], each, rtol=1e-6)


# Seeds


def test_given_seeds_are_used():
    seeds = [5, 0, 9]
    state = fm.setup(fm.Population(classifier(), 3, seeds=seeds), DATA, seed=1, optimizer=optax.sgd, lr=0.1)
    for member, seed in zip(fm.members(state), seeds, strict=True):
        alone = fm.setup(classifier(), DATA, seed=seed, optimizer=optax.sgd, lr=0.1)
        close(member.system, alone.system)
        assert jax.random.key_data(member.key).tolist() == jax.random.key_data(alone.key).tolist()


def test_a_frozen_population_is_evaluated_by_member():
    state = set_up(fm.Population(small(), 2))
    frozen = fm.Frozen(state.system)
    assert [type(member) for member in fm.members(frozen)] == [fm.Frozen] * 2
    np.testing.assert_array_equal(
        fm.evaluate(frozen, DATA)["accuracy/members"], fm.evaluate(state, DATA)["accuracy/members"]
    )


class Twins(fm.System):
    """A vectorized system of a user: some systems, each trained by itself."""

    parts: list[fm.Component]


@dispatch
def members_of(twins: Twins, whole):
    return [around(whole, part) for part in twins.parts]


@dispatch
def over_members(twins: Twins, whole, function, *inputs, axis=0):
    return together([function(member, *inputs) for member in members_of(twins, whole)], axis)


@dispatch
def over_states(twins: Twins, state, function, *inputs):
    each = state.optimizer_state or [()] * len(twins.parts)
    systems = members_of(twins, state.system)
    found = [function(state.replace(system=s, optimizer_state=o), *inputs) for s, o in zip(systems, each, strict=True)]
    system = around(state.system, fm.replace(twins, parts=[inside(state.system, one.system) for one, _ in found]))
    optimizer_state = tuple(one.optimizer_state for one, _ in found)
    return state.replace(system=system, optimizer_state=optimizer_state), together([extra for _, extra in found])


def together(found, axis=0):
    is_figure = lambda v: isinstance(v, Mergeable)
    stacked = jax.tree.map(lambda *values: jnp.stack(values, axis), *found)
    return jax.tree.map(lambda v: Spread(v) if is_figure(v) else v, stacked, is_leaf=is_figure)


class Plain(fm.Wrapper):
    system: fm.Component


@pytest.mark.parametrize("wrap", [lambda twins: twins, Plain])
def test_a_vectorized_system_of_a_user(wrap):
    parts = [fm.init(small(), jax.random.key(i)) for i in range(2)]
    options = dict(optimizer=optax.adam, lr=0.02, seed=3)
    state, history = fit(fm.setup(wrap(Twins(parts)), DATA, **OPTIONS, **options))
    alone = [fit(fm.setup(part, DATA, **OPTIONS, **options)) for part in parts]
    close([inside(state.system, m) for m in members_of(state.system, state.system)], [one.system for one, _ in alone])
    np.testing.assert_allclose(history["loss/members"], np.stack([h["loss"] for _, h in alone], 1), rtol=1e-5)
    expected = np.stack([fm.predict(one, DATA[0]) for one, _ in alone], 1)
    np.testing.assert_allclose(fm.predict(state, DATA[0]), expected, rtol=1e-4, atol=1e-5)
    figures = fm.evaluate(state, DATA)
    np.testing.assert_allclose(figures["accuracy/members"], [fm.evaluate(one, DATA)["accuracy"] for one, _ in alone])


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fm.Population([]), ValueError, "must have at least one member, got 0"),
        (lambda: fm.Population(small(), 0), ValueError, "must have at least one member"),
        (lambda: fm.Population(small(), -2), ValueError, "must have at least one member"),
        (lambda: fm.Population(small()), TypeError, r"fm.Population\(system, 8\), got n=None"),
        (lambda: fm.Population(small(), 2.0), TypeError, "got n=2.0"),
        (lambda: fm.Population([small(), small()], 3), ValueError, "n must be left out or 2 for a list of 2 systems, got 3"),
        (
            lambda: fm.Population([small(), fm.Regressor(Dense(4, 3))]),
            TypeError,
            "got a Classifier as member 0 and a Regressor as member 1",
        ),
        (lambda: fm.Population([small(), 3.0]), TypeError, "members must be systems, got 3.0 as member 1"),
        (
            lambda: fm.Population([small(), fm.Classifier(Dense(4, 5))]),
            ValueError,
            "model.out_features is 3 in member 0 and 5 in member 1",
        ),
        (
            lambda: fm.Population([small(), fm.Classifier(Linear(4, 3))]),
            ValueError,
            r"model is Dense\(.*\) in member 0 and Linear\(.*\) in member 1",
        ),
        (
            lambda: fm.Population([fm.Adversarial(small(), fm.FGSM(REGION), clean_weight=w) for w in (None, 0.5)]),
            ValueError,
            "clean_weight is None in member 0 and 0.5 in member 1",
        ),
        (
            lambda: fm.Population([Linear(4, 3, weight=jnp.zeros((4, k))) for k in (3, 4)]),
            ValueError,
            r"weight is f32\[4, 3\] in member 0 and f32\[4, 4\] in member 1",
        ),
    ],
)
def test_invalid_populations(make, error, message):
    with pytest.raises(error, match=message):
        make()


def set_up(population, data=DATA, **options):
    return fm.setup(population, data, **{"optimizer": optax.adam, "lr": 1e-3, **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: set_up(fm.Population(small(), 3), lr=[1e-3, 1e-2]),
            ValueError,
            r"lr must have one value for each of the 3 members .* got f32\[2\]",
        ),
        (lambda: set_up(small(), lr=[1e-3, 1e-2]), TypeError, "lr must be one number.* needs a fm.Population"),
        (lambda: set_up(fm.Population([classifier(rate=r) for r in (0.1, 1.5)])), ValueError, "Dropout"),
        (
            lambda: set_up(Weighed(fm.Population(small(), 2), fm.Parameter(jnp.ones(())))),
            ValueError,
            r"factor is a parameter outside the population.*fm.Population\(Weighed\(",
        ),
        (
            lambda: set_up(fm.replace(fm.Population(small(), 3), {"members.model.weight": jnp.zeros((2, 4, 3))})),
            ValueError,
            r"members.model.weight must have one value for each of the 3 members .* got f32\[2, 4, 3\]",
        ),
        (
            lambda: set_up(fm.Population(small(), 3), fm.systems.PerMember([DATA, DATA])),
            ValueError,
            "PerMember must have data for each of the 3 members",
        ),
        (lambda: set_up(fm.Population(small(), 3, seeds=[1, 2])), ValueError, r"seeds must be 3 integers.*got i32\[2\]"),
        (lambda: set_up(fm.Population(small(), 1, seeds=[0.5])), ValueError, r"seeds must be 1 integers.*got f32\[1\]"),
        (
            lambda: set_up(fm.EMA(fm.Population(small(), 3), 0.9)),
            TypeError,
            r"EMA must not be around a Population, .* write fm.Population\(fm.EMA\(system, 0.9\), 3\)",
        ),
        (
            lambda: fm.systems.PerMember([DATA, DATA[0]]),
            ValueError,
            "PerMember must get a list with data of the same structure",
        ),
        (lambda: set_up(fm.Population(small(), 2), (DATA[0], DATA[1] + 1)), ValueError, "labels from 0 to 2"),
        (lambda: fm.robustness(set_up(fm.Population(small(), 2)), DATA, REGION), ValueError, r"fm.members\(state\)\[0\]"),
    ],
)
def test_invalid_setups(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_error_names_the_member():
    with pytest.raises(ValueError) as found:
        set_up(fm.Population([classifier(rate=r) for r in (0.1, 1.5)]))
    assert found.value.__notes__ == ["in member 1 of the population"]


def test_identical_members_give_a_warning():
    drawn = fm.init(small(), jax.random.key(0))
    with pytest.warns(UserWarning, match=r"its 3 members start with the same arrays.*a list"):
        set_up(fm.Population(drawn, 3))
    (found,) = fm.check(fm.Population(drawn, 2), DATA, optimizer=optax.adam, lr=1e-3).warnings
    assert "its 2 members start with the same arrays" in found.what
    broken = lambda lr: optax.GradientTransformation(lambda parameters: (), lambda *args: 1 / 0)
    *_, warned, error = fm.check(fm.Population(drawn, 2), DATA, optimizer=broken, lr=1e-3).findings
    assert "its 2 members start with the same arrays" in warned.what and "ZeroDivisionError" in error.what
    set_up(fm.Population(drawn, 2), lr=[1e-3, 1e-2])
    set_up(fm.Population(drawn, 2), fm.systems.PerMember([DATA, DATA]))
    set_up(fm.Population(drawn, 1))


def test_checks():
    robust = fm.Adversarial(fm.Population(small(), 2), fm.FGSM(REGION))
    for system in (fm.Population(adversarial(0.1), 2), robust):
        report = fm.check(system, DATA, optimizer=optax.adam, lr=1e-3)
        assert report.ok and not report.warnings, report
    assert len(members_of(robust, robust)) == 2 and not members_of(small(), small())
