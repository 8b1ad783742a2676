"""Sources: what `fit`, `steps`, `evaluate` and the rest give from them, and what is said of bad ones."""

import itertools
import os
import signal
import threading
import traceback
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import adam, equal
from tiny import Pair, data, net

import fulmen as fm
from fulmen import dispatch
from fulmen.train import Run

SIZE = 16
ADAM = dict(optimizer=optax.adam, lr=1e-2)
QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def raw():
    return data()


@pytest.fixture(scope="module")
def lists(raw):
    """The batches of three epochs, as `fit` has them from arrays."""
    found = [*fm.batches(raw, batch_size=SIZE, epochs=3)]
    return [found[i : i + 4] for i in (0, 4, 8)]


class Numbered:
    """Data of one's own that can seek, and has a length."""

    def __init__(self, lists):
        self.lists, self.begun, self.given = lists, [], 0


@dispatch
def batches(data: Numbered, plan, epoch, start=0):
    data.begun.append((epoch, start))
    for batch in data.lists[epoch % len(data.lists)][start:]:
        data.given += 1
        yield batch


@dispatch
def steps_per_epoch(data: Numbered, plan):
    return len(data.lists[0])


class Plain:
    """Data of one's own with nothing but batches."""

    def __init__(self, lists):
        self.lists = lists


@dispatch
def batches(data: Plain, plan, epoch):
    yield from data.lists[epoch % len(data.lists)]


class Again:
    """Something that can be gone through again and again, and has a length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


SOURCES = {
    "function": lambda lists: lambda epoch: iter(lists[epoch]),
    "numbered": Numbered,
    "plain": Plain,
    "ahead": lambda lists: fm.data.Prefetch(Plain(lists), 5),
    "not ahead": lambda lists: fm.data.Prefetch(Plain(lists), 0),
}


def fitted(source, component=None, **options):
    return fm.fit(net() if component is None else component, source, **ADAM, **QUIET, **options)


def no_thread_is_left():
    return not [t for t in threading.enumerate() if t.name == "fulmen-prefetch"]


@pytest.mark.parametrize("kind", SOURCES)
def test_fit_from_a_source_equals_fit_from_arrays(raw, lists, kind):
    expected, history = fitted(raw, epochs=2, batch_size=SIZE)
    state, ours = fitted(SOURCES[kind](lists), epochs=2)
    assert equal(state, expected) and int(state.step) == 8
    # Sums go to the host a few times a second, so where they are rounded depends on the clock.
    np.testing.assert_allclose(history["loss"], ours["loss"], rtol=1e-6)
    assert no_thread_is_left()


def test_prefetched_arrays_are_the_same_arrays(raw):
    expected, _ = fitted(raw, epochs=2, batch_size=SIZE)
    assert equal(fitted(fm.data.Prefetch(raw), epochs=2, batch_size=SIZE)[0], expected)
    assert [len(x) for x, _ in fm.batches(fm.data.Prefetch(raw, 3), batch_size=SIZE)] == [16, 16, 16, 2]


@pytest.mark.parametrize("make", [iter, Again, list, lambda b: (v for v in b), lambda b: map(tuple, b), lambda b: lambda: b])
def test_one_epoch_of_any_iterable(raw, lists, make):
    expected, _ = fitted(raw, epochs=1, batch_size=SIZE)
    assert equal(fitted(make(lists[0]), epochs=1)[0], expected)


def test_batches_in_an_epoch(lists):
    plan = fm.Plan(batch_size=SIZE)
    assert fm.steps_per_epoch(Again(lists[0]), plan) == 4 == fm.steps_per_epoch(Numbered(lists), plan)
    assert fm.steps_per_epoch(Plain(lists), plan) is None and fm.steps_per_epoch(iter(lists[0]), plan) is None
    assert fm.steps_per_epoch(data(), plan) == 4
    assert fm.steps_per_epoch(data(), fm.Plan(batch_size=SIZE, drop_last=True)) == 3
    assert [len(x) for x, _ in fm.batches(data(), fm.Plan(batch_size=SIZE), 0)] == [16, 16, 16, 2]


def test_every_verb_takes_a_source(raw, lists):
    state = adam()
    ordered = [*fm.batches(raw, batch_size=SIZE, seed=None)]
    whole = fm.evaluate(state, raw, batch_size=SIZE)
    for source in (Again(ordered), iter(ordered), lambda: iter(ordered), Numbered([ordered])):
        np.testing.assert_allclose(fm.evaluate(state, source)["loss"], whole["loss"], rtol=1e-6)
    np.testing.assert_allclose(fm.predict(state, Again(ordered)), fm.predict(state, raw), atol=1e-6)
    np.testing.assert_allclose(fm.predict(state, (x for x, _ in ordered)), fm.predict(state, raw), atol=1e-6)
    for make in (Again, Numbered, Plain):
        source = make(ordered if make is Again else [ordered])
        assert equal(fm.setup(net(), source, **ADAM).system, adam().system)
        assert fm.check(net(), source, **ADAM).ok
        assert "training step, 16 examples" in str(fm.summary(net(), source))
        *_, (stepped, _) = fm.steps(state, source, epochs=1)
        assert int(stepped.step) == 4
    _, history = fm.fit(state, raw, epochs=2, batch_size=SIZE, validation=Again(ordered), **QUIET)
    again, _ = fm.fit(state, raw, epochs=2, batch_size=SIZE, **QUIET)
    np.testing.assert_allclose(history["validation/loss"][-1], fm.evaluate(again, raw)["loss"], rtol=1e-6)
    assert no_thread_is_left()


def test_evaluation_pads_the_ragged_batch_of_a_source(raw):
    component = fm.Classifier(fm.models.Dense(4, 3), metrics=(fm.Accuracy(),))
    state = adam(component)
    seen = fm.evaluate(state, Again([*fm.batches(raw, batch_size=SIZE, seed=None)]))
    for name, value in fm.evaluate(state, raw).items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-6)


def test_a_plan_of_a_source(lists):
    assert fm.setup(net(), Numbered(lists), epochs=3, **ADAM).plan == fm.Plan(
        steps_per_epoch=4, epochs=3, total_steps=12, batch_size=16
    )
    assert fm.setup(net(), Plain(lists), epochs=3, **ADAM).plan == fm.Plan(epochs=3, batch_size=16)
    cosine = dict(optimizer=optax.adam, lr=fm.cosine(1e-2))
    with pytest.raises(ValueError, match=r"cosine needs the length of the run: give `steps=`"):
        fm.setup(net(), Plain(lists), epochs=3, **cosine)
    report = fm.check(net(), Plain(lists), epochs=3, **cosine)
    assert not report.ok and "needs the length of the run" in report.errors[0].what
    assert fm.setup(net(), Plain(lists), steps=3, **cosine).plan.total_steps == 3


def test_reading_the_first_batch_takes_nothing_out_of_a_generator(raw, lists):
    expected, _ = fitted(raw, epochs=1, batch_size=SIZE)
    batches = (batch for batch in lists[0])
    assert fm.check(net(), batches, **ADAM).ok
    state = fm.setup(net(), batches, **ADAM)
    assert equal(fm.fit(state, batches, epochs=1, **QUIET)[0].system, expected.system)
    with pytest.raises(TypeError, match=r"got a map, which would lose that batch.*a function that makes the map"):
        fm.setup(net(), map(tuple, lists[0]), **ADAM)


def test_a_generator_of_long_integers(raw):
    x, y = raw
    short, long = (
        fm.fit(net(), ((x, y.astype(kind)) for _ in range(2)), steps=2, **ADAM, **QUIET)[0] for kind in (np.int32, np.int64)
    )
    assert equal(short.system, long.system)


def test_an_iterator_continues_at_its_position(raw, lists):
    whole, _ = fm.fit(adam(), iter(itertools.chain(*lists)), steps=9, **QUIET)
    state, stream = adam(), (batch for batch in itertools.chain(*lists))
    for steps in (2, 3, 4):
        state, _ = fm.fit(state, stream, steps=steps, **QUIET)
    assert equal(whole, state)
    assert np.array_equal(next(stream)[1], lists[2][1][1])


# Resuming


def test_a_source_that_can_seek_is_resumed_by_seeking(raw, lists):
    whole, _ = fm.fit(adam(), raw, steps=9, batch_size=SIZE, **QUIET)
    state, source = adam(), Numbered(lists)
    for steps in (3, 6):
        state, _ = fm.fit(state, source, steps=steps, **QUIET)
    assert equal(whole, state)
    assert source.begun == [(0, 0), (0, 3), (1, 0), (2, 0)] and source.given == 9
    stepped, source = adam(), Numbered(lists)
    for steps in (3, 6):
        *_, (stepped, _) = fm.steps(stepped, source, steps=steps)
    assert source.begun == [(0, 0), (0, 3), (1, 0), (2, 0)]
    for a, b in zip(fm.leaves(whole.system), fm.leaves(stepped.system), strict=True):
        np.testing.assert_allclose(a.value, b.value, atol=1e-6)


@pytest.mark.parametrize("make", [Plain, lambda lists: lambda epoch: lists[epoch]], ids=["plain", "function"])
def test_a_source_that_cannot_seek_warns_and_is_read_from_the_beginning(raw, lists, make):
    whole, _ = fm.fit(adam(), raw, steps=11, batch_size=SIZE, **QUIET)
    state, source = adam(), make(lists)
    state, _ = fm.fit(state, source, steps=2, **QUIET)
    for steps in (2, 3, 4):
        with pytest.warns(UserWarning, match=r"cannot seek.* skipped.*batches\(data: \w+, plan, epoch, start=0\)"):
            state, _ = fm.fit(state, source, steps=steps, **QUIET)
    assert equal(whole, state)


def test_resuming_at_an_epoch_needs_no_seeking(lists):
    state, _ = fm.fit(adam(), Again(lists[0]), steps=3, **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = fm.fit(state, Again(lists[0]), epochs=1, **QUIET)
    assert int(state.step) == 7


# The thread


class Stop:
    """Stops, raises, or presses Ctrl-C after some steps."""

    def __init__(self, how):
        self.how = how


@dispatch
def on(event: fm.StepEnd, callback: Stop, run):
    if run.done < 3:
        return
    if callback.how == "stop":
        run.stop()
    elif callback.how == "raise":
        raise KeyError("no more")
    else:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("how", ["stop", "raise", "ctrl-c"])
def test_the_thread_ends_with_the_run(lists, how, capsys):
    ended = threading.Event()

    def source():
        try:
            while True:
                yield lists[0][0]
        finally:
            ended.set()

    run = lambda: fm.fit(adam(), source, steps=100, callbacks=[Stop(how)], progress=how == "ctrl-c")
    if how == "raise":
        with pytest.raises(KeyError, match="no more"):
            run()
    else:
        assert 3 <= int(run()[0].step) < 100
    assert ended.is_set() and no_thread_is_left()
    if how == "ctrl-c":
        assert "Interrupted: the state after" in capsys.readouterr().out


def test_leaving_the_loop_ends_the_thread(lists):
    for _ in fm.steps(adam(), Again(lists[0]), epochs=1):
        break
    assert no_thread_is_left()


def test_batches_are_prefetched_and_no_more_than_needed(lists):
    given, seen = [], []

    def source():
        for i in itertools.count():
            given.append(i)
            yield lists[0][0]

    class Look:
        pass

    @dispatch
    def on(event: fm.StepEnd, callback: Look, run):
        seen.append(len(given) - run.done)

    fm.fit(adam(), source, steps=6, callbacks=[Look()], **QUIET)
    assert len(given) == 6
    assert max(seen) <= 4  # the one that the loop has, two that lie ready, and one that is being made


def test_a_source_may_reuse_its_arrays(raw, lists):
    expected, _ = fitted(raw, epochs=1, batch_size=SIZE)

    def source():
        x, y = np.empty((SIZE, 4), np.float32), np.empty(SIZE, np.int32)
        for a, b in lists[0]:
            x[: len(a)], y[: len(b)] = a, b
            yield x[: len(a)], y[: len(b)]
            x[:], y[:] = 7, 0

    for depth in (0, 2):
        assert equal(fitted(fm.data.Prefetch(source, depth), epochs=1)[0], expected)


# Bad input


def broken(lists, change, at=2):
    """A function that makes the batches of an epoch, the third of which is changed."""

    def numbers(epoch):
        for i, (x, y) in enumerate(lists[0]):
            yield change(x, y) if i == at else (x, y)

    return numbers


def fails(x, y):
    raise OSError("the disk is on fire")


def with_nan(x, y):
    x = x.copy()
    x[1, 2] = np.nan
    return x, y


BROKEN = {
    "raises": (fails, RuntimeError, ["raised OSError: the disk is on fire"]),
    "columns": (lambda x, y: (x[:, :3], y), ValueError, ["x", "rows of f32[4]", "f32[16, 3]"]),
    "type": (lambda x, y: (x.astype(np.int32), y), TypeError, ["x", "f32[4]", "i32[16, 4]"]),
    "type of labels": (lambda x, y: (x, y.astype(np.float32)), TypeError, ["y", "i32[]", "f32[16]"]),
    "structure": (lambda x, y: dict(x=x, y=y), TypeError, ["(f32[16, 4], i32[16])", "'x'"]),
    "one more": (lambda x, y: (x, y, np.ones(16, np.float32)), TypeError, ["(f32[16, 4], i32[16])", "f32[16])"]),
    "lengths": (lambda x, y: (x, y[:5]), ValueError, ["x 16", "y 5"]),
    "empty": (lambda x, y: (x[:0], y[:0]), ValueError, ["empty"]),
    "nan": (with_nan, ValueError, ["x", "finite", "nan", "[1, 2]"]),
    "nothing": (lambda x, y: None, TypeError, ["(f32[16, 4], i32[16])", "None"]),
    "string": (lambda x, y: (x, "labels"), TypeError, ["y", "str"]),
    "lists": (lambda x, y: (x.tolist(), y.tolist()), TypeError, ["must be an array", "float"]),
    "too large": (lambda x, y: (x, np.full(16, 2**40)), ValueError, ["y", "fit into 32 bits"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_batch_unlike_the_first_is_refused(lists, name):
    change, error, words = BROKEN[name]
    with pytest.raises(error, match="function numbers, batch 2 of epoch 0") as caught:
        fm.fit(adam(), broken(lists, change), epochs=1, **QUIET)
    assert all(word in str(caught.value) for word in words), caught.value
    assert no_thread_is_left()


def test_an_error_in_the_source_is_the_cause_with_its_traceback(lists):
    for run in (
        lambda source: fm.fit(adam(), source, epochs=1, **QUIET),
        lambda source: [*fm.steps(adam(), source, epochs=1)],
        lambda source: fm.evaluate(adam(), source),
        lambda source: [*fm.batches(source)],
    ):
        with pytest.raises(RuntimeError, match="batch 2 of epoch 0") as caught:
            run(broken(lists, fails))
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        frames = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
        assert frames[-1] == "fails" and "numbers" in frames
    with pytest.raises(RuntimeError, match="validation: the function numbers, batch 2"):
        fm.fit(adam(), data(), epochs=1, validation=broken(lists, fails), **QUIET)


class Short(Again):
    def __len__(self):
        return 9


class Long(Again):
    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda lists: Short(lists[0]), ValueError, ["the Short ended after 4 of its declared 9 batches", "epoch 0"]),
        (lambda lists: Long(lists[0]), ValueError, ["the Long has more than its declared 1 batches", "epoch 0"]),
        (lambda lists: lambda: iter(()), ValueError, ["gave no batch in epoch 0"]),
        (lambda lists: iter(()), ValueError, ["gave no batch", "used up"]),
        (lambda lists: Plain([[]]), ValueError, ["the Plain gave no batch"]),
        (lambda lists: lambda: None, RuntimeError, ["an iterable of batches", "NoneType"]),
        (lambda lists: lambda: [(["a"], ["b"])], TypeError, ["0.0 must be an array", "str"]),
        (lambda lists: lambda: [np.array(["a", "b"])], TypeError, ["x", "numbers", "<U1"]),
        (lambda lists: lambda: [(np.ones((3, 4), np.float32), np.full(3, 2**40))], ValueError, ["y", "32 bits"]),
        (lambda lists: lambda: [()], TypeError, ["arrays", "got ()"]),
        (lambda lists: lambda: [np.float32(1)], ValueError, ["one row per example"]),
        (lambda lists: "images.npy", TypeError, ["str 'images.npy'", "fm.data.open"]),
        (lambda lists: 3, TypeError, ["got the int", "batches(data: int, plan, epoch)"]),
        (lambda lists: object(), TypeError, ["got the object"]),
        (lambda lists: [1.0, 2.0], TypeError, ["a list of numbers"]),
    ],
)
def test_sources_without_usable_batches_are_refused(lists, make, error, words):
    for run in (
        lambda: fm.fit(net(), make(lists), epochs=1, **ADAM, **QUIET),
        lambda: fm.fit(adam(), make(lists), epochs=1, **QUIET),
        lambda: fm.evaluate(adam(), make(lists)),
    ):
        with pytest.raises(error) as caught:
            run()
        text = str(caught.value) + str(caught.value.__cause__ or "")
        assert all(word in text for word in words), caught.value


def test_a_generator_can_be_iterated_only_once(lists):
    def numbers():
        yield from lists[0]

    with pytest.raises(ValueError, match=r"the generator numbers can be iterated only once, but epochs=2.*Give a function"):
        fm.fit(adam(), numbers(), epochs=2, **QUIET)
    with pytest.raises(ValueError, match="validation: the generator numbers can be iterated only once"):
        fm.fit(adam(), data(), epochs=2, validation=numbers(), **QUIET)
    with pytest.raises(ValueError, match="the generator numbers gave no batch in epoch 1: it is used up"):
        fm.fit(adam(), numbers(), steps=6, **QUIET)
    with pytest.raises(ValueError, match="the generator numbers gave no batch in epoch 1: it is used up"):
        [*fm.steps(adam(), numbers(), steps=6)]
    used = numbers()
    assert len([*used]) == 4
    with pytest.raises(ValueError, match="used up"):
        fm.evaluate(adam(), used)
    fitted(numbers, epochs=2)


def test_options_that_a_source_decides_are_refused(lists):
    with pytest.raises(ValueError, match=r"batch_size must be .* 16, the size of the batches that the Again makes, got 8"):
        fm.fit(adam(), Again(lists[0]), epochs=1, batch_size=8, **QUIET)
    with pytest.raises(ValueError, match="drop_last must be False, since the Again makes its own batches"):
        fitted(Again(lists[0]), epochs=1, drop_last=True)
    with pytest.raises(ValueError, match=r"Prefetch.depth must be a non-negative integer"):
        fm.data.Prefetch(lists[0], -1)


def test_labels_of_the_first_batch_are_checked(lists):
    wrong = [(x, y + 3) for x, y in lists[0]]
    for verb in (fm.setup, fm.check):
        found = None
        try:
            found = verb(fm.Classifier(fm.models.Dense(4, 3)), Again(wrong), **ADAM)
        except ValueError as error:
            found = error
        assert "0 to 2" in str(found)
    with pytest.raises(ValueError, match="0 to 2"):
        fm.evaluate(adam(fm.Classifier(fm.models.Dense(4, 3))), Again(wrong))


def test_progress_without_a_length(lists, capsys):
    from fulmen.train.progress import NotebookProgress, ProgressBar

    fitted(Plain(lists), epochs=1) and fm.fit(adam(), Plain(lists), epochs=1)
    assert capsys.readouterr().out.startswith("epoch 1")
    fm.fit(adam(), Plain(lists), epochs=1, progress=ProgressBar())
    assert "4/?" in capsys.readouterr().out

    class Shown:
        def update(self, shown, raw):
            self.text = shown["text/plain"], shown["text/html"]

    bar, run = NotebookProgress(), Run(fm.Plan(), fm.History(), steps=None, done=4)
    bar.display = Shown()
    bar.draw(run)
    assert "epoch 1  4  " in bar.display.text[0] and "<progress></progress>" in bar.display.text[1]


def test_dicts_and_user_defined_batches(raw, lists):
    expected, _ = fitted(raw, epochs=1, batch_size=SIZE)
    for make in (lambda x, y: dict(x=x, y=y), fm.Labeled, lambda x, y: [x, jnp.asarray(y)]):
        state, _ = fitted(Again([make(x, y) for x, y in lists[0]]), epochs=1)
        assert equal(state, expected)


def test_a_source_for_each_part(raw, lists):
    """As arrays for each part: a function, a list and arrays side by side, until the shortest ends; errors name the part."""
    expected, _ = fitted({"one": raw, "two": raw}, Pair(net(), net()), epochs=2, batch_size=SIZE)
    endless = lambda epoch: itertools.chain(lists[epoch], itertools.repeat(lists[epoch][0]))
    state, _ = fitted({"one": endless, "two": raw}, Pair(net(), net()), epochs=2, batch_size=SIZE)
    assert equal(state, expected) and int(state.step) == 8
    again, _ = fitted({"one": Numbered(lists), "two": lists[0]}, Pair(net(), net()), epochs=1)
    assert again.plan.steps_per_epoch == 4
    assert equal(fitted({"one": raw, "two": raw}, Pair(net(), net()), epochs=1, batch_size=SIZE)[0], again)
    given = [*fm.batches({"x": lambda: [x for x, _ in lists[0]], "y": lambda: [y for _, y in lists[0]]})]
    assert [{k: v.shape for k, v in batch.items()} for batch in given][-1] == {"x": (2, 4), "y": (2,)}
    with pytest.raises(RuntimeError, match="data: the Sources one, two, batch 2 of epoch 0 raised OSError: gone") as caught:
        fitted({"one": lists[0], "two": lambda: map(broken_at(2), range(4), lists[0])}, Pair(net(), net()), epochs=1)
    assert caught.value.__cause__.__notes__ == ["in the data of 'two'"]
    with pytest.raises(ValueError, match=r"batch 0 of epoch 0: .*one\.0 16, one\.1 16, two\.0 8, two\.1 8"):
        fitted({"one": lists[0], "two": raw}, Pair(net(), net()), epochs=1, batch_size=8)
    with pytest.raises(TypeError, match="data, two: a generator can be iterated only once"):
        fitted({"one": raw, "two": (batch for batch in lists[0])}, Pair(net(), net()), epochs=1)


def broken_at(index):
    def item(i, batch):
        if i == index:
            raise OSError("gone")
        return batch

    return item


def test_fm_testing_takes_sources(lists):
    fm.testing.check_component(net(), Again(lists[0]))
    for source in (Numbered(lists), Plain(lists), Again(lists[0]), data()):
        fm.testing.check_source(source)
    with pytest.raises(AssertionError, match="from batch 1 on"):

        class Unsteady(Numbered):
            pass

        @dispatch
        def batches(data: Unsteady, plan, epoch, start=0):
            yield from data.lists[epoch][: 4 - start]

        fm.testing.check_source(Unsteady(lists))
    with pytest.raises(AssertionError, match="4 batches, and declares 9"):
        fm.testing.check_source(Short(lists[0]))
