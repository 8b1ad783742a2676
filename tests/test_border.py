"""Data at the border: every verb that takes data answers alike, and JAX never misreads it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, data

import fulmen as fm
from fulmen import dispatch
from fulmen.core.component import fold_name
from fulmen.core.mode import name_hash

X, Y = data(40)
WEIGHT = np.ones(40, np.float32)
ADAM = dict(optimizer=optax.adam, lr=1e-3)
ATTACK = fm.PGD(fm.LinfBall(0.1), step_size=0.1, steps=2)


@pytest.fixture(scope="module")
def state():
    return fm.setup(fm.Classifier(Linear(4, 3)), (X, Y), **ADAM)


VERBS = dict(
    fit=lambda state, data: fm.fit(state, data, epochs=1, batch_size=40, seed=None, progress=False)[1]["loss"][0],
    train_step=lambda state, data: fm.train_step(state, data)[1]["loss"],
    eval_step=lambda state, data: fm.eval_step(state, data)["loss"].compute(),
    loss=lambda state, data: fm.loss(state, data),
    losses=lambda state, data: fm.losses(state, data)["cross_entropy"],
    metrics=lambda state, data: fm.metrics(state, data)["accuracy"].compute(),
    component=lambda state, data: fm.loss(state.system, data),
    evaluate=lambda state, data: fm.evaluate(state, data)["loss"],
    predict=lambda state, data: fm.predict(state, data),
    perturb=lambda state, data: fm.perturb(ATTACK, state, data, jax.random.key(0)).x,
    loss_tree=lambda state, data: fm.loss_tree(state, data).value,
)
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
but_predict = pytest.mark.parametrize(
    "verb", [v for n, v in VERBS.items() if n != "predict"], ids=[n for n in VERBS if n != "predict"]
)


def changed(array, value):
    array = array.copy()
    array[3] = value
    return array


@every_verb
def test_big_endian_arrays_are_converted(state, verb):
    expected = verb(state, (X, Y))
    for raw in [(X.astype(">f4"), Y), (X, Y.astype(">i4")), (X, Y.astype(">i8")), fm.Labeled(X.astype(">f4"), Y)]:
        np.testing.assert_array_equal(verb(state, raw), expected)


@pytest.mark.parametrize("verb", [fm.loss, fm.losses, fm.metrics])
def test_every_call_converts_its_batch(state, verb):
    """A call of types that were seen before is quick, but an array's byte order is not in its type."""
    batch, swapped = fm.Labeled(X, Y), fm.Labeled(X.astype(">f4"), Y)
    expected = jax.tree.leaves(verb(state.system, batch))
    np.testing.assert_array_equal(jax.tree.leaves(verb(state.system, batch)), expected)
    np.testing.assert_array_equal(jax.tree.leaves(verb(state.system, swapped)), expected)


def test_big_endian_arrays_of_a_source_are_converted(state, tmp_path):
    np.savez(tmp_path / "data.npz", x=X.astype(">f4"), y=Y.astype(">i8"))
    expected = fm.evaluate(state, (X, Y))["loss"]
    for source in [lambda: iter([(X.astype(">f4"), Y.astype(">i8"))]), fm.data.open(tmp_path / "data.npz")]:
        np.testing.assert_allclose(fm.evaluate(state, source)["loss"], expected, rtol=1e-6)


MASKED = np.ma.masked_array(X, X > 0)


@every_verb
@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ((MASKED, Y), "x must not be a masked array.*filled.*weight"),
        (fm.Labeled(MASKED, Y), "x must not be a masked array"),
        ((X.astype(object), Y), "x must be numbers, got an array of type object"),
        ((X.tolist(), Y), "x must be .* array, got list.*np.asarray"),
        ((X, X, Y), r"weight.*int32.*astype\(np.float32\).*dict\(x=…, y=…, weight=…\).*fm.Batch"),
        ([1.0, 2.0], "list of numbers|single number"),
        (fm.Labeled, "the class Labeled"),
        ("data.npz", "str 'data.npz'.*fm.data.open"),
        (fm.Classifier(Linear(4, 3)), "Classifier.*component.* first"),
        (None, "NoneType"),
        (object(), "object"),
    ],
    ids=[
        "masked",
        "masked-batch",
        "object",
        "list",
        "int-weight",
        "numbers",
        "class",
        "path",
        "component",
        "none",
        "other",
    ],
)
def test_what_is_no_data_is_refused(state, verb, raw, words):
    with pytest.raises((TypeError, ValueError), match=words):
        verb(state, raw)


@every_verb
def test_a_state_is_no_data(state, verb):
    with pytest.raises(TypeError, match="State"):
        verb(state, state)


@but_predict
@pytest.mark.parametrize("value", [-300.0, np.nan])
@pytest.mark.parametrize(
    "make", [lambda w: (X, Y, w), lambda w: fm.Labeled(X, Y, weight=w), lambda w: dict(x=X, y=Y, weight=w)]
)
def test_negative_weights_are_refused(state, verb, value, make):
    if verb is VERBS["losses"] and isinstance(make(WEIGHT), fm.Labeled):
        pytest.skip("one number per example, which nothing has weighed yet")
    with pytest.raises(ValueError, match="weight"):
        verb(state, make(changed(WEIGHT, value)))


@but_predict
@pytest.mark.parametrize("make", [lambda y: (X, y), lambda y: fm.Labeled(X, y), lambda y: (X, y.astype(np.int8))])
def test_negative_labels_are_refused(state, verb, make):
    with pytest.raises(ValueError, match=r"y must be labels from 0 to 2.*from -1 to 2"):
        verb(state, make(changed(Y, -1)))


def test_labels_out_of_range_are_no_number_in_compiled_code(state):
    compiled = jax.jit(lambda y: (fm.losses(state, (X, y))["cross_entropy"], fm.metrics(state, (X, y))["accuracy"].total))
    expected, right = compiled(Y)
    for label in (-1, 3):
        found, counted = compiled(changed(Y, label))
        assert np.isnan(found[3])
        np.testing.assert_array_equal(np.delete(found, 3), np.delete(expected, 3))
        assert counted <= right


def test_negative_numbers_that_are_no_labels_are_validated_once():
    class Flat(Embedding):
        pass

    @dispatch
    def forward(flat: Flat, x):
        return flat.layer(x)[:, 0]

    seen = []

    @dispatch
    def validate(flat: Flat, batch):
        seen.append(batch)

    state = fm.setup(fm.Regressor(Flat(Linear(4, 1))), (X, X[:, 0]), **ADAM)
    seen.clear()
    for _ in range(3):
        fm.train_step(state, (X, X[:, 0]))
    assert len(seen) == 1


def test_integer_weights_by_name_count(state):
    times = np.arange(40, dtype=np.int32) % 3
    expected = fm.evaluate(state, (X, Y, times.astype(np.float32)))
    assert fm.evaluate(state, dict(x=X, y=Y, weight=times)) == expected
    assert fm.evaluate(state, fm.Labeled(X, Y, weight=times)) == expected


# Batches without a field x


class Triplet(fm.Batch):
    anchor: jax.Array
    near: jax.Array


class Embedding(fm.Model):
    layer: Linear


@dispatch
def forward(embedding: Embedding, x):
    return embedding.layer(x)


@dispatch
def loss(embedding: Embedding, batch: Triplet):
    return jnp.sum((embedding(batch.anchor) - embedding(batch.near)) ** 2, -1)


class Anchored(Triplet):
    pass


@dispatch
def model_inputs(embedding: Embedding, batch: Anchored):
    return batch.anchor


class TwoTowers(fm.Model):
    one: Linear
    two: Linear


@dispatch
def forward(towers: TwoTowers, one, two):
    return towers.one(one) + towers.two(two)


class Sides(fm.Batch):
    left: jax.Array
    right: jax.Array
    y: jax.Array


@dispatch
def model_inputs(towers: TwoTowers, batch: Sides):
    return batch.left, batch.right


def test_a_batch_without_x_is_predicted_by_model_inputs():
    state, _ = fm.fit(Embedding(Linear(4, 2)), Triplet(X[:-1], X[1:]), epochs=1, progress=False, **ADAM)
    expected = fm.predict(state, X)
    for verb in (fm.predict, fm.predictions):
        with pytest.raises(TypeError, match=r"model_inputs\(model: Embedding, batch: Triplet\)"):
            verb(state, Triplet(X, X))
    np.testing.assert_array_equal(fm.predict(state, Anchored(X, X[::-1]), batch_size=16), expected)
    np.testing.assert_allclose(fm.predictions(state, Anchored(X, X[::-1]))[""].outputs, expected, rtol=1e-5)


def test_a_classifier_of_two_inputs():
    system, batch = fm.Classifier(TwoTowers(Linear(4, 3), Linear(4, 3))), Sides(X, X[::-1].copy(), Y)
    state, history = fm.fit(system, batch, epochs=2, progress=False, **ADAM)
    assert {"loss", "accuracy"} <= set(history)
    expected = fm.forward(state, X, X[::-1])
    np.testing.assert_allclose(fm.predict(state, batch), expected, rtol=1e-5)
    np.testing.assert_allclose(fm.predictions(state, batch)[""].outputs, expected, rtol=1e-5)
    assert fm.evaluate(state, batch)["accuracy"] == np.mean(expected.argmax(1) == Y)
    for raw, kind in ((X, "Unlabeled"), ((X, X), "Labeled")):
        with pytest.raises(
            TypeError, match=rf"TwoTowers takes 2 inputs.* {kind} batch.*`model_inputs\(model: TwoTowers, batch:"
        ):
            fm.predict(state, raw)


# Weighted means


def test_a_mean_weighs_the_leading_axis():
    values, weight = jnp.arange(9.0).reshape(3, 3), jnp.array([1.0, 0.0, 0.0])
    assert float(fm.Mean(values, weight).compute()) == 1.0
    assert float(fm.Mean(values, 2).compute()) == 4.0
    assert float(fm.Mean(values, jnp.eye(3)).compute()) == 4.0
    for wrong in (jnp.ones(4), jnp.ones((3, 1)), jnp.ones((3, 3, 3))):
        with pytest.raises(ValueError, match="weight"):
            fm.Mean(values, wrong)
    with pytest.raises(ValueError, match="weight must not be negative or NaN, got -1"):
        fm.Mean(values[0], np.array([1.0, -1.0, 1.0], np.float32))


# What gave internal errors


@pytest.mark.parametrize("objective", [fm.systems.NonSaturating(), fm.systems.Wasserstein()], ids=["noise", "penalty"])
def test_losses_of_a_gan_without_a_key(objective):
    gan = fm.init(fm.GAN(Linear(2, 4), Linear(4, 1), objective=objective, latent=2), jax.random.key(0))
    raw = X if isinstance(objective, fm.systems.NonSaturating) else dict(generator=X[:, :2], critic=X)
    with pytest.raises(ValueError, match=r"draws at random.*fm.Eval\(key\)"):
        fm.losses(gan, raw)
    assert set(fm.losses(gan, raw, fm.Eval(jax.random.key(0)))) == {"generator", "critic"}


def test_a_loss_entry_without_entries():
    class Empty(fm.System):
        main: Net

    @dispatch
    def losses(system: Empty, batch):
        return dict(main=fm.loss(system.main, batch), rest={})

    system = fm.init(Empty(Net(Linear(4, 3))), jax.random.key(0))
    for run in (fm.loss, fm.loss_tree, lambda system, raw: fm.setup(system, raw, **ADAM)):
        with pytest.raises(ValueError, match="'rest' of Empty must have at least one entry"):
            run(system, (X, Y))


def test_a_module_of_another_library_with_a_field_mode():
    equinox = pytest.importorskip("equinox")

    class Layer(equinox.Module):
        weight: jax.Array
        mode: str = equinox.field(static=True, default="fast")

        def __call__(self, x):
            return x @ self.weight

    @dispatch
    def loss(layer: Layer, batch: fm.Labeled):
        return ((fm.forward(layer, batch.x) - batch.y[:, None]) ** 2).mean(1)

    layer = Layer(jnp.ones((4, 1)))
    expected = float(fm.loss(layer, (X, X[:, 0])).mean())
    assert fm.loss_tree(layer, (X, X[:, 0])).value == pytest.approx(expected)
    assert fm.loss_tree(layer, (X, X[:, 0]), fm.Eval()).value == pytest.approx(expected)
    system = fm.Classifier(Layer(jnp.ones((4, 3))))
    attacked = fm.perturb(ATTACK, system, (X, Y), jax.random.key(0))
    assert float(fm.loss(system, attacked)) > float(fm.loss(system, (X, Y)))


# Randomness by name


class Alike(fm.System):
    plumless: Linear
    buckeroo: Linear
    drop: fm.models.Dropout = fm.models.Dropout(0.5)


def test_names_of_one_checksum_draw_apart(key):
    system = fm.init(Alike(Linear(4, 3), Linear(4, 3)), key)
    assert not np.array_equal(system.plumless.weight, system.buckeroo.weight)
    mode = fm.Train(key)
    assert not np.array_equal(jax.random.key_data(mode.at("plumless").key), jax.random.key_data(mode.at("buckeroo").key))


def test_names_of_long_lists_draw_apart(key):
    names = [f"{field}.{i}" for field in ("layers", "blocks", "heads", "stages") for i in range(500)]
    run = jax.jit(jax.vmap(lambda number: jax.random.key_data(jax.random.fold_in(key, number))))
    keys = np.asarray(run(np.uint32([name_hash(name) for name in names])))
    assert len(np.unique(keys, axis=0)) == len(names)
    for i in (0, -1):
        np.testing.assert_array_equal(jax.random.key_data(fold_name(key, names[i])), keys[i])
