"""Runs on eight CPU devices for `test_devices.py`, which starts this file in a process of its own.

Each function is one check; the results are printed as JSON, by name: "" or the error.
"""

import functools
import gc
import json
import os
import sys
import traceback
import warnings

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, forward, init, on, partition
from fulmen.devices.array_layouts import state_layouts
from fulmen.train.compiled_step import step_program

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")
gc.freeze()  # a full collection of all that is imported and compiled takes long
gc.set_threshold(5_000, 10, 20)

MESH = fm.mesh(data=4, model=2)
REPLICATED, FSDP, TENSOR = fm.Replicated(MESH), fm.FSDP(MESH, min_size=64), fm.TensorParallel(MESH)
MEMBERS = fm.FSDP(fm.mesh(data=4, members=2), min_size=64)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(40, 16)).astype(np.float32), np.arange(40) % 8
IMAGES = RANDOM.uniform(size=(32, 4, 4, 1)).astype(np.float32)
TOKENS = RANDOM.integers(0, 16, (32, 4)).astype(np.int32)
EQUAL = X[:32], Y[:32]  # in equal batches, which need one program
ATTACK = fm.PGD(fm.LinfBall(0.2), step_size=0.1, steps=3)
READING = {"epochs": 2, "batch_size": 16, "seed": 3}
COMPILED, TRACED = [], []  # programs, and traces of a step
CHECKS = {}


@jax.monitoring.register_event_duration_secs_listener
def count(event, _, fun_name="", **more):
    if "backend_compile" in event:
        COMPILED.append(event)
    if "trace" in event and fun_name == "step_program":
        TRACED.append(event)


def check(function):
    CHECKS[function.__name__] = function
    return function


# Systems, and their runs


def mlp():
    return fm.Classifier(fm.models.MLP(16, 32, 8, dropout=0.1)), EQUAL


def ragged():
    return mlp()[0], (X, Y)


def convnet():
    layers = fm.models.Conv(1, 8), fm.models.BatchNorm(8), jax.nn.relu, fm.models.Dropout(0.2), fm.models.Flatten()
    return fm.Classifier(fm.models.Chain(*layers, fm.models.Dense(128, 8))), (IMAGES, EQUAL[1])


def gpt():
    return fm.LanguageModel(fm.models.Transformer(16, length=4, features=16, heads=2, layers=2, dropout=0.1)), TOKENS


def gan():
    generator, critic = fm.models.Dense(4, 16), fm.models.MLP(16, 16, 1)
    return fm.GAN(generator, critic, latent=4, critic_steps=2), EQUAL[0]


def adversarial():
    return fm.Adversarial(fm.Classifier(fm.models.Dense(16, 8)), fm.FGSM(fm.LinfBall(0.1))), EQUAL


def population():
    return fm.Population(fm.Classifier(fm.models.Dense(16, 8)), 2), EQUAL


@functools.cache
def state_of(make, policy=None):
    system, data = make()
    return fm.setup(system, data, optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=16, devices=policy)


@functools.cache
def trained(make, policy=None):
    """The state and the history of a run, and the numbers of programs after its first epoch, and of traces after `setup`."""
    counter, state, traced = Counter(), state_of(make, policy), len(TRACED)
    state, history = fm.fit(state, make()[1], progress=False, callbacks=[counter], **READING)
    return state, history, len(COMPILED) - counter.compiled, len(TRACED) - traced


class Counter:
    compiled = 0


@dispatch
def on(event: fm.EpochEnd, callback: Counter, run):
    if run.epoch == 0:
        callback.compiled = len(COMPILED)


def close(a, b, within=1e-6):
    assert a.keys() == b.keys(), (a.keys(), b.keys())
    for name in a:
        if "seconds" not in name:
            np.testing.assert_allclose(a[name], b[name], rtol=within, atol=within, err_msg=name)


def require_layout(state):
    for v, layout in zip(state.arrays, state_layouts(state), strict=True):
        assert v.sharding.is_equivalent_to(layout, v.ndim), (v.shape, v.sharding, layout)


def train_as_on_one_device(make, policy):
    state, history, compiled, traced = trained(make, policy)
    close(history, trained(make)[1])
    assert compiled == traced == 0
    require_layout(state_of(make, policy))
    require_layout(state)
    assert {len(v.sharding.device_set) for v in state.arrays} == {8}


RUNS = [(mlp, REPLICATED), (mlp, FSDP), (mlp, TENSOR), (convnet, REPLICATED), (convnet, TENSOR), (gpt, FSDP), (gpt, TENSOR)]
RUNS += [(ragged, FSDP), (gan, FSDP), (adversarial, REPLICATED), (population, MEMBERS)]
for run in RUNS:
    CHECKS[f"{run[0].__name__}_under_{type(run[1]).__name__}"] = functools.partial(train_as_on_one_device, *run)


# Layouts


def specs(tree):
    return {leaf.path: tuple(leaf.value.sharding.spec) for leaf in fm.leaves(tree) if hasattr(leaf.value, "dtype")}


@check
def fsdp_splits_the_largest_axis_that_divides_and_leaves_small_arrays_whole():
    found = specs(state_of(mlp, FSDP).system)
    assert found["model.layers.0.weight"] == (None, "data") and found["model.layers.0.bias"] == ()
    assert fm.FSDP(MESH, min_size=1).default((6, 8, 3)) == (None, "data")
    assert fm.FSDP(MESH, min_size=1).default((6, 3)) == ()


@check
def tensor_parallel_splits_pairs_of_layers_by_outputs_and_by_inputs():
    found = specs(state_of(gpt, TENSOR).system)
    blocks = "model.blocks.blocks"  # all arrays in it have a leading axis, which stays whole
    assert found[f"{blocks}.attention.qkv.weight"] == found[f"{blocks}.mlp.layers.0.weight"] == (None, None, "model")
    assert found[f"{blocks}.attention.out.weight"] == found[f"{blocks}.mlp.layers.2.weight"] == (None, "model")
    assert found[f"{blocks}.mlp.layers.0.bias"] == (None, "model") and found[f"{blocks}.mlp.layers.2.bias"] == ()
    assert found["model.tokens.weight"] == ("model",) and found["model.norm.weight"] == ()


@check
def members_are_split_over_their_axis():
    state = state_of(population, MEMBERS)
    assert specs(state.system)["members.model.weight"] == ("members", "data")
    moments = [v.sharding.spec for v in jax.tree.leaves(state.optimizer_state) if v.shape == (2, 16, 8)]
    assert [tuple(spec) for spec in moments] == [("members", "data")] * 2


@check
def optimizer_states_follow_their_parameters_through_wrappers():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation())
    state = fm.setup(
        state_of(mlp, FSDP).system, EQUAL, optimizer={"model.layers.0": optimizer, "": optax.adafactor(1e-2)}, devices=FSDP
    )
    weights = [tuple(v.sharding.spec) for v in jax.tree.leaves(state.optimizer_state) if v.shape == (16, 32)]
    assert weights == [(None, "data")] * 3  # the moments and the sum of gradients
    require_layout(state)


@check
def arrays_are_drawn_in_their_layout_and_a_device_holds_less_under_fsdp():
    """A device never holds a whole array: the largest one that lives is a part."""
    policy = fm.FSDP(fm.mesh(data=4, devices=jax.devices()[:4]), min_size=64)
    wide = fm.Classifier(fm.models.Dense(16, 4096))
    before = {id(v) for v in jax.live_arrays()}
    state = fm.setup(wide, (X, Y), optimizer=optax.adam, lr=1e-2, devices=policy)
    live = [v for v in jax.live_arrays() if id(v) not in before and v.size >= 4096 * 8]
    assert live and all(v.addressable_shards[0].data.size == v.size // 4 for v in live)
    require_layout(state)
    args = state.arrays, state.raw_key, state.step, (X[:16], Y[:16]), frozenset()
    held = step_program.of(state.structure).lower(*args).compile().memory_analysis().argument_size_in_bytes
    assert held <= 0.3 * sum(v.nbytes for v in state.arrays), held


class Scaled(fm.Model):
    """A user's layer, whose method is outside the package."""

    size: int
    weight: jax.Array | None = None


@dispatch
def init(layer: Scaled, key):
    return fm.replace(layer, weight=jnp.ones((2, layer.size)))


@dispatch
def forward(layer: Scaled, x):
    return x * layer.weight[:1] + layer.weight[1:]


@dispatch
def partition(layer: Scaled, policy: fm.TensorParallel):
    return {"weight": (None, policy.axis)}


@check
def a_method_outside_the_package_lays_out_a_users_layer():
    def scaled():
        return fm.Classifier(fm.models.Chain(Scaled(16), fm.models.Dense(16, 8))), EQUAL

    assert specs(state_of(scaled, TENSOR).system)["model.layers.0.weight"] == (None, "model")
    train_as_on_one_device(scaled, TENSOR)


@check
def modules_of_other_libraries_are_laid_out_by_the_default():
    import equinox as eqx

    module = eqx.nn.Linear(16, 8, key=jax.random.key(0))

    def foreign():
        return fm.Classifier(module), EQUAL

    train_as_on_one_device(foreign, FSDP)
    split = {path: spec for path, spec in specs(state_of(foreign, FSDP).system).items() if spec}
    assert list(split.values()) == [(None, "data")], split


# Verbs of a state


@check
def ragged_data_is_evaluated_exactly():
    single, spread = trained(mlp)[0], fm.fit(trained(mlp)[0], (X, Y), steps=1, devices=FSDP, progress=False)[0]
    single = fm.fit(single, (X, Y), steps=1, progress=False)[0]
    known, outputs = {n: fm.evaluate(single, (X[:n], Y[:n])) for n in (37, 3)}, fm.predict(single, X[:37])
    for n, size in ((37, 16), (37, None), (3, None)):
        found = fm.evaluate(spread, (X[:n], Y[:n]), batch_size=size)
        close(found, known[n])
        assert found["accuracy"] == known[n]["accuracy"]
        np.testing.assert_allclose(fm.predict(spread, X[:n], batch_size=size), outputs[:n], rtol=1e-5, atol=1e-6)
    close(fm.evaluate(spread, (X[:37], Y[:37]), attack=ATTACK), fm.evaluate(single, (X[:37], Y[:37]), attack=ATTACK))


@check
def a_component_is_evaluated_on_devices():
    system = trained(mlp)[0].system
    close(fm.evaluate(system, (X[:37], Y[:37]), devices=TENSOR), fm.evaluate(system, (X[:37], Y[:37])))
    found = fm.predict(system, X[:37], devices=REPLICATED)
    np.testing.assert_allclose(found, fm.predict(system, X[:37]), rtol=1e-5, atol=1e-6)


@check
def robustness_is_the_same_on_devices():
    state, options = trained(mlp)[0], {"signs": (), "eps": (), "progress": False}
    found, known = (
        fm.robustness(state, (X[:37], Y[:37]), ATTACK, devices=devices, **options) for devices in (REPLICATED, None)
    )
    assert (found.accuracy, found.robust_accuracy) == (known.accuracy, known.robust_accuracy)


@check
def folds_are_trained_on_devices():
    options = {"folds": 2, "optimizer": optax.sgd, "lr": 1e-2, "steps": 2, "batch_size": 4, "progress": False}
    system = fm.Classifier(fm.models.Dense(16, 8))
    found, known = (fm.cross_validate(system, (X, Y), devices=devices, **options) for devices in (MEMBERS, None))
    close(found.figures, known.figures)


@check
def single_steps_keep_the_layout_and_compile_once():
    seen = [(state, len(COMPILED)) for state, _ in fm.steps(state_of(mlp, FSDP), (X, Y), steps=4, batch_size=8)]
    assert seen[0][1] == seen[-1][1]
    require_layout(seen[-1][0])
    state, _ = fm.train_step(state_of(mlp, FSDP), (X[:16], Y[:16]))
    compiled = len(COMPILED)
    for _ in range(3):
        state, _ = fm.train_step(state, (X[:16], Y[:16]))
    assert len(COMPILED) == compiled
    require_layout(state)
    logs = fm.eval_step(state, (X[:16], Y[:16]))
    assert {"loss", "accuracy"} <= logs.keys()


@check
def batches_are_split_over_the_data_axis():
    class Batches:
        seen = []

    @dispatch
    def on(event: fm.StepEnd, callback: Batches, run):
        callback.seen.append([tuple(v.sharding.spec) for v in jax.tree.leaves(run.batch)])

    stream = [(X[:16], Y[:16]), (X[:6], Y[:6])]  # six rows cannot be divided equally: all devices have them
    for data in ((X[:24], Y[:24]), stream):
        Batches.seen = []
        fm.fit(state_of(mlp, REPLICATED), data, epochs=1, batch_size=16, callbacks=[Batches()], progress=False)
        last = () if data is stream else ("data",)
        assert Batches.seen == [[("data",)] * 2, [last] * 2], Batches.seen


@check
def a_state_moves_to_another_policy_and_keeps_its_own():
    moved = fm.steps(state_of(mlp, FSDP), (X, Y), steps=1, devices=TENSOR)
    state, _ = next(moved)
    assert state.devices == TENSOR and fm.replace(state, {"system.model.layers.0.bias": jnp.ones(32)}).devices == TENSOR
    require_layout(state)


@check
def a_callback_may_change_the_learning_rate_without_further_programs():
    class Halve:
        compiled = []

    @dispatch
    def on(event: fm.EpochEnd, callback: Halve, run):
        run.learning_rate = run.learning_rate / 2
        callback.compiled.append(len(COMPILED))

    state, _ = fm.fit(state_of(mlp, FSDP), (X, Y), epochs=3, batch_size=16, callbacks=[Halve()], progress=False)
    require_layout(state)
    assert Halve.compiled[1] == Halve.compiled[2]


@check
def groups_of_steps_have_the_losses_and_layouts_of_single_steps():
    options = dict(epochs=2, batch_size=8, progress=False)
    (_, single), (state, grouped) = (fm.fit(state_of(mlp, FSDP), (X, Y), fuse=fuse, **options) for fuse in (None, 5))
    require_layout(state)
    np.testing.assert_allclose(grouped["loss"], single["loss"], rtol=1e-6)


@check
def a_saved_state_loads_under_any_policy():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for saved in (None, FSDP):
            path = f"{folder}/state.safetensors"
            fm.save(path, trained(mlp, saved)[0])
            for policy in (None, FSDP, TENSOR):
                loaded = fm.load(path, like=state_of(mlp, policy))
                assert loaded.devices == policy and loaded.step == trained(mlp)[0].step
                for a, b in zip(loaded.arrays, trained(mlp, saved)[0].arrays, strict=True):
                    np.testing.assert_array_equal(a, b)
                if policy is not None:
                    require_layout(loaded)
                fm.train_step(loaded, (X[:16], Y[:16]))


@check
def a_run_resumes_under_another_policy():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        options = {**READING, "callbacks": [fm.Checkpoint(folder, every=fm.Every(epochs=1))], "progress": False}
        fm.fit(state_of(mlp, FSDP), EQUAL, **{**options, "callbacks": [*options["callbacks"], Stop()]})
        state, history = fm.fit(state_of(mlp, TENSOR), EQUAL, resume=folder, **options)
    close(history, trained(mlp)[1])
    require_layout(state)


@check
def a_run_in_an_object_store_resumes_under_another_policy():
    try:
        import orbax.checkpoint  # noqa: F401
    except ImportError:
        return
    url = os.environ.get("OBJECT_STORE", "memory://distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax's own
        saving = fm.Checkpoint(url, every=fm.Every(epochs=1), store=fm.OrbaxStore())
        options = {**READING, "callbacks": [saving], "progress": False}
        half, _ = fm.fit(state_of(mlp, FSDP), EQUAL, **{**options, "callbacks": [saving, Stop()]})
        for policy in (TENSOR, FSDP, None):
            restored = fm.restore(url, state_of(mlp, policy))
            for a, b in zip(restored.arrays, half.arrays, strict=True):
                np.testing.assert_array_equal(a, b)
            if policy is not None:
                require_layout(restored)
        state, history = fm.fit(state_of(mlp, TENSOR), EQUAL, resume=url, **options)
    close(history, trained(mlp)[1])
    require_layout(state)


class Stop:
    """Ends a run after its first epoch."""


@dispatch
def on(event: fm.EpochEnd, callback: Stop, run):
    run.stop()


@check
def parts_of_a_batch_are_computed_on_devices():
    options = {"optimizer": optax.sgd, "lr": 1e-2, "batch_size": 16, "microbatches": 2}
    data = X[:16], Y[:16]
    system = fm.Classifier(fm.models.Dense(16, 8))
    states = [fm.setup(system, data, devices=devices, **options) for devices in (None, FSDP)]
    (_, known), (state, found) = (fm.train_step(state, data) for state in states)
    close({name: float(v) for name, v in found.items()}, {name: float(v) for name, v in known.items()})
    require_layout(state)


@check
def a_copied_state_keeps_its_policy_and_a_pickled_one_has_none():
    import copy
    import pickle

    state = state_of(mlp, FSDP)
    assert copy.deepcopy(state).devices == FSDP
    state = pickle.loads(pickle.dumps(fm.replace(state, key=jax.random.key(1))))
    assert state.devices is None
    fm.train_step(state, (X[:16], Y[:16]))


@check
def a_summary_shows_layouts_and_bytes_per_device():
    found = fm.summary(state_of(mlp, FSDP))
    (row,) = (row for row in found.rows if row.path == "model.layers.0.weight")
    assert (row.layout, row.bytes, row.device_bytes) == ("None, data", 2048, 512)
    assert "per device" in str(found) and "replicated" in str(found)
    assert found.device_bytes + found.optimizer_device_bytes < 0.5 * (found.bytes + found.optimizer_bytes)
    assert "per device" not in str(fm.summary(state_of(mlp)))
    costs = fm.summary(state_of(mlp, FSDP), (X[:16], Y[:16])).costs
    assert costs and all(cost.flops > 0 for cost in costs)


@check
def explain_shows_which_methods_lay_out_a_component():
    text = str(fm.explain(fm.devices.layouts, mlp()[0], TENSOR))
    assert "partition(MLP, TensorParallel)" in text and "partition(Dense, TensorParallel)" in text


# Bad input


def raises(kind, parts, function, *args, **options):
    try:
        function(*args, **options)
    except kind as error:
        missing = [part for part in parts if part not in str(error)]
        assert not missing, (missing, str(error))
    else:
        raise AssertionError(f"{parts}: no error")


@check
def errors_say_what_to_do():
    fit = functools.partial(fm.fit, state_of(mlp, REPLICATED), epochs=1, progress=False)
    raises(ValueError, ["data=16", "needs 16 devices", "there are 8"], fm.mesh, data=16)
    raises(ValueError, ["multiple of 3", "8"], fm.mesh, model=3)
    raises(ValueError, ["data and model"], fm.mesh, data=-1, model=-1)
    raises(ValueError, ["data must be a positive integer", "0"], fm.mesh, data=0)
    raises(TypeError, ["model must be an integer", "2.0"], fm.mesh, model=2.0)
    raises(TypeError, ["FSDP", "fm.FSDP(fm.mesh())"], fm.FSDP, 8)
    raises(ValueError, ["Auto", "fm.mesh"], fm.Replicated, jax.make_mesh((8,), ("data",)))
    raises(ValueError, ["'rows'", "'model'"], fm.TensorParallel, MESH, axis="rows")
    raises(ValueError, ["min_size", "0"], fm.FSDP, MESH, min_size=0)
    raises(
        TypeError,
        ["devices must be a policy", "Mesh", "fm.Replicated"],
        fm.setup,
        *mlp(),
        optimizer=optax.sgd,
        lr=0.1,
        devices=MESH,
    )
    raises(
        ValueError, ["batch_size", "multiple of 4", "got 18", "batch_size=16 or batch_size=20"], fit, (X, Y), batch_size=18
    )
    raises(ValueError, ["batch_size", "multiple of 4", "got 6"], fit, [(X[:6], Y[:6])])


class Wrong(fm.Model):
    axes: tuple
    name: str = "weight"
    weight: jax.Array | None = None


@dispatch
def partition(layer: Wrong, policy):
    return {layer.name: layer.axes}


@check
def errors_of_rules_name_the_array_and_the_remedy():
    whole = lambda *args: fm.devices.layouts(fm.replace(Wrong(*args), weight=jnp.ones((6, 8))), TENSOR)
    raises(ValueError, ["weight", "2 axes", "3 mesh axes"], whole, (None, None, "model"))
    raises(ValueError, ["weight", "'rows'", "'data', 'model'"], whole, ("rows",))
    raises(ValueError, ["weight", "size 6", "'data' of size 4", "None"], whole, ("data",))
    raises(ValueError, ["weight", "at most once"], whole, ("model", "model"))
    raises(ValueError, ["Wrong", "'kernel'", "weight"], whole, ("model",), "kernel")


if __name__ == "__main__":
    results = {}
    for name, function in CHECKS.items():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        try:
            function()
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
