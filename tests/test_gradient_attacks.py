"""The iterated attacks against hand-written loops in float64: starts, momentum, smoothing and views."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Perceptron

import fulmen as fm
from fulmen import attacks
from fulmen.robust.attacks.input_transform import with_layout

SHAPE, CLASSES, N = (6, 5, 2), 4, 5
BOX = fm.Box(0.0, 1.0)
EPS, STEP, STEPS = 0.1, 0.03, 4
LINF = fm.LinfBall(EPS) & BOX


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def system():
    rng = np.random.default_rng(1)
    return fm.Classifier(
        Perceptron(jnp.asarray(0.3 * rng.normal(size=(60, 12))), jnp.asarray(rng.normal(size=(12, CLASSES))))
    )


def data(n=N):
    rng = np.random.default_rng(2)
    return rng.uniform(size=(n, *SHAPE)), rng.integers(0, CLASSES, n).astype(np.int32)


@jax.jit
def slopes(whole, x, y):
    return jax.grad(lambda x: sum(fm.losses(whole, fm.Labeled(x, y)).values()).sum())(x)


def slope(x, y):
    """The gradient of each example's loss at its input."""
    return np.asarray(slopes(system(), x, y))


def found(attack, key, best=False, n=N):
    return np.asarray(fm.perturb(attack, system(), data(n), key, best=best).x)


def near(a, b, atol=1e-12):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


def clipped(point, x):
    return np.clip(np.clip(point, x - EPS, x + EPS), 0, 1)


def norm(g, order):
    return np.linalg.norm(g.reshape(len(g), -1), order, axis=1).reshape(-1, 1, 1, 1)


# Single steps


@pytest.mark.parametrize("alpha", [None, 0.02], ids=["half the radius", "given"])
def test_rfgsm_takes_a_random_step_and_then_the_rest(alpha, key):
    start = attacks.RandomSign(alpha)
    x, y = data()
    begun = found(attacks.RFGSM(fm.LinfBall(EPS), start=start, step_size=0.0), key)
    size = EPS / 2 if alpha is None else alpha
    near(np.abs(begun - x), size)
    assert 0.35 < (begun > x).mean() < 0.65
    near(found(attacks.RFGSM(fm.LinfBall(EPS), start=start), key), begun + (EPS - size) * np.sign(slope(begun, y)))


# Many steps


def iterated(x, y, direction=np.sign, step=STEP, ahead=0.0, decay=0.0, smooth=lambda g: g, project=clipped):
    """The loop of the papers, ascending the loss."""
    point, m = x, np.zeros_like(x)
    for _ in range(STEPS):
        g = smooth(slope(point + ahead * m, y))
        m = decay * m + g / norm(g, 1)
        point = project(point + step * direction(m), x)
    return point


def smoothed_by_hand(g):
    """A weighted sum of every pixel's neighbours."""
    offsets = range(-2, 3)
    weights = {(i, j): np.exp(-(i**2 + j**2) / 2 / (2 / 3) ** 2) for i in offsets for j in offsets}
    out = np.zeros_like(g)
    for (r, c), (i, j) in itertools.product(np.ndindex(g.shape[1:3]), weights):
        if 0 <= r + i < g.shape[1] and 0 <= c + j < g.shape[2]:
            out[:, r, c] += weights[i, j] / sum(weights.values()) * g[:, r + i, c + j]
    return out


ITERATED = {
    "BIM": (attacks.BIM(LINF, STEP, STEPS), {}),
    "MI": (attacks.MIFGSM(LINF, STEP, STEPS, 0.7), {"decay": 0.7}),
    "MI by default": (attacks.MIFGSM(LINF, steps=STEPS), {"decay": 1.0, "step": EPS / STEPS}),
    "NI": (attacks.NIFGSM(LINF, STEP, STEPS, 0.7), {"decay": 0.7, "ahead": 0.7 * STEP}),
    "NI by default": (attacks.NIFGSM(LINF, steps=STEPS), {"decay": 1.0, "step": EPS / STEPS, "ahead": EPS / STEPS}),
    "far NI": (attacks.MIFGSM(LINF, STEP, STEPS, views=(attacks.Nesterov(2.0),)), {"decay": 1.0, "ahead": 2.0}),
    "TI": (attacks.TIFGSM(LINF, STEP, STEPS, size=5), {"smooth": smoothed_by_hand}),
    "TI-MI": (attacks.TIFGSM(LINF, STEP, STEPS, 0.7, size=5), {"smooth": smoothed_by_hand, "decay": 0.7}),
    "TI-NI of parts": (
        fm.Attack(
            optax.chain(attacks.smooth(5), attacks.momentum(0.7), fm.attacks.fgsm(STEP)),
            LINF,
            steps=STEPS,
            views=(attacks.Nesterov(2.0),),
        ),
        {"smooth": smoothed_by_hand, "decay": 0.7, "ahead": 2.0},
    ),
    "MI in the Euclidean norm": (
        attacks.MIFGSM(attacks.L2Ball(0.5), 0.2, STEPS),
        {
            "decay": 1.0,
            "step": 0.2,
            "direction": lambda m: m / norm(m, 2),
            "project": lambda point, x: x + (point - x) * np.minimum(1, 0.5 / norm(point - x, 2)),
        },
    ),
}


@pytest.mark.parametrize(("attack", "options"), ITERATED.values(), ids=ITERATED)
def test_iterated_attacks_equal_the_loops_of_their_papers(attack, options, key):
    x, y = data()
    expected = iterated(x, y, **options)
    near(found(attack, key), expected)


def test_the_loops_differ():
    """Otherwise the test above would compare one attack with itself."""
    x, y = data()
    names = ("BIM", "MI", "NI by default", "far NI", "TI", "TI-MI", "TI-NI of parts")
    for one, other in itertools.combinations([iterated(x, y, **ITERATED[name][1]) for name in names], 2):
        assert np.abs(one - other).max() > 0.005


def test_adam_as_the_chain(key):
    x, y = data()
    point, m, v = x, np.zeros_like(x), np.zeros_like(x)
    for t in range(1, STEPS + 1):
        g = -slope(point, y)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        point = clipped(point - STEP * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), x)
    near(found(fm.Attack(optax.adam(STEP), LINF, steps=STEPS), key), point, 1e-9)


def test_slide_moves_the_coordinates_of_largest_gradient(key):
    x, y = data()
    g, count = slope(x, y), 6  # a tenth of 60
    largest = np.abs(g) >= np.sort(np.abs(g).reshape(N, -1), axis=1)[:, -count].reshape(-1, 1, 1, 1)
    expected = x + np.where(largest, np.sign(g), 0) * 0.3 / count
    near(found(attacks.SLIDE(attacks.L1Ball(0.5), 0.3, 1, start=fm.attacks.Clean(), q=0.1), key), expected)


def test_a_gradient_of_zeros_adds_no_momentum(key):
    flat = fm.Classifier(Perceptron(jnp.zeros((60, 12)), jnp.zeros((12, CLASSES))))
    for attack in (attacks.MIFGSM(LINF), attacks.TIFGSM(LINF, decay=1.0), attacks.NIFGSM(attacks.L2Ball(1.0) & BOX)):
        np.testing.assert_array_equal(fm.perturb(attack, flat, data(), key, best=False).x, data()[0])


# Views


def resized_by_hand(image, height, width, top, left):
    """Linear interpolation between the centres of pixels, padded with zeros."""
    out = np.zeros_like(image)
    for r, c in np.ndindex(height, width):
        at = [(i + 0.5) * full / size - 0.5 for i, size, full in zip((r, c), (height, width), image.shape[:2], strict=True)]
        near_by = [(int(np.floor(a)), a - np.floor(a)) for a in at]
        for (i, p), (j, q) in itertools.product(*[((low, 1 - share), (low + 1, share)) for low, share in near_by]):
            out[top + r, left + c] += p * q * image[min(max(i, 0), image.shape[0] - 1), min(max(j, 0), image.shape[1] - 1)]
    return out


@jax.jit
def shown(view, problem, x, step):
    return attacks.shown(view, problem, None, x, step)


def test_diverse_places_shrunk_images_everywhere():
    n = 600
    image = data(1)[0][0]
    problem = attacks.Problem(None, None, fm.Unlabeled(jnp.broadcast_to(image, (n, *image.shape))), key=jax.random.key(3))
    view = attacks.Diverse(probability=0.75, low=0.5)
    seen = np.asarray(shown(view, problem, problem.origin, 7))
    kinds = {(6, 5, 0, 0): image}
    for height, width in [(3, 3), (4, 3), (5, 4), (6, 5)]:
        for top, left in np.ndindex(7 - height, 6 - width):
            kinds[height, width, top, left] = resized_by_hand(image, height, width, top, left)
    distance = np.stack([np.abs(seen - kind[None]).max((1, 2, 3)) for kind in kinds.values()], 1)
    assert distance.min(1).max() < 1e-6
    counts = dict(zip(kinds, np.bincount(distance.argmin(1), minlength=len(kinds)), strict=True))
    assert all(counts.values())
    by_height = [sum(count for kind, count in counts.items() if kind[0] == height) for height in (3, 4, 5, 6)]
    expected = np.array([0.75 / 4] * 3 + [0.25 + 0.75 / 4])
    assert (np.abs(np.array(by_height) / n - expected) < 5 * np.sqrt(expected / n)).all()
    other = shown(view, problem, problem.origin, 8)
    assert 0.3 < (np.abs(np.asarray(other) - seen).max((1, 2, 3)) > 0).mean() < 1


def test_the_gradient_is_taken_through_the_views(key):
    x, y = data()
    attack = attacks.DIFGSM(fm.LinfBall(EPS), STEP, 1, views=(attacks.Diverse(1.0, 0.5),))
    problem = attacks.Problem(None, None, fm.Unlabeled(jnp.asarray(x)), key=key)
    see = lambda x: shown(attack.views[0], problem, x, 0)
    seen = np.asarray(see(x))
    assert np.abs(seen - x).max() > 0.1
    back = jax.jit(lambda x, slope: jax.vjp(see, x)[1](slope)[0])
    near(found(attack, key), x + STEP * np.sign(back(x, slope(seen, y))))


@pytest.mark.parametrize("view", [attacks.Diverse(0.0, 0.5), attacks.Diverse(1.0, 1.0)], ids=["never", "no smaller"])
def test_without_diversity_difgsm_is_bim(view, key):
    near(found(attacks.DIFGSM(LINF, STEP, STEPS, views=(view,)), key), iterated(*data()))


def test_combinations_equal_their_parts(key):
    chain = optax.chain(attacks.smooth(5), attacks.momentum(1.0), fm.attacks.fgsm(STEP))
    views = (attacks.Nesterov(STEP), attacks.Diverse())
    parts = fm.Attack(chain, LINF, steps=STEPS, views=views)
    named = attacks.TIFGSM(LINF, STEP, STEPS, 1.0, size=5, views=views)
    near(found(named, key), found(parts, key), 0)
    without = attacks.TIFGSM(LINF, STEP, STEPS, 1.0, size=5, views=views[:1])
    assert np.abs(found(named, key) - found(without, key)).max() > 0.01


def test_the_best_point_was_evaluated_without_views(key):
    """The value at the view does not count."""
    (x, y), steps = data(), range(1, 7)
    chain = optax.chain(attacks.momentum(0.7), fm.attacks.fgsm(0.1))
    attack = fm.Attack(chain, LINF, views=(attacks.Nesterov(2.0),))
    rough = fm.replace(system(), {"model.first": 50 * np.asarray(system().model.first)})  # where a step may be too long
    passed = lambda n, best: fm.perturb(fm.replace(attack, steps=n), rough, (x, y), key, best=best).x
    points = np.stack([x, *(passed(n, False) for n in steps)])
    value = jax.jit(lambda x: sum(fm.losses(rough, fm.Labeled(x, y)).values()))
    best = np.stack([value(x) for x in points]).argmax(0)
    assert len(np.unique(best)) > 1
    near(passed(steps[-1], True), points[best, np.arange(N)])


# Bad input


def of(make, *arguments, **options):
    return lambda: make(*arguments, **options)


BAD = {
    "no steps": (of(attacks.MIFGSM, LINF, STEP, 0), ValueError, "MIFGSM.steps must be at least 1, got 0"),
    "negative decay": (of(attacks.MIFGSM, LINF, decay=-1.0), ValueError, "MIFGSM.decay must be at least 0, got -1"),
    "negative step": (of(attacks.BIM, LINF, -1.0, 3), ValueError, "BIM.step_size must be at least 0, got -1"),
    "even kernel": (of(attacks.TIFGSM, LINF, size=4), ValueError, "smooth: size must be an odd number .* got 4"),
    "a share over one": (
        of(attacks.DIFGSM, LINF, views=(attacks.Diverse(1.5),)),
        ValueError,
        "Diverse.probability must be between 0 and 1, got 1.5",
    ),
    "images of no size": (
        of(attacks.DIFGSM, LINF, views=(attacks.Diverse(0.5, 0.0),)),
        ValueError,
        "Diverse.low must be above 0 and at most 1, got 0",
    ),
    "a view alone": (
        of(attacks.DIFGSM, LINF, views=attacks.Diverse()),
        TypeError,
        r"DIFGSM.views must be a tuple of Views, .* write \(fm",
    ),
    "no momentum": (
        of(fm.Attack, fm.attacks.fgsm(STEP), LINF, views=(attacks.Nesterov(0.1),)),
        ValueError,
        r"Nesterov needs a chain with momentum. Add fm.attacks.momentum\(1.0\)",
    ),
    "looking back": (
        of(attacks.MIFGSM, LINF, views=(attacks.Nesterov(-0.1),)),
        ValueError,
        "Nesterov.distance must be at least 0",
    ),
    "a random step too far": (
        of(attacks.RFGSM, LINF, start=attacks.RandomSign(0.2)),
        ValueError,
        "RFGSM.start: its size must be at most the radius, 0.1, got 0.2",
    ),
    "a start that is not random": (
        of(attacks.RFGSM, LINF, start=fm.attacks.Clean()),
        TypeError,
        "RFGSM.start must be a RandomSign.*fm.attacks.RandomSign",
    ),
    "SLIDE in another norm": (of(attacks.SLIDE, LINF, STEP, 3), ValueError, "SLIDE, region: must contain an L1Ball"),
    "SLIDE of too many": (
        of(attacks.SLIDE, attacks.L1Ball(1.0), STEP, 3, q=2.0),
        ValueError,
        "SLIDE.q must be between 0 and 1, got 2",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_invalid_attacks_are_refused(make, error, message, key):
    with pytest.raises(error, match=message):
        fm.perturb(make(), system(), data(), key)


def test_random_attacks_need_a_key():
    for attack in (attacks.RFGSM(LINF), attacks.DIFGSM(LINF)):
        with pytest.raises(ValueError, match="needs a random key"):
            fm.perturb(attack, system(), data(), None)


@pytest.mark.parametrize("attack", [attacks.TIFGSM(LINF), attacks.DIFGSM(LINF)], ids=["TI", "DI"])
def test_attacks_on_images_refuse_vectors(attack, key):
    x, y = data()
    with pytest.raises(ValueError, match=r"needs images \(height, width, channels\), got examples \(60,\)"):
        fm.perturb(attack, system(), (x.reshape(N, 60), y), key)


# Images with the channels first


def flipped(image):
    return jnp.moveaxis(image, 1, -1)


class ChannelsFirst(fm.Model):
    """A model of images `(n, channels, height, width)`."""

    inner: fm.Model


@fm.dispatch
def forward(model: ChannelsFirst, x):
    return fm.forward(model.inner, flipped(x))


class Declared(ChannelsFirst):
    """It specifies the layout."""


@fm.dispatch
def channels_first(model: Declared):
    return True


IMAGE_ATTACKS = {
    "DIFGSM": lambda **o: attacks.DIFGSM(LINF, steps=3, views=(attacks.Diverse(probability=1.0, **o),)),
    "TIFGSM": lambda **o: attacks.TIFGSM(LINF, steps=3, size=3, **o),
    "Square": lambda **o: attacks.Square(LINF, 20, **o),
}


@pytest.mark.parametrize("name", IMAGE_ATTACKS)
def test_images_with_the_channels_first_are_attacked_like_others(name, key):
    rng, make = np.random.default_rng(0), IMAGE_ATTACKS[name]
    dense = fm.models.Dense(5 * 6 * 2, 3, weight=rng.normal(size=(60, 3)), bias=np.zeros(3))
    model = fm.models.Chain(fm.models.Flatten(), dense)
    x, y = rng.uniform(size=(4, 5, 6, 2)), np.arange(4, dtype=np.int32) % 3
    first = np.moveaxis(x, -1, 1)
    there = lambda model, x, **o: fm.perturb(make(**o), fm.Classifier(model), (x, y), key, best=False).x
    expected = np.moveaxis(np.asarray(there(model, x)), -1, 1)
    np.testing.assert_allclose(there(ChannelsFirst(model), first, channels_first=True), expected, atol=1e-6)
    declared = with_layout(make(), fm.Classifier(Declared(model)))  # runs the same program
    assert jax.tree.structure(declared) == jax.tree.structure(make(channels_first=True)) != jax.tree.structure(make())
    with pytest.raises(ValueError, match=r"images \(2, 5, 6\) may have the channels first.*channels_first=True"):
        there(ChannelsFirst(model), first)


def test_equinox_convolutions_specify_the_layout(key):
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.Sequential([eqx.nn.Conv2d(1, 2, 3, key=key), eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(72, 3, key=key)])
    system = fm.Classifier(net)
    assert attacks.channels_first(system) and attacks.channels_first(fm.bind(system, fm.Eval()))
    assert not attacks.channels_first(fm.Classifier(eqx.nn.Linear(4, 3, key=key)))
