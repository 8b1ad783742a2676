"""Several tasks on one backbone, weights of their losses, and gradients through training itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net

import fulmen as fm

X, Y = data(12)
DATA = {"x": X, "label": Y, "half": X[:, :2]}
TASKS = ("label", "half")


def tasks():
    return fm.MultiTask(Linear(4, 5), {"label": fm.Classifier(Linear(5, 3)), "half": fm.Regressor(Linear(5, 2))})


@pytest.fixture(scope="module")
def state():
    return fm.setup(tasks(), DATA, optimizer=optax.adam, lr=0.1, batch_size=12)


def of_task(backbone, head, name):
    """One task's loss by hand."""
    z = head.model(backbone(X))
    if name == "half":
        return ((z - X[:, :2]) ** 2).mean()
    return optax.softmax_cross_entropy_with_integer_labels(z, Y).mean()


@jax.jit
def by_hand(system):
    return {name: of_task(system.backbone, system.heads[name], name) for name in TASKS}


def test_the_backbones_gradient_is_the_sum_of_both_tasks(state):
    system, batch = state.system, fm.as_batch(state.system, DATA)
    value, slopes, _, _ = jax.jit(fm.differentiate)(system, batch, fm.Train(jax.random.key(0)))
    np.testing.assert_allclose(value, sum(by_hand(system).values()), rtol=1e-6)
    by_both = jax.grad(lambda parts, name: of_task(*parts, name))
    each = jax.jit(lambda system: {name: by_both((system.backbone, system.heads[name]), name) for name in TASKS})(system)
    for field in ("weight", "bias"):
        a, b = (np.asarray(getattr(each[name][0], field)) for name in TASKS)
        assert (a != 0).any() and (b != 0).any()
        np.testing.assert_allclose(getattr(slopes.backbone, field), a + b, atol=1e-7)
    for name, (_, alone) in each.items():
        np.testing.assert_allclose(slopes.heads[name].model.weight, alone.model.weight, atol=1e-7)


def test_the_optimizer_has_one_copy(state):
    assert fm.count_parameters(state.system) == 25 + 18 + 12
    moments = [v for v in jax.tree.leaves(state.optimizer_state) if jnp.ndim(v)]
    assert [v.shape for v in moments].count((4, 5)) == 2  # Adam's two, of the one backbone
    assert sum(v.size for v in moments) == 2 * 55


def test_evaluation_and_outputs(state):
    figures = fm.evaluate(state, DATA, batch_size=5)
    expected = by_hand(state.system)
    assert figures["loss"] == pytest.approx(float(sum(expected.values())), rel=1e-5)
    assert set(figures) >= {"loss/label/cross_entropy", "loss/half/mse", "label/accuracy", "half/mean_absolute_error"}
    outputs = fm.predict(state, X)
    np.testing.assert_allclose(outputs["label"], state.system.heads["label"].model(state.system.backbone(X)), atol=1e-6)
    assert set(fm.predictions(state, DATA)) == set(TASKS)


class Doubled(fm.Classifier):
    """A head that weighs its loss itself."""


@fm.dispatch
def reduce_losses(head: Doubled, losses, batch):
    return 2 * losses["cross_entropy"].mean()


def test_heads_reduce_their_own_losses():
    system = fm.MultiTask(Linear(4, 5), {"label": Doubled(Linear(5, 3)), "half": fm.Regressor(Linear(5, 2))})
    system = fm.init(system, jax.random.key(0))
    expected = by_hand(system)
    np.testing.assert_allclose(fm.loss(system, DATA), 2 * expected["label"] + expected["half"], rtol=1e-6)


def test_logged_losses_of_heads_use_the_weights_of_their_batches():
    class LastSix(fm.Regressor):
        pass

    @fm.dispatch
    def as_batch(head: LastSix, raw: fm.Labeled):
        return fm.replace(raw, weight=jnp.repeat(jnp.array([0.0, 1.0]), 6))

    system = fm.MultiTask(
        Linear(4, 5), {"label": fm.Classifier(Linear(5, 3)), "half": LastSix(Linear(5, 2), 2.0 * fm.L2() + fm.MSE())}
    )
    state, logs = fm.train_step(fm.setup(system, DATA, optimizer=optax.sgd, lr=0.0, batch_size=12), DATA)
    squares = (state.system(X)["half"] - X[:, :2]) ** 2
    np.testing.assert_allclose(logs["loss/half/mse"], squares[6:].mean(), rtol=1e-5)
    entries = [v for name, v in logs.items() if name.startswith("loss/")]
    np.testing.assert_allclose(logs["loss"], sum(entries), rtol=1e-6)


# Weights


def test_weights_are_hyperparameters(state):
    weighted = fm.Weighted(state.system, {"half": 0.25})
    means = by_hand(state.system)
    np.testing.assert_allclose(fm.loss(weighted, DATA), means["label"] + 0.25 * means["half"], rtol=1e-6)
    np.testing.assert_allclose(
        fm.loss(fm.replace(weighted, {"weights.half": 2.0}), DATA), means["label"] + 2 * means["half"], rtol=1e-6
    )
    assert fm.count_parameters(weighted) == 55
    run = jax.jit(jax.grad(lambda s: fm.loss(s, DATA)))
    slopes = run(fm.Weighted(state.system, {"label": 3.0, "half": 0.0})).system
    alone = jax.jit(jax.grad(of_task), static_argnums=2)(state.system.backbone, state.system.heads["label"], "label")
    np.testing.assert_allclose(slopes.backbone.weight, 3 * alone.weight, atol=1e-6)


class Twofold(fm.System):
    """Its reduction needs all entries at once."""

    model: fm.Model


@fm.dispatch
def losses(system: Twofold, batch):
    return {"a": (system.model(batch.x)[:, 0] - 1.0) ** 2, "b": {"c": system.model(batch.x)[:, 1] ** 2}}


@fm.dispatch
def reduce_losses(system: Twofold, losses, batch):
    return 2 * losses["a"].mean() + losses["b"]["c"].mean()


class Sums(fm.System):
    """With the default reduction."""

    model: fm.Model


@fm.dispatch
def losses(system: Sums, batch):
    return {"a": (system.model(batch.x)[:, 0] - 1.0) ** 2, "b": system.model(batch.x)[:, 1] ** 2}


class Halved(fm.Wrapper):
    part: fm.System


@fm.dispatch
def loss(system: Halved, batch):
    return 0.5 * fm.loss(system.part, batch)


def test_weights_around_a_reduction_of_all_entries():
    batch = fm.Unlabeled(jnp.asarray(DATA["x"]))
    system = fm.init(Twofold(fm.models.Dense(batch.x.shape[1], 2)), jax.random.key(0))
    z = np.asarray(system.model(batch.x))
    a, c = ((z[:, 0] - 1) ** 2).mean(), (z[:, 1] ** 2).mean()
    np.testing.assert_allclose(fm.loss(fm.Weighted(system, {"b": 0.1}), batch), 2 * a + 0.1 * c, rtol=1e-6)
    twice = fm.Weighted(fm.Weighted(system, {"b": 0.1}), {"a": 3.0, "b": 2.0})
    np.testing.assert_allclose(fm.loss(twice, batch), 6 * a + 0.2 * c, rtol=1e-6)
    with pytest.raises(KeyError) as caught:
        fm.loss(fm.init(fm.Weighted(system, fm.systems.Uncertainty("a", "b")), jax.random.key(0)), batch)
    assert "`reduce_losses` of the system with one entry at a time" in "\n".join(caught.value.__notes__)


def test_learned_weights_around_defences():
    """Their `reduce_losses` passes on to the system, or sums."""
    data = np.asarray(DATA["x"]), np.arange(len(DATA["x"])) % 2
    model, attack = fm.models.Dense(DATA["x"].shape[1], 2), fm.FGSM(fm.LinfBall(0.1))
    for system, names in (
        (fm.EMA(fm.Adversarial(Sums(model), attack)), ("a", "b")),
        (fm.TRADES(fm.Classifier(model), fm.PGD(fm.LinfBall(0.1), 0.05, 2)), ("clean", "kl")),
    ):
        for weights in (fm.systems.Uncertainty(*names), {names[0]: 2.0}):
            state = fm.setup(fm.Weighted(system, weights), data, optimizer=optax.sgd, lr=0.1)
            _, logs = fm.train_step(state, data)
            first, second = (float(logs[f"loss/{name}"]) for name in names)
            expected = 2 * first + second if isinstance(weights, dict) else first + second
            assert float(logs["loss"]) == pytest.approx(expected, rel=1e-5)


def test_weights_around_a_loss_that_is_not_made_of_entries(state):
    np.testing.assert_allclose(
        fm.loss(Halved(fm.Weighted(state.system, {"half": 2.0})), DATA),
        fm.loss(fm.Weighted(state.system, {"half": 2.0}), DATA) / 2,
    )
    with pytest.raises(
        TypeError, match=r"Weighted\.system must have a loss that is made of its `losses`.*write Halved\(fm\.Weighted"
    ):
        fm.loss(fm.Weighted(Halved(state.system), {"half": 2.0}), DATA)


def test_weights_apply_inside_wrappers():
    """Nested, attacked, and with examples one by one."""

    class Around(fm.System):
        inner: fm.Weighted
        other: Net

    pair = fm.init(Pair(net(), net()), jax.random.key(0))
    weighted, batch = fm.Weighted(pair, {"one": 3.0}), fm.Labeled(X, Y)
    one, two = (fm.loss(part, batch).mean() for part in (pair.one, pair.two))
    other = fm.init(net(), jax.random.key(1))
    expected = 3 * one + two + fm.loss(other, batch).mean()
    np.testing.assert_allclose(fm.loss(Around(weighted, other), batch), expected, rtol=1e-6)
    attack = fm.FGSM(fm.LinfBall(0.1))
    adv = fm.Adversarial(weighted, attack)
    moved = fm.augment(adv, batch, fm.Train(jax.random.key(0)))
    both = lambda x: 3 * fm.loss(pair.one, fm.Labeled(x, Y)).sum() + fm.loss(pair.two, fm.Labeled(x, Y)).sum()
    slope = jax.jit(jax.grad(both))
    np.testing.assert_allclose(moved.batch.x, X + 0.1 * np.sign(slope(jnp.asarray(X))), atol=1e-6)
    one, two = (fm.loss(part, moved.batch).mean() for part in (pair.one, pair.two))
    np.testing.assert_allclose(fm.loss(adv, moved), 3 * one + two, rtol=1e-6)


def test_weights_by_uncertainty(state):
    variances = jnp.array([0.3, -0.5])
    weighted = fm.Weighted(state.system, fm.systems.Uncertainty(*TASKS, log_variances=variances))
    means = by_hand(state.system)
    expected = sum(np.exp(-s) * means[name] + s / 2 for s, name in zip(variances, TASKS))
    np.testing.assert_allclose(fm.loss(weighted, DATA), expected, rtol=1e-6)
    assert fm.count_parameters(weighted) == 57
    slope = jax.jit(jax.grad(lambda s: fm.loss(s, DATA)))(weighted).weights.log_variances
    theirs = [-np.exp(-s) * means[name] + 0.5 for s, name in zip(variances, TASKS)]
    np.testing.assert_allclose(slope, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("system", "raw", "words"),
    [
        (tasks, {"x": X, "label": Y}, "MultiTask must be a dict with .* x, half, label; got label, x"),
        (tasks, (X, Y), "MultiTask must be a dict with .* x, half, label; got a Labeled batch"),
        (
            lambda: fm.MultiTask(Linear(4, 5), {"x": fm.Classifier(Linear(5, 3))}),
            {"x": X},
            "heads must not have the name 'x'.*rename",
        ),
        (lambda: fm.MultiTask(Linear(4, 5), {}), {"x": X}, "heads must have at least one"),
        (tasks, {"x": X, "label": Y, "half": X}, r"half|\(12, 2\)"),
        (lambda: fm.Weighted(tasks(), {"hulf": 1.0}), DATA, "no entry 'hulf'; did you mean 'half'"),
        (
            lambda: fm.Weighted(tasks(), fm.systems.Uncertainty("half")),
            DATA,
            "Uncertainty.tasks must name every entry .*'label' is missing",
        ),
        (
            lambda: fm.Weighted(tasks(), {"half": np.inf}),
            DATA,
            r"Weighted.weights\['half'\] must be a finite number, got inf",
        ),
        (lambda: fm.Weighted(net(), {}), (X, Y), "Weighted.system must be a System"),
    ],
)
def test_bad_input(system, raw, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fm.setup(system(), raw, optimizer=optax.sgd(0.1))


# Training is a function, so it has a derivative


def test_a_gradient_through_training():
    """Of the loss on other data after three steps: with respect to the learning rate, and to a penalty's weight."""
    with jax.enable_x64(True):
        x, y = X.astype(np.float64), Y
        system = fm.Classifier(Linear(4, 3), fm.CrossEntropy() + 0.1 * fm.L2())
        state = fm.setup(system, (x[:8], y[:8]), optimizer=optax.adam, lr=0.05, batch_size=8)

        @jax.jit
        @jax.value_and_grad
        def after_training(values):
            trained = fm.replace(state, values)
            for _ in range(3):
                trained, _ = fm.train_step(trained, (x[:8], y[:8]))
            outputs = trained.system(x[8:])
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y[8:]).mean()

        values, step = {"optimizer.lr": 0.05, "system.objective.terms.1.weight": 0.05}, 1e-5
        value, slopes = after_training(values)
        for name, slope in slopes.items():
            changed = lambda by, name=name: after_training({**values, name: values[name] + float(by)})[0]
            differences = (changed(step) - changed(-step)) / (2 * step)
            assert slope == pytest.approx(float(differences), rel=1e-6) and abs(slope) > 1e-3, name
            assert changed(-0.01 * np.sign(slope)) < value, name
