"""Runs that are ended early or resumed with other options: what they return, and which checkpoints they keep."""

import json

import numpy as np
import optax
import pytest
from tiny import data, net

import fulmen as fm
from fulmen import dispatch

pytest.importorskip("safetensors")

X, Y = data(48)
LOSSES = [3.0, 2.0, 1.0, 1.5, 1.6, 1.7, 0.0, 0.0]  # the best one before the patience ends is that of the third epoch


class Losses:
    """Replaces the validation loss by given ones, and raises in an epoch."""

    def __init__(self, kill):
        self.kill, self.seen = kill, 0


@dispatch
def on(event: fm.ValidationEnd, losses: Losses, run):
    number = run.step // 3 - 1
    run.logs["validation/loss"] = LOSSES[number]
    if number == losses.kill:
        raise RuntimeError("killed")
    losses.seen += 1


def run(directory, kill=None, order=1, keep=fm.Latest(1), every=fm.Every(epochs=1), patience=3, stopping=True, **options):
    losses = Losses(kill)
    stop = [fm.EarlyStopping("validation/loss", patience=patience, restore_best=True)] * stopping
    callbacks = [losses, *stop, fm.Checkpoint(directory, keep=keep, every=every)][::order]
    given = dict(optimizer=optax.sgd, lr=0.1, batch_size=16, epochs=8, callbacks=callbacks, resume=directory, progress=False)
    options = {**given, **options}
    if "steps" in options:
        del options["epochs"]
    state, history = fm.fit(fm.Classifier(net()), (X, Y), validation=(X, Y), **options)
    return state, history, losses


def same(a, b):
    histories = [{name: values for name, values in each[1].items() if name != "seconds"} for each in (a, b)]
    np.testing.assert_equal(*histories)
    return int(a[0].step) == int(b[0].step) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a[0].arrays[:-1], b[0].arrays[:-1], strict=True)
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_was_stopped_early_keeps_its_best_checkpoint_and_is_complete(tmp_path, order):
    first = run(tmp_path, order=order, keep=fm.Latest(2) | fm.Best("validation/loss"))
    assert (int(first[0].step), len(first[1]["loss"])) == (9, 6)
    for _ in range(2):
        again = run(tmp_path, order=order, keep=fm.Latest(2) | fm.Best("validation/loss"))
        assert same(first, again) and not again[2].seen
        saved = {each.step: each.metrics["validation/loss"] for each in fm.checkpoints(tmp_path)}
        assert saved == {9: 1.0, 15: pytest.approx(1.6), 18: pytest.approx(1.7)}
        assert int(fm.restore(tmp_path, fm.Classifier(net()), "best").step) == 9


@pytest.mark.parametrize("every", [fm.Every(epochs=1), fm.Every(steps=4)], ids=repr)
@pytest.mark.parametrize("kill", [2, 4])
def test_a_killed_run_returns_the_best_state_of_one_that_was_not(tmp_path, every, kill):
    whole = run(tmp_path / "whole", every=every)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", every=every, kill=kill)
    assert same(whole, run(tmp_path / "killed", every=every))


def test_a_run_that_was_stopped_within_an_epoch_is_complete(tmp_path):
    every = fm.Every(steps=3)
    options = dict(every=every, validate_every=every, batch_size=12, keep=fm.Latest(9))  # epochs of 4 steps
    first = run(tmp_path, **options)
    assert int(first[0].step) == 9
    again = run(tmp_path, **options)
    assert same(first, again) and not again[2].seen


def test_more_patience_continues_a_run_that_was_stopped(tmp_path):
    run(tmp_path)
    state, history, _ = run(tmp_path, patience=5)
    assert (int(state.step), len(history["loss"])) == (21, 8)


def test_a_best_state_that_no_checkpoint_has_is_a_warning(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, kill=4, keep=fm.Latest(9))
    best = next(each for each in fm.checkpoints(tmp_path) if each.step == 9)
    (best.path / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"best state, of epoch 3.*fm\.Checkpoint\(directory\)"):
        state, _, _ = run(tmp_path)
    assert int(state.step) == 18


class EpochFails:
    """Raises at the end of an epoch, after its last step was saved."""

    def __init__(self, epoch):
        self.epoch = epoch


@dispatch
def on(event: fm.EpochEnd, fails: EpochFails, run):
    if run.epoch == fails.epoch:
        raise RuntimeError("killed")


@pytest.mark.parametrize(("watch", "batch_size", "rows"), [([fm.NaNGuard()], 16, 48), ([], 1, 1024)], ids=["guard", "long"])
def test_the_logs_of_an_epoch_that_was_killed_at_its_end_are_those_of_the_whole_epoch(tmp_path, watch, batch_size, rows):
    def once(directory, *more):
        callbacks = [*watch, fm.Checkpoint(directory, every=fm.Every(steps=rows // batch_size)), *more]
        options = dict(optimizer=optax.sgd, lr=fm.cosine(0.1), batch_size=batch_size, epochs=2, callbacks=callbacks)
        return fm.fit(fm.Classifier(net()), data(rows), resume=directory, progress=False, **options)

    whole = once(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        once(tmp_path / "killed", EpochFails(0))
    assert same(whole, once(tmp_path / "killed"))
    assert (whole[1]["lr"][:1] > 0).all()


@pytest.mark.parametrize("every", [fm.Every(steps=3) | fm.Every(epochs=1), fm.Every(steps=3)], ids=repr)
def test_a_step_at_the_end_of_an_epoch_is_validated_once(tmp_path, every):
    def once(directory, *more):
        saving = fm.Checkpoint(directory, every=fm.Every(steps=3), keep=fm.Latest(9) | fm.Best("validation/loss"))
        logger = fm.JSONLines(directory / "run.jsonl")
        return run(
            directory, validate_every=every, epochs=3, callbacks=[saving, logger, *more, counted := Losses(None)]
        ), counted

    whole, counted = once(tmp_path / "whole")
    assert counted.seen == 3
    assert whole[1]["step"].tolist() == [3, 6, 9] and (whole[1]["seconds"] > 0).all()
    assert whole[1]["validation/loss"].tolist() == LOSSES[:3]
    assert [each.metrics["validation/loss"] for each in fm.checkpoints(tmp_path / "whole")] == LOSSES[:3]
    records = [json.loads(line) for line in (tmp_path / "whole" / "run.jsonl").read_text().splitlines()]
    assert [each["validation/loss"] for each in records if each["record"] == "epoch"] == LOSSES[:3]
    with pytest.raises(RuntimeError, match="killed"):
        once(tmp_path / "killed", EpochFails(1))
    resumed, counted = once(tmp_path / "killed")
    assert same(whole, resumed) and counted.seen == 1
    again, counted = once(tmp_path / "killed")
    assert same(whole, again) and not counted.seen


class FirstOnly(fm.Training):
    """Trains on the first batches of each epoch."""

    count: int = 1


@dispatch
def run_epoch(phase: FirstOnly, state, source, run):
    some = (batch for _, batch in zip(range(run.batches, phase.count), source))
    return fm.run_epoch(fm.Training(), state, some, run)


@pytest.mark.parametrize("every", [2, 3])
def test_a_phase_with_fewer_batches_continues_within_an_epoch(tmp_path, every):
    options = dict(phase=FirstOnly(2), epochs=3, stopping=False, batch_size=8)
    whole = run(tmp_path / "whole", every=fm.Every(steps=every), **options)
    assert int(whole[0].step) == 6
    saving = fm.Checkpoint(tmp_path / "killed", every=fm.Every(steps=every))
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", **options, callbacks=[Losses(None), saving, EpochFails(1)])
    for _ in range(2):  # the second time it is complete
        assert same(whole, run(tmp_path / "killed", every=fm.Every(steps=every), **options))


def test_short_epochs_are_saved_by_minutes(tmp_path):
    run(tmp_path, epochs=3, every=fm.Every(minutes=1e-9), keep=fm.Latest(9) | fm.Best("validation/accuracy"), stopping=False)
    assert {3, 6, 9} <= {each.step for each in fm.checkpoints(tmp_path)}


@pytest.mark.parametrize("shorter", [dict(epochs=1), dict(steps=5)], ids=repr)
def test_a_run_that_is_longer_than_asked_for_is_returned(tmp_path, shorter):
    length = {name: 2 * value for name, value in shorter.items()}
    first = run(tmp_path, stopping=False, **length)
    [(name, value)] = length.items()
    with pytest.warns(UserWarning, match=rf"has done \d+ steps.*Write {name}={value} or more"):
        again = run(tmp_path, stopping=False, **shorter)
    assert same(first, again) and not again[2].seen


def test_data_without_a_length_is_not_trained_beyond_its_epochs(tmp_path):
    def batches(epoch):
        return fm.batches((X, Y), batch_size=16, seed=epoch)

    for epochs in (2, 2, 1):
        saving = fm.Checkpoint(tmp_path)
        options = dict(optimizer=optax.sgd, lr=0.1, epochs=epochs, callbacks=[saving], resume=tmp_path, progress=False)
        if epochs == 1:
            with pytest.warns(UserWarning, match="Write epochs=2 or more"):
                state, _ = fm.fit(fm.Classifier(net()), batches, **options)
        else:
            state, _ = fm.fit(fm.Classifier(net()), batches, **options)
        assert int(state.step) == 6


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (dict(lr=0.2), r"got sgd\(0\.2\) instead of sgd\(0\.1\)"),
        (dict(lr=fm.cosine(0.2)), r"got sgd\(Cosine\(peak=0\.2.*\) instead of sgd\(0\.1\)"),
        (dict(optimizer=optax.adam), r"got adam\(0\.1\) instead of sgd\(0\.1\)"),
    ],
)
def test_another_optimizer_is_refused(tmp_path, other, words):
    run(tmp_path, epochs=1, stopping=False)
    with pytest.raises(ValueError, match=words + r'(.|\n)*"optimizer\.lr"'):
        run(tmp_path, epochs=2, stopping=False, **other)


def test_a_learning_rate_that_a_callback_changed_is_no_other_one(tmp_path):
    plateau = [fm.callbacks.ReduceOnPlateau("loss", patience=1, min_delta=9.0), fm.Checkpoint(tmp_path)]
    options = dict(batch_size=16, epochs=3, callbacks=plateau, resume=tmp_path, progress=False)
    state, history = fm.fit(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=0.1, **options)
    assert history["lr"][-1] < 0.1
    for same_run in (state, fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.sgd, lr=0.1)):
        fm.fit(same_run, (X, Y), **options)


class Lowers:
    """Sets the learning rate after the first epoch."""


@dispatch
def on(event: fm.EpochEnd, lowers: Lowers, run):
    if run.epoch == 0:
        run.learning_rate = 0.01


GROUPS = {"**.bias": fm.optimizers.Optimizer(optax.sgd, 0.2), "**": fm.optimizers.Optimizer(optax.adam, fm.cosine(0.1))}


@pytest.mark.parametrize(
    "optimizer", [dict(optimizer=optax.adam, lr=fm.cosine(0.1)), dict(optimizer=GROUPS)], ids=["one", "groups"]
)
def test_a_run_whose_schedule_was_replaced_by_a_number_is_resumed(tmp_path, optimizer):
    def once(directory, *more):
        options = dict(batch_size=16, epochs=3, callbacks=[Lowers(), fm.Checkpoint(directory), *more], resume=directory)
        return fm.fit(fm.Classifier(net()), (X, Y), **optimizer, **options, progress=False)

    whole = once(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        once(tmp_path / "killed", EpochFails(1))
    resumed = once(tmp_path / "killed")
    assert same(whole, resumed) and repr(resumed[0].optimizer) == repr(whole[0].optimizer)
    assert same(whole, once(tmp_path / "killed"))
    like = fm.setup(fm.Classifier(net()), (X, Y), **optimizer, batch_size=16, epochs=3)
    assert repr(fm.restore(tmp_path / "whole", like=like).optimizer) == repr(whole[0].optimizer)
    other = fm.setup(fm.Classifier(net()), (X, Y), optimizer=optax.adam(0.1), batch_size=16)
    with pytest.raises(ValueError, match="does not fit `like`"):
        fm.restore(tmp_path / "whole", like=other)


def test_the_best_state_may_be_older_than_the_number_that_replaced_its_schedule(tmp_path):
    class LowersLate:
        pass

    @dispatch
    def on(event: fm.EpochStart, lowers: LowersLate, run):
        if run.epoch == 3:
            run.learning_rate = 0.01

    def once(directory, kill=None):
        callbacks = [LowersLate(), Losses(kill), fm.EarlyStopping(restore_best=True), fm.Checkpoint(directory)]
        return run(directory, epochs=5, lr=fm.cosine(0.1), callbacks=callbacks)

    whole = once(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        once(tmp_path / "killed", kill=4)
    assert same(whole, once(tmp_path / "killed")) and int(whole[0].step) == 9


def test_another_peak_of_a_schedule_is_refused(tmp_path):
    run(tmp_path, epochs=1, stopping=False, lr=fm.cosine(0.1))
    with pytest.raises(ValueError, match=r"peak=0\.2.*instead of .*peak=0\.1"):
        run(tmp_path, epochs=1, stopping=False, lr=fm.cosine(0.2))
    run(tmp_path, epochs=1, stopping=False, lr=fm.cosine(0.1))


@pytest.mark.parametrize(("other", "saved"), [(None, False), ("b", False), ("a", True)])
def test_a_run_that_saves_nothing_where_it_resumes_is_a_warning(tmp_path, other, saved):
    callbacks = [] if other is None else [fm.Checkpoint(tmp_path / other)]
    options = dict(optimizer=optax.sgd, lr=0.1, batch_size=16, epochs=1, progress=False, resume=tmp_path / "a")
    if saved:
        fm.fit(fm.Classifier(net()), (X, Y), callbacks=callbacks, **options)
    else:
        with pytest.warns(UserWarning, match=r"saves nothing there.*fm\.Checkpoint\(.*a"):
            fm.fit(fm.Classifier(net()), (X, Y), callbacks=callbacks, **options)
