"""`fit(fuse=…)`: several steps in one program give what single steps give."""

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm
from fulmen.train.step_groups import StepGroups

X, Y = data(45)  # nine batches of five, or eleven of four and one of one
ADAM = dict(optimizer=optax.adam, lr=1e-2)


class Seen:
    """The steps at which it was called, with the loss there."""

    def __init__(self, every):
        self.every, self.steps = every, []


@fm.dispatch
def due(callback: Seen):
    return callback.every


@fm.dispatch
def on(event: fm.train.Due, callback: Seen, run):
    callback.steps.append((run.step, run.logs["loss"], float(jax.tree.leaves(run.state.system)[0].sum())))


@pytest.fixture(scope="module")
def state():
    return fm.setup(fm.Classifier(fm.models.MLP(4, 8, 3, dropout=0.2)), (X, Y), batch_size=5, epochs=3, **ADAM)


def fitted(state, source=(X, Y), **options):
    callbacks = [Seen(fm.Every(steps=7))]
    state, history = fm.fit(state, source, epochs=3, progress=False, callbacks=callbacks, **options)
    return jax.tree.leaves(state), [history["loss"], history["accuracy"]], callbacks[0].steps


def assert_equal(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def single(state):
    return fitted(state)


@pytest.mark.parametrize("fuse", [2, 3, np.int64(7), 50, "auto"])
def test_groups_give_what_single_steps_give(state, single, fuse):
    assert_equal(fitted(state, fuse=fuse), single)


def test_batches_of_another_size_are_not_in_a_group(state):
    assert_equal(fitted(state, batch_size=4, fuse=3), fitted(state, batch_size=4))


def test_an_iterable_is_grouped(state):
    source = fm.data.Prefetch([(X[i : i + 5], Y[i : i + 5]) for i in range(0, 45, 5)])
    assert_equal(fitted(state, source, fuse=4), fitted(state, source))


def test_members_of_a_population_are_grouped():
    system = fm.Population(fm.Classifier(Linear(4, 3)), 2)
    runs = [fm.fit(system, (X, Y), batch_size=5, epochs=2, progress=False, fuse=k, **ADAM)[0] for k in (None, 4)]
    assert_equal(runs[0].arrays, runs[1].arrays)


def test_a_group_is_one_program_of_all_epochs(state):
    taken = []
    take = StepGroups.take

    def counted(self, *args):
        taken.append(len(found := take(self, *args)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepGroups, "take", counted)
        fm.fit(state, (X, Y), epochs=3, progress=False, fuse=4)
    assert taken == [4, 4, 1] * 3


def test_a_run_is_stopped_and_resumed_between_groups(state, tmp_path):
    options = dict(epochs=2, progress=False, fuse=4)
    whole, _ = fm.fit(state, (X, Y), **options)
    checkpoint = fm.Checkpoint(tmp_path, every=fm.Every(steps=4))
    fm.fit(state, (X, Y), callbacks=[checkpoint, StopAt(8)], **options)
    resumed, history = fm.fit(state, (X, Y), callbacks=[checkpoint], resume=tmp_path, **options)
    assert int(resumed.step) == int(whole.step) and len(history["loss"]) == 2
    assert_equal(resumed.arrays, whole.arrays)


class StopAt(Seen):
    def __init__(self, step):
        super().__init__(fm.Every(steps=step))


@fm.dispatch
def on(event: fm.train.Due, callback: StopAt, run):
    run.stop()


def test_single_steps_that_are_needed_are_said(state):
    with pytest.warns(UserWarning, match="fuse=4 has no effect, since NaNGuard is called after each step"):
        fm.fit(state, (X, Y), epochs=1, progress=False, fuse=4, callbacks=[fm.NaNGuard()])


@pytest.mark.parametrize("fuse", [0, -1, 2.0, True, "always"])
@pytest.mark.parametrize("component", [True, False], ids=["component", "state"])
def test_a_wrong_number_is_refused(state, fuse, component):
    given, options = (state.system, ADAM) if component else (state, {})
    with pytest.raises(ValueError, match=f'fuse must be a number of steps, "auto" or None, got {fuse!r}.*fuse=8'):
        fm.fit(given, (X, Y), epochs=1, fuse=fuse, **options)


# How "auto" decides, with a clock that programs advance


def decided(*, compiling=1.0, single=1e-3, grouped=1e-3, steps=100_000, epoch=50, due=1000):
    """The size of the groups after a run, and how many steps were made before it was decided; something is due every so many."""
    time, done = [0.0], 0
    groups = StepGroups("auto", lambda: steps - done, lambda: time[0])
    while groups.measurement is not None and done < steps:
        if done % epoch == 0:
            time[0] += 7.0  # validation
            groups.ran(0, None)
        group = groups.take(0, iter(range(1, 100)), min(epoch - done % epoch, due - done % due))
        time[0] += compiling if done == 0 else len(group) * (single if len(group) == 1 else grouped)
        done += len(group)
        groups.ran(len(group), None)
    return groups.size, done


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(grouped=0.5e-3), 8),
        (dict(grouped=0.9e-3), 1),
        (dict(grouped=20e-3), 1),
        (dict(grouped=0.5e-3, epoch=20), 8),
        (dict(grouped=0.5e-3, steps=3000), 1),
        (dict(grouped=0.5e-3, epoch=12), 1),
        (dict(grouped=0.5e-3, epoch=48, due=12), 1),
    ],
    ids=["faster", "hardly faster", "slower", "short epochs", "short run", "too short epochs", "often due"],
)
def test_the_faster_is_kept(options, size):
    found, done = decided(**options)
    assert found == size
    assert done < 400


def test_much_slower_groups_are_given_up_at_once():
    assert decided(grouped=20e-3)[1] < decided(grouped=0.9e-3)[1]
