"""Loggers: what they write in a run, after a resume, and when they fail."""

import csv
import dataclasses
import json
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fulmen.loggers import Histogram, Hyperparameters, Image, Scalars, Text
from tiny import Linear, data

import fulmen as fm
from fulmen import dispatch
from fulmen.train.loggers.records import flat_numbers, image_bytes
from fulmen.train.resume import run_data

X, Y = data(40)
QUIET = dict(progress=False, batch_size=4)


@pytest.fixture(scope="module")
def state():
    system = fm.Classifier(fm.models.Chain(Linear(4, 3)), metrics=(fm.Accuracy(),))
    return fm.setup(system, (X, Y), optimizer=optax.sgd, lr=0.1, batch_size=4)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# A run that is killed and resumed


class Killed(Exception):
    """The end of a process."""


@dataclasses.dataclass
class Kill(fm.callbacks.Saver):
    """Keeps what a checkpoint after one step has, and ends the run after another step."""

    saved_at: int
    killed_at: int
    state: fm.State | None = None
    run: dict | None = None
    step = 0

    def load(self, like):
        return self.state


@dispatch
def due(callback: Kill):
    return fm.Every(steps=1)


@dispatch
def on(event: fm.Due, callback: Kill, run):
    if run.step == callback.saved_at:
        callback.state, callback.run = run.state, json.loads(json.dumps(run_data(run)))
    if run.step == callback.killed_at:
        raise Killed


OPTIONS = dict(epochs=3, validation=(X, Y), **QUIET)
MOMENTS = [(3, 4), (3, 9), (10, 17), (10, 22), (15, 29), (20, 21)]


def killed_and_resumed(monkeypatch, state, make, saved_at, killed_at, **options):
    """Run with a logger, kill the run, and resume it with another one."""
    kill = Kill(saved_at, killed_at)
    with pytest.raises(Killed):
        fm.fit(state, (X, Y), callbacks=[make(), kill], **OPTIONS, **options)
    with monkeypatch.context() as patched:
        patched.setattr("fulmen.train.loop.find_resumable", lambda directory: kill)
        patched.setattr("fulmen.train.loop.warn_unless_saved", lambda *arguments: None)
        return fm.fit(state, (X, Y), callbacks=[make()], resume="there", **OPTIONS, **options)


# Files


def test_json_lines_have_the_options_the_summary_and_the_logs(state, tmp_path):
    path = tmp_path / "folder" / "run.jsonl"
    _, history = fm.fit(state, (X, Y), callbacks=[fm.JSONLines(path)], **OPTIONS)
    first, second, *epochs = lines(path)
    assert (first["record"], first["value"]["batch_size"], first["value"]["optimizer"]) == ("hyperparameters", 4, "sgd(0.1)")
    assert second["record"] == "summary" and "model.layers.0.weight" in second["value"]
    assert [(line["record"], line["step"], line["epoch"]) for line in epochs] == [("epoch", 10 * n, n) for n in (1, 2, 3)]
    for name in ("loss", "validation/accuracy", "lr"):
        assert [line[name] for line in epochs] == history[name].tolist()


def test_logs_within_epochs_and_validations_after_steps(state, tmp_path):
    logger = fm.JSONLines(tmp_path / "run.jsonl", every=fm.Every(steps=4))
    fm.fit(state, (X, Y), callbacks=[logger], **{**OPTIONS, "epochs": 1}, validate_every=fm.Every(steps=3))
    found = [(line["record"], line["step"], "validation/loss" in line) for line in lines(logger.path)[2:]]
    assert found == [
        ("validation", 3, True), ("steps", 4, False), ("validation", 6, True), ("steps", 8, False), ("validation", 9, True),
        ("epoch", 10, False),
    ]  # fmt: skip


def test_values_that_json_does_not_have(tmp_path):
    logger = fm.JSONLines(tmp_path / "run.jsonl")
    fm.log(logger, Scalars(1, "epoch", {"loss": np.nan, "each": jnp.array([1.0, np.inf]), "n": np.int32(3)}))
    fm.log(logger, Histogram(1, "weights", np.arange(10.0)))
    fm.log(logger, Image(1, "image", np.zeros((2, 2))))  # it does not write images
    fm.log(logger, Text(2, "note", "über"))
    logger.close()
    one, two, three = lines(logger.path)
    assert one == {"record": "epoch", "step": 1, "loss": None, "each": [1.0, None], "n": 3}
    assert two["counts"] == [1] * 10 and len(two["edges"]) == 11
    assert three["value"] == "über"


def test_the_table_gets_a_column_when_a_metric_appears(state, tmp_path):
    path = tmp_path / "run.csv"
    logger = fm.CSV(path, every=fm.Every(steps=4))
    _, history = fm.fit(state, (X, Y), callbacks=[logger, fm.GradientNorms(fm.Every(steps=8))], **{**OPTIONS, "epochs": 1})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["record"], row["step"], row["epoch"]) for row in rows] == [
        ("steps", "4", "1"),
        ("steps", "8", "1"),
        ("epoch", "10", "1"),
    ]
    assert [bool(row["gradient_norm"]) for row in rows] == [False, True, True]
    assert [bool(row["validation/loss"]) for row in rows] == [False, False, True]
    assert float(rows[-1]["loss"]) == history["loss"][0]


@pytest.mark.parametrize("make", [fm.JSONLines, fm.CSV])
@pytest.mark.parametrize(("saved_at", "killed_at"), MOMENTS)
def test_a_resumed_file_equals_one_of_a_run_that_was_not_killed(monkeypatch, tmp_path, state, make, saved_at, killed_at):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    every = fm.Every(steps=3)
    fm.fit(state, (X, Y), callbacks=[make(whole, every=every), Kill(0, 0)], **OPTIONS)
    killed_and_resumed(monkeypatch, state, lambda: make(resumed, every=every), saved_at, killed_at)
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("make", [fm.JSONLines, fm.CSV])
def test_a_new_run_replaces_the_file_and_a_continued_one_appends(state, tmp_path, make):
    path = tmp_path / "run"
    trained, _ = fm.fit(state, (X, Y), callbacks=[make(path)], **OPTIONS)
    once = path.read_bytes()
    fm.fit(state, (X, Y), callbacks=[make(path)], **OPTIONS)
    assert path.read_bytes() == once
    fm.fit(trained, (X, Y), callbacks=[make(path)], **{**OPTIONS, "epochs": 1})
    assert (
        path.read_bytes().startswith(once) and path.read_bytes().count(b"epoch,40" if make is fm.CSV else b'"step": 40') == 1
    )


def test_a_file_that_is_shorter_than_the_checkpoint_knows_is_reported(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    logger = fm.JSONLines(path)
    with pytest.warns(UserWarning, match="JSONLines.*lost 88 bytes"):
        logger.open(5, {"size": 100})
    logger.append(Text(6, "note", ""), {"value": ""})
    logger.close()
    assert [line["step"] for line in lines(path)] == [1, 6]


# Failures and other kinds


class Broken(fm.loggers.Logger):
    """A logger that always fails."""


@dispatch
def log(logger: Broken, record: Scalars):
    raise OSError("no space left on device")


def test_a_logger_that_fails_warns_once_and_does_not_end_the_run(state):
    with pytest.warns(UserWarning, match="Broken failed, and the run continues: OSError: no space left") as caught:
        trained, _ = fm.fit(state, (X, Y), callbacks=[Broken()], **OPTIONS)
    assert (len(caught), int(trained.step)) == (1, 30)


def test_a_logger_that_cannot_be_opened_warns_once(state, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="JSONLines failed") as caught:
        fm.fit(state, (X, Y), callbacks=[fm.JSONLines(tmp_path / "file" / "run.jsonl")], **OPTIONS)
    assert len(caught) == 1


def test_only_the_first_process_writes(state, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    fm.fit(state, (X, Y), callbacks=[fm.JSONLines(tmp_path / "run.jsonl"), fm.CSV(tmp_path / "run.csv")], **OPTIONS)
    assert not list(tmp_path.iterdir())


class Collect(fm.loggers.Logger):
    """Keeps its records."""

    def __init__(self):
        super().__init__()
        self.records = []


@dispatch
def log(logger: Collect, record):
    logger.records.append(record)


def test_callbacks_give_records_to_loggers(state):
    collect, record = Collect(), lambda step, y: Histogram(step, "logits", y)
    fm.fit(state, (X, Y), callbacks=[fm.callbacks.Predictions(X[:5], record=record), collect], **{**OPTIONS, "epochs": 1})
    assert [type(r) for r in collect.records] == [Hyperparameters, Text, Histogram, Scalars]
    assert collect.records[2].value.shape == (5, 3)
    values = collect.records[0].value
    assert {"epochs", "seed", "batch_size", "drop_last", "system", "optimizer"} <= values.keys()


def test_numbers_and_images_are_converted():
    assert flat_numbers({"a": jnp.float32(1), "b": np.ones((1, 2))}) == {"a": 1.0, "b/0": 1.0, "b/1": 1.0}
    assert image_bytes(np.array([[0.0, 1.0], [0.5, 2.0]])).tolist() == [[[0], [255]], [[128], [255]]]
    assert image_bytes(np.full((2, 3, 4, 3), 7)).shape == (3, 8, 3)
    with pytest.raises(ValueError, match=r"Image.value.*\(2, 3, 4, 5\)"):
        image_bytes(np.zeros((2, 3, 4, 5)))


# Other libraries' stores


@pytest.mark.parametrize(
    ("make", "package"),
    [(fm.TensorBoard, "tensorboardX"), (fm.WandB, "wandb"), (fm.Trackio, "trackio"), (fm.MLflow, "mlflow")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*fulmen\[{package.lower().removesuffix('x')}"):
        make("there")


class Everything:
    """Writes a record of each kind at the end of the run."""


@dispatch
def due(callback: Everything):
    return fm.Every(epochs=3)


@dispatch
def on(event: fm.Due, callback: Everything, run):
    for record in (
        Image(run.step, "image", np.zeros((4, 4, 3))),
        Histogram(run.step, "weights", np.arange(10.0)),
        Text(run.step, "note", "hello"),
    ):
        fm.loggers.write_record(run, record)


EVERY = fm.Every(steps=3)
STEPS = sorted({*range(3, 31, 3), 10, 20, 30})  # those with a loss in a run of OPTIONS


def test_tensorboard_reads_what_was_written(state, tmp_path):
    pytest.importorskip("tensorboardX")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fm.fit(state, (X, Y), callbacks=[fm.TensorBoard(tmp_path, EVERY), Everything()], **OPTIONS)
    reader = accumulators.EventAccumulator(str(tmp_path)).Reload()
    tags = reader.Tags()
    assert [event.step for event in reader.Scalars("loss")] == STEPS
    assert [event.step for event in reader.Scalars("validation/loss")] == [10, 20, 30]
    assert (tags["images"], tags["histograms"]) == (["image"], ["weights"])
    assert {"summary/text_summary", "hyperparameters/text_summary", "note/text_summary"} <= set(tags["tensors"])


@pytest.mark.parametrize(("saved_at", "killed_at"), MOMENTS)
def test_tensorboard_reads_a_resumed_run_once(monkeypatch, state, tmp_path, saved_at, killed_at):
    pytest.importorskip("tensorboardX")
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed_and_resumed(monkeypatch, state, lambda: fm.TensorBoard(tmp_path, EVERY), saved_at, killed_at)
    reader = accumulators.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in reader.Scalars("loss")] == STEPS
    assert [event.step for event in reader.Scalars("validation/loss")] == [10, 20, 30]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries


@pytest.fixture
def mlflow_client(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return mlflow.MlflowClient(uri), lambda: fm.MLflow("digits", uri, EVERY, artifacts=str(tmp_path / "artifacts"))


def mlflow_run(client):
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    steps = lambda name: [each.step for each in client.get_metric_history(run.info.run_id, name)]
    return run, steps


def test_mlflow_reads_what_was_written(state, mlflow_client):
    client, make = mlflow_client
    fm.fit(state, (X, Y), callbacks=[make(), Everything()], **OPTIONS)
    run, steps = mlflow_run(client)
    assert (steps("loss"), steps("validation/loss")) == (STEPS, [10, 20, 30])
    assert (run.data.params["batch_size"], run.info.status) == ("4", "FINISHED")
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"summary-0.txt", "note-30.txt", "image-30.png", "weights-30.json"}


@pytest.mark.parametrize(("saved_at", "killed_at"), [(3, 9), (10, 22), (20, 21)])
def test_mlflow_reads_a_resumed_run_once(monkeypatch, state, mlflow_client, saved_at, killed_at):
    client, make = mlflow_client
    killed_and_resumed(monkeypatch, state, make, saved_at, killed_at)
    _, steps = mlflow_run(client)
    assert (steps("loss"), steps("validation/loss")) == (STEPS, [10, 20, 30])


@pytest.fixture
def trackio_logs(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    storage = pytest.importorskip("trackio.sqlite_storage")
    for name in ("trackio.sqlite_storage", "trackio.utils", "trackio"):
        if hasattr(sys.modules[name], "TRACKIO_DIR"):  # it is read at import
            monkeypatch.setattr(sys.modules[name], "TRACKIO_DIR", tmp_path)

    def read(name):
        rows = storage.SQLiteStorage.get_logs("digits", "run")
        return [row["step"] for row in rows if name in row]

    return read


def trackio_logger():
    return fm.Trackio("digits", EVERY, name="run", auto_log_cpu=False, auto_log_gpu=False)


def test_trackio_reads_what_was_written(state, trackio_logs):
    fm.fit(state, (X, Y), callbacks=[trackio_logger(), Everything()], **OPTIONS)
    assert sorted({*trackio_logs("loss")}) == STEPS == trackio_logs("loss")
    assert trackio_logs("validation/loss") == [10, 20, 30]
    assert trackio_logs("image") == trackio_logs("weights") == trackio_logs("note") == [30]


@pytest.mark.parametrize(("saved_at", "killed_at"), [(3, 9), (10, 22), (20, 21)])
def test_trackio_reads_a_resumed_run_once(monkeypatch, state, trackio_logs, saved_at, killed_at):
    killed_and_resumed(monkeypatch, state, trackio_logger, saved_at, killed_at)
    assert trackio_logs("loss") == STEPS
    assert trackio_logs("validation/loss") == [10, 20, 30]


def wandb_rows(folder):
    """The rows of the history in the files that W&B writes offline: LevelDB's log format with Protobuf records."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits for W&B's process, which may write a file after the run is finished
    for path in sorted(folder.rglob("offline-run-*/*.wandb")):
        content, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
            size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            record += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a complete record, or its last part
                parsed = Record.FromString(record)
                if parsed.HasField("history"):
                    yield {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item
                    }
                record = b""


def wandb_logger(folder):
    wandb = pytest.importorskip("wandb")
    return lambda: fm.WandB("digits", EVERY, mode="offline", dir=str(folder), settings=wandb.Settings(silent=True))


def test_wandb_reads_what_was_written(state, tmp_path):
    fm.fit(state, (X, Y), callbacks=[wandb_logger(tmp_path)(), Everything()], **OPTIONS)
    rows = list(wandb_rows(tmp_path))
    assert [row["_step"] for row in rows if "loss" in row] == STEPS
    assert [row["_step"] for row in rows if "validation/loss" in row] == [10, 20, 30]
    assert any({"image/_type", "weights/_type", "note/_type"} <= row.keys() for row in rows)


def test_wandb_continues_a_resumed_run_under_its_id(monkeypatch, state, tmp_path):
    killed_and_resumed(monkeypatch, state, wandb_logger(tmp_path), 10, 22)
    rows = {row["_step"]: row for row in wandb_rows(tmp_path) if "loss" in row}  # as `wandb sync` merges them
    assert sorted(rows) == STEPS
    assert len({path.name for path in tmp_path.rglob("offline-run-*/*.wandb")}) == 1


def test_a_library_that_fails_at_the_start_does_not_keep_a_run_from_being_saved(monkeypatch, state, tmp_path):
    logger, kill = wandb_logger(tmp_path)(), Kill(5, 99)
    monkeypatch.setattr(logger.library, "init", lambda **options: 1 / 0)
    with pytest.warns(UserWarning, match="WandB failed, and the run continues: ZeroDivisionError"):
        fm.fit(state, (X, Y), callbacks=[logger, kill], **OPTIONS)
    assert not kill.run["callbacks"]
