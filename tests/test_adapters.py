"""Functions and environments of other libraries, which fit by their signatures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen.augmentations import Augment
from fulmen.environments import Gymnax, begin, play


def brighter(key, image):
    return image + jax.random.uniform(key)


def integers(key, image):
    return image.astype(jnp.int32)


def cropped(key, image):
    return jax.lax.dynamic_slice(image, (*jax.random.randint(key, (2,), 0, 2), 0), (3, 3, 1))


BATCH, TRAIN = fm.Labeled(jnp.zeros((6, 4, 4, 1)), jnp.zeros(6, int)), fm.Train(jax.random.key(0))


@pytest.mark.parametrize("per_batch, different", [(False, 6), (True, 1)])
def test_a_function_of_one_image_is_an_augmentation(per_batch, different):
    new = fm.augment(Augment(brighter, per_batch=per_batch) >> Augment(cropped), BATCH, TRAIN)
    assert new.x.shape == (6, 3, 3, 1) and len(np.unique(new.x)) == different
    assert (new.y == BATCH.y).all()


def test_a_function_that_changes_the_type_is_refused():
    with pytest.raises(TypeError, match=r"Augment\(integers\) must return an image of .* float32, got int32"):
        fm.augment(Augment(integers), BATCH, TRAIN)


# An environment with the methods of gymnax: a walk along a line, which ends at 3.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Params:
    length: float = 1.0
    max_steps_in_episode: int = dataclasses.field(default=10, metadata={"static": True})


class Line:
    num_actions = 2

    def reset_env(self, key, params):
        return jnp.zeros(1), {"at": 0.0, "time": 0}

    def step_env(self, key, state, action, params):
        at = state["at"] + params.length * (2 * action.astype(jnp.float32) - 1)
        return at[None], {"at": at, "time": state["time"] + 1}, jnp.where(at >= 3, 1.0, 0.0), at >= 3, {}


def test_an_environment_of_gymnax():
    line = Gymnax(Line(), Params())
    assert (line.actions, line.limit, Gymnax(Line(), Params(), limit=4).limit) == (2, 10, 4)

    def walk(playing, _):
        playing, reward, done, _ = play(line, playing, jnp.int32(1), jax.random.key(0))
        return playing, (fm.environments.observe(line, playing.state)[0], reward, done)

    _, (at, reward, done) = jax.jit(lambda start: jax.lax.scan(walk, start, length=4))(begin(line, jax.random.key(0)))
    assert at.tolist() == [1.0, 2.0, 0.0, 1.0] and reward.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert done.tolist() == [False, False, True, False]


def test_an_actor_plays_an_environment_of_gymnax():
    parts = fm.models.Dense(1, 2), fm.models.Dense(1, 1)
    system = fm.systems.ActorCritic(*parts, Gymnax(Line(), Params()), agents=4, horizon=4)
    state = fm.setup(system, np.arange(4), batch_size=4, optimizer=optax.adam, lr=0.1)  # traces a step
    assert {leaf.path: leaf.role for leaf in fm.leaves(state.system)}["environment.params.length"] == "hyperparameter"
