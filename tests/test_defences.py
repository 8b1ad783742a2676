"""Defences: one step of training against the same step written in plain JAX, with batch normalization and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, Chain, Dense, Dropout
from fulmen.robust.attacks.attack import Start
from fulmen.robust.defences import AWP, MART, NFGSM, SAM, TRADES, VAT, FreeAdversarial, GradAlign, ascent, fast_fgsm
from fulmen.robust.defences.adversarial import AttackSchedule
from fulmen.robust.defences.weights import trained as trained_part

EPS, STEP, LR = 0.1, 0.04, 0.1
REGION = fm.LinfBall(EPS) & fm.Box(0.0, 1.0)
N, FEATURES, CLASSES = 12, 5, 3


class Shifted(Start):
    """A fixed point near the input."""


@dispatch
def start_point(start: Shifted, region, x, key):
    return x + 0.003 * jnp.cos(7 * jnp.arange(x.size, dtype=x.dtype) + 9 * x)


PGD = fm.PGD(REGION, 2 * STEP, 1, start=Shifted())
TWICE = fm.PGD(REGION, STEP, 2, start=Shifted())  # where the reference of the divergence must not move with the point


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.random((N, FEATURES), np.float32), rng.integers(0, CLASSES, N).astype(np.int32)


def classifier():
    return fm.Classifier(Chain(Dense(FEATURES, 8), BatchNorm(8), jax.nn.relu, Dropout(0.3), Dense(8, CLASSES)))


# The same network in plain JAX: parameters and running statistics are dicts.


def unpacked(system):
    first, norm, _, _, last = (system.model[i] for i in range(5))
    arrays = dict(w1=first.weight, b1=first.bias, scale=norm.weight, shift=norm.bias, w2=last.weight, b2=last.bias)
    return arrays, dict(mean=norm.mean.value, variance=norm.variance.value)


def network(p, x, statistics=None, mask=None):
    """The logits: with running statistics in evaluation, with the batch's statistics and a dropout mask in training."""
    h = x @ p["w1"] + p["b1"][None]
    mean, variance = (h.mean(0), h.var(0)) if statistics is None else (statistics["mean"], statistics["variance"])
    h = (h - mean[None]) / jnp.sqrt(variance + 1e-5)[None] * p["scale"][None] + p["shift"][None]
    h = jnp.maximum(h, 0) if mask is None else jnp.maximum(h, 0) * mask
    return h @ p["w2"] + p["b2"][None]


def ce(z, y):
    return -jnp.log(jax.nn.softmax(z))[jnp.arange(len(y)), y]


def kl(p, q):
    p, q = jax.nn.softmax(p), jax.nn.softmax(q)
    return (p * (jnp.log(p) - jnp.log(q))).sum(1)


def moved_statistics(p, old, *passes):
    """The running statistics after some passes: the mean of those after each single pass."""
    hidden = [np.asarray(x) @ np.asarray(p["w1"]) + np.asarray(p["b1"]) for x in passes]
    mean, variance = np.asarray(old["mean"]), np.asarray(old["variance"])
    mean = sum(0.9 * mean + 0.1 * h.mean(0) for h in hidden) / len(hidden)
    variance = sum(0.9 * variance + 0.1 * h.var(0, ddof=1) for h in hidden) / len(hidden)
    return dict(mean=mean, variance=variance)


def ascend(objective, x, start, attack):
    """PGD by hand on a function of the inputs."""
    x, slope = np.asarray(x), jax.jit(jax.grad(lambda v: objective(v).sum()))
    inside = lambda there: np.clip(np.clip(there, x - np.float32(EPS), x + np.float32(EPS)), 0, 1)
    there = inside(np.asarray(start))
    for _ in range(attack.steps):
        there = inside(there + np.float32(attack.step_size) * np.sign(slope(there)))
    return there


@jax.jit
def shifted(x):
    return jax.vmap(lambda x: start_point(Shifted(), None, x, None))(x)


class Step:
    """A step of the library, and the values that the step by hand needs."""

    def __init__(self, defence, data, optimizer=None, *, labelled=True):
        self.state = fm.setup(defence, data, optimizer=optimizer or fm.optimizers.Optimizer(optax.sgd, LR), batch_size=N)
        self.mode = fm.Train(jax.random.fold_in(self.state.key, self.state.step), self.state.step)
        self.bound = fm.bind(self.state.system, self.mode)
        self.x, self.y = map(jnp.asarray, data)
        self.after, self.logs = fm.train_step(self.state, data if labelled else data[0])

    def inside(self, system):
        while not isinstance(system, fm.Classifier):
            system = system.system
        return system

    @property
    def before(self):
        return unpacked(self.inside(self.state.system))

    def mask(self, mode=None):
        """The dropout mask."""
        bound = self.bound if mode is None else fm.bind(self.state.system, mode)
        return self.inside(bound).model[3](jnp.ones((N, 8)))

    def matches(self, p, statistics, loss=None, atol=1e-6):
        ours, running = unpacked(self.inside(self.after.system))
        for theirs, mine in ((p, ours), (statistics, running)):
            for name, value in theirs.items():
                np.testing.assert_allclose(np.asarray(mine[name]), np.asarray(value), rtol=0, atol=atol, err_msg=name)
        if loss is not None:
            np.testing.assert_allclose(float(self.logs["loss"]), float(loss), rtol=2e-6)


def sgd(p, slopes):
    return {name: np.asarray(p[name]) - np.float32(LR) * np.asarray(slopes[name]) for name in p}


def hand_attack(step, objective=None, attack=PGD):
    """The attack in evaluation mode, on the cross-entropy or the divergence."""
    p, statistics = step.before
    if objective is None:
        objective = lambda v: ce(network(p, v, statistics), step.y)
    return ascend(objective, step.x, shifted(step.x), attack)


def divergence_attack(step):
    p, statistics = step.before
    return hand_attack(step, lambda v: kl(network(p, step.x, statistics), network(p, v, statistics)), TWICE)


def trained(step, loss, *passes):
    """One step of gradient descent on a loss of the parameters."""
    p, statistics = step.before
    value, slopes = jax.jit(jax.value_and_grad(loss))(p)
    step.matches(sgd(p, slopes), moved_statistics(p, statistics, *passes), value)


@pytest.mark.parametrize("weight", [None, 0.2])
def test_adversarial_training_with_a_share_of_clean_loss(weight, data):
    step = Step(fm.Adversarial(classifier(), PGD, weight), data)
    x, mask = hand_attack(step), step.mask()
    w = weight or 0.0

    def loss(p):
        clean, robust = ce(network(p, step.x, mask=mask), step.y).mean(), ce(network(p, x, mask=mask), step.y).mean()
        return w * clean + (1 - w) * robust

    trained(step, loss, *([x] if weight is None else [x, step.x]))
    entries = {"loss", "lr", "robust/accuracy"} | (set() if weight is None else {"loss/clean", "loss/robust", "accuracy"})
    assert set(step.logs) == entries


def test_trades(data):
    step = Step(TRADES(classifier(), TWICE, beta=4.0), data)
    x, mask = divergence_attack(step), step.mask()
    assert np.abs(x - step.x).max() > 0.06

    def loss(p):
        clean, robust = network(p, step.x, mask=mask), network(p, x, mask=mask)
        return ce(clean, step.y).mean() + 4.0 * kl(clean, robust).mean()

    trained(step, loss, x, step.x)
    assert set(step.logs) == {"loss", "loss/clean", "loss/kl", "lr", "accuracy", "robust/accuracy"}


def test_mart(data):
    step = Step(MART(classifier(), PGD, beta=5.0), data)
    x, mask, rows = hand_attack(step), step.mask(), jnp.arange(N)

    def loss(p):
        clean, robust = network(p, step.x, mask=mask), network(p, x, mask=mask)
        wrong = jax.nn.softmax(robust).at[rows, step.y].set(0).max(1)
        boosted = ce(robust, step.y) - jnp.log(1.0001 - wrong)
        return (boosted + 5.0 * kl(clean, robust) * (1 - jax.nn.softmax(clean)[rows, step.y])).mean()

    trained(step, loss, x, step.x)


def test_gradient_alignment(data):
    step = Step(GradAlign(classifier(), PGD, weight=0.7), data)
    x, mask = hand_attack(step), step.mask()
    key = jax.random.fold_in(step.bound.mode.at("alignment").key, 0)
    draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (FEATURES,), minval=-1, maxval=1)
    near = jax.jit(lambda: jnp.clip(step.x + EPS * jax.vmap(draw)(jnp.arange(N)), 0, 1))()

    def loss(p):
        slopes = jax.grad(lambda x: ce(network(p, x, mask=mask), step.y).sum())
        a, b = slopes(step.x), slopes(near)
        cosine = (a * b).sum(1) / jnp.sqrt((a**2).sum(1) * (b**2).sum(1))
        assert cosine.shape == (N,)
        return (ce(network(p, x, mask=mask), step.y) + 0.7 * (1 - cosine)).mean()

    trained(step, loss, x)
    assert 0 < float(step.logs["loss/alignment"]) < 1.4


@pytest.mark.parametrize(("labelled", "steps"), [(True, 2), (False, 1)])
def test_virtual_adversarial_training(labelled, steps, data):
    step = Step(VAT(classifier(), eps=0.4, weight=1.5, steps=steps, xi=0.05), data, labelled=labelled)
    (p, _), mask, key = step.before, step.mask(), step.bound.mode.at("direction").key
    draw = lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 0), (FEATURES,))
    unit = lambda d: d / jnp.sqrt((d**2).sum(1, keepdims=True))

    @jax.jit
    def virtual_point():
        clean = network(p, step.x, mask=mask)
        d = unit(jax.vmap(draw)(jnp.arange(N)))
        for _ in range(steps):
            d = unit(jax.grad(lambda d: kl(clean, network(p, step.x + 0.05 * d, mask=mask)).sum())(d))
        return clean, step.x + 0.4 * d

    clean, x = virtual_point()

    def loss(p):
        virtual = 1.5 * kl(clean, network(p, x, mask=mask)).mean()
        return virtual + (ce(network(p, step.x, mask=mask), step.y).mean() if labelled else 0)

    value, slopes = jax.jit(jax.value_and_grad(loss))(p)
    # The clean pass without labels has no gradient, so it does not change the statistics.
    passes = [x, step.x] if labelled else [x]
    step.matches(sgd(p, slopes), moved_statistics(p, step.before[1], *passes), value, atol=3e-6)


def test_the_virtual_direction_beats_random_ones(data):
    state = fm.setup(classifier(), data, optimizer=optax.sgd(LR), batch_size=N)
    model, x = state.system.model, jnp.asarray(data[0])
    vat = fm.bind(VAT(state.system, eps=0.05, steps=6), fm.Eval(jax.random.key(0)))
    found = jax.jit(fm.losses)(vat, fm.Unlabeled(x))["virtual"]
    d = np.random.default_rng(9).normal(size=(200, N, FEATURES)).astype(np.float32)
    d = np.float32(0.05) * d / np.linalg.norm(d, axis=-1, keepdims=True)
    found, drawn = np.asarray(found), np.asarray(jax.jit(jax.vmap(lambda d: kl(model(x), model(x + d))))(d))
    assert (found > 0.95 * drawn).mean() > 0.9
    assert found.mean() > 1.5 * drawn.mean()


# Custom training steps


@pytest.mark.parametrize(("kind", "attacked"), [(SAM, False), (AWP, True)])
def test_gradients_at_worse_weights(kind, attacked, data):
    inner = fm.Adversarial(classifier(), PGD) if attacked else classifier()
    step = Step(kind(inner, 0.3), data)
    x, mask, (p, statistics) = hand_attack(step) if attacked else step.x, step.mask(), step.before
    loss = lambda p: ce(network(p, x, mask=mask), step.y).mean()
    value, g = jax.jit(jax.value_and_grad(loss))(p)
    w, g, norm = jax.tree.map(np.asarray, p), jax.tree.map(np.asarray, g), np.linalg.norm
    if kind is SAM:
        length = norm([norm(v) for v in g.values()]).astype(np.float32)
        up = {name: w[name] + np.float32(0.3) * g[name] / length for name in w}
    else:
        up = {n: w[n] + np.float32(0.3) * norm(w[n]) * g[n] / norm(g[n]) if n in ("w1", "w2") else w[n] for n in w}
    assert any(np.abs(up[name] - w[name]).max() > 0.01 for name in w)
    step.matches(sgd(p, jax.jit(jax.grad(loss))(up)), moved_statistics(p, statistics, x), value)


def test_weights_of_a_stack_are_perturbed_layer_by_layer(data):
    stack = Chain(fm.models.Stacked(Dense(FEATURES, FEATURES), 3), Dense(FEATURES, CLASSES))
    state = fm.setup(AWP(fm.Classifier(stack), 0.1), data, optimizer=optax.sgd(LR))
    system, batch = state.system, fm.Labeled(*data)

    @jax.jit
    def moves(system):
        _, slopes, _, _ = fm.differentiate(system, batch, fm.Train(jax.random.key(0)))
        return ascent(system, slopes, trained_part(slopes, system))

    up = {leaf.path: np.asarray(leaf.value) for leaf in fm.leaves(moves(system))}
    weights = {leaf.path: np.asarray(leaf.value) for leaf in fm.leaves(system) if leaf.role == "parameter"}
    assert up.keys() == weights.keys()
    for path, w in weights.items():
        moved, layers = (v if "blocks" in path else v[None] for v in (up[path], w))
        expected = [0.1 * np.linalg.norm(b) if path.endswith("weight") else 0.0 for b in layers]
        np.testing.assert_allclose([np.linalg.norm(a) for a in moved], expected, rtol=1e-5)


def test_free_adversarial_training(data):
    """Two replays: each updates the parameters, the statistics and, by the same gradient, the perturbation."""
    optimizer = optax.adam(0.01, eps=1e-3)
    step = Step(FreeAdversarial(classifier(), REGION, replays=2, step_size=STEP), data, optimizer)
    p, statistics = step.before
    x, memory, values, update = data[0], optimizer.init(p), [], jax.jit(optimizer.update)
    for replay in range(2):
        mask = step.mask(step.mode.at(f"replay {replay}") if replay else None)
        loss = lambda p, x, mask=mask: ce(network(p, x, mask=mask), step.y).mean()
        value, (slopes, slope) = jax.jit(jax.value_and_grad(loss, (0, 1)))(p, x)
        statistics = moved_statistics(p, statistics, x)
        with jax.numpy_dtype_promotion("standard"):
            changes, memory = update(slopes, memory, p)
        p, values = {name: np.asarray(p[name]) + np.asarray(changes[name]) for name in p}, [*values, value]
        moved = x + np.float32(STEP) * np.sign(slope)
        x = np.clip(np.clip(moved, data[0] - np.float32(EPS), data[0] + np.float32(EPS)), 0, 1)
    # A bias before a normalization has no gradient but rounding, which adam divides by its eps of 1e-3.
    step.matches(p, statistics, float(values[0] + values[1]) / 2, atol=5e-6)
    kept = np.asarray(step.after.system.perturbation.value)
    np.testing.assert_allclose(kept, x - data[0], rtol=0, atol=1e-6)
    assert np.abs(kept).max() > 0.05


def test_a_schedule_of_the_plan_spans_the_replays_and_a_smaller_batch_moves_its_rows_only(data):
    free = FreeAdversarial(fm.Classifier(Dense(FEATURES, CLASSES)), REGION, replays=4, step_size=STEP)
    seen = []
    state = fm.setup(free, data, optimizer=optax.sgd, lr=fm.schedules.linear(1.0), steps=5, batch_size=N)
    for _ in range(5):
        state, logs = fm.train_step(state, data)
        seen.append(float(logs["lr"]))
    np.testing.assert_allclose(seen, [1.0, 0.8, 0.6, 0.4, 0.2], atol=1e-6)
    (count,) = [v for v in jax.tree.leaves(state.optimizer_state) if jnp.issubdtype(v.dtype, jnp.integer)]
    assert int(count) == 20
    assert int(state.step) == 5 and state.plan.total_steps == 5
    again, _ = fm.train_step(state, (data[0][:7], data[1][:7]))  # the last batch
    before, after = (np.asarray(each.system.perturbation.value) for each in (state, again))
    assert before[7:].any()
    np.testing.assert_array_equal(after[7:], before[7:])
    assert (after[:7] != before[:7]).any()


# Single-step attacks


def test_the_fast_attack_is_fgsm_from_a_uniform_start():
    assert fast_fgsm(REGION).step_size == pytest.approx(0.125)
    assert isinstance(fast_fgsm(REGION).start, fm.attacks.Uniform)


def test_noisy_fgsm_is_not_clipped_to_the_ball(data):
    state = fm.setup(classifier(), data, optimizer=optax.sgd(LR))
    (x, y), key = data, jax.random.key(3)
    p, statistics = unpacked(state.system)
    region = fm.LinfBall(EPS) & fm.Box(-1.0, 2.0)
    start = fm.perturb(NFGSM(region, step_size=0.0), state, data, key, best=False).x
    noise = np.asarray(start) - x
    assert 0.19 < np.abs(noise).max() <= 0.2 + 1e-6 and abs(noise.mean()) < 0.04
    slope = jax.jit(jax.grad(lambda v: ce(network(p, v, statistics), y).sum()))(start)
    found = np.asarray(fm.perturb(NFGSM(region), state, data, key, best=False).x)
    np.testing.assert_allclose(found, np.asarray(start) + np.float32(EPS) * np.sign(slope), rtol=0, atol=1e-6)
    boxed = np.asarray(fm.perturb(NFGSM(REGION), state, data, key, best=False).x)
    assert boxed.min() >= 0 and boxed.max() <= 1
    assert np.abs(found - x).max() > 2 * EPS


def test_radius_and_step_size_as_schedules_of_the_step(data):
    warm = optax.linear_schedule(0.0, EPS, 4)
    schedule = AttackSchedule(
        lambda step: fm.PGD(fm.LinfBall(warm(step)) & fm.Box(0, 1), warm(step) / 2, 1, start=fm.attacks.Clean())
    )
    attack, linear = fm.PGD(REGION, STEP, 1, start=fm.attacks.Clean()), fm.Classifier(Dense(FEATURES, CLASSES))
    scheduled, fixed = (
        fm.setup(fm.Adversarial(linear, each), data, optimizer=optax.sgd(LR), batch_size=N) for each in (schedule, attack)
    )
    for step in range(3):
        eps = float(warm(step))
        fixed = fm.replace(fixed, {"system.attack.region.regions.0.eps": eps, "system.attack.step_size": eps / 2})
        fixed, scheduled = (fm.train_step(state, data)[0] for state in (fixed, scheduled))
    for name in ("weight", "bias"):
        one, other = (np.asarray(getattr(state.system.system.model, name)) for state in (scheduled, fixed))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
