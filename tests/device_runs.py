"""Runs on eight CPU devices for `test_devices.py`, which starts this file in a process of its own.

Each function is one check; the results are printed as JSON, by name: "" or the error.
"""

import functools
import json
import os
import sys
import traceback
import warnings

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm
from fulmen import dispatch, forward, init, partition

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")

MESH = fm.mesh(data=4, model=2)
POLICIES = [fm.Replicated(MESH), fm.FSDP(MESH, min_size=64), fm.TensorParallel(MESH)]
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(40, 16)).astype(np.float32), np.arange(40) % 8
IMAGES = RANDOM.uniform(size=(40, 8, 8, 1)).astype(np.float32)
TOKENS = RANDOM.integers(0, 16, (40, 8)).astype(np.int32)
READING = {"epochs": 2, "batch_size": 16, "seed": 3}  # the last batch has 8 rows
COMPILED = []
CHECKS = {}

jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: COMPILED.append(event) if "backend_compile" in event else None
)


def check(function):
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


def mlp():
    return fm.Classifier(fm.models.MLP(16, 32, 8, dropout=0.1)), (X, Y)


def convnet():
    layers = fm.models.Conv(1, 8), fm.models.BatchNorm(8), jax.nn.relu, fm.models.Dropout(0.2), fm.models.Flatten()
    return fm.Classifier(fm.models.Chain(*layers, fm.models.Dense(512, 8))), (IMAGES, Y)


def gpt():
    return fm.LanguageModel(fm.models.Transformer(16, length=8, features=16, heads=2, layers=2, dropout=0.1)), TOKENS


def gan():
    generator, critic = fm.models.MLP(4, 16, 16), fm.models.MLP(16, 16, 1)
    return fm.GAN(generator, critic, latent=4, critic_steps=2), X


def adversarial():
    return fm.Adversarial(fm.Classifier(fm.models.MLP(16, 16, 8)), fm.FGSM(fm.LinfBall(0.1))), (X, Y)


def population():
    return fm.Population(fm.Classifier(fm.models.MLP(16, 16, 8)), 2), (X, Y)


SYSTEMS = [mlp, convnet, gpt, gan, adversarial, population]


@functools.cache
def state_of(make, policy=None):
    system, data = make()
    return fm.setup(system, data, optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=16, devices=policy)


@functools.cache
def trained(make, policy=None):
    """The state after a run, and the losses of its steps."""
    return fm.fit(state_of(make, policy), make()[1], progress=False, **READING)


def close(a, b, within=1e-6):
    assert a.keys() == b.keys(), (a.keys(), b.keys())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=within, atol=within, err_msg=name)


def logs_of(history):
    return {name: values for name, values in history.items() if "seconds" not in name}


def require_layout(state):
    from fulmen.devices.layouts import layouts

    for v, layout in zip(state.arrays, layouts(state), strict=True):
        assert v.sharding.is_equivalent_to(layout, v.ndim), (v.shape, v.sharding, layout)


def train_as_on_one_device(make, policy):
    state, history = trained(make, policy)
    close(logs_of(history), logs_of(trained(make)[1]))
    require_layout(state_of(make, policy))
    require_layout(state)
    assert {len(v.sharding.device_set) for v in state.arrays} == {8}
    names = [leaf.path for leaf in fm.leaves(state.system)]
    for name, a, b in zip(names, jax.tree.leaves(state.system), jax.tree.leaves(trained(make)[0].system), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


for _make in SYSTEMS:
    for _policy in POLICIES:
        CHECKS[f"{_make.__name__}_under_{type(_policy).__name__}"] = functools.partial(train_as_on_one_device, _make, _policy)

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
