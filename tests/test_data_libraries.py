"""Data loaders of other libraries: what `fit` makes of them is what it makes of the same batches; skipped where one is missing."""

import numpy as np
import pytest
from forked import run_code
from test_training import adam, equal
from tiny import data

import fulmen as fm

QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def raw():
    return data()


def fit(source, **options):
    return fm.fit(adam(), source, **{"epochs": 2, **QUIET, **options})[0]


def resumed(make):
    """A run of seven steps in one, and in three parts with a source each that is new."""
    whole, state = fit(make(), epochs=None, steps=7), adam()
    for steps in (2, 3, 2):
        state, _ = fm.fit(state, make(), steps=steps, **QUIET)
    return equal(whole, state)


@pytest.fixture(scope="module")
def torch_data():
    pytest.importorskip("torch")
    import torch.utils.data

    return torch.utils.data


@pytest.fixture
def tensors(torch_data, raw):
    import torch

    return torch_data.TensorDataset(*map(torch.as_tensor, (raw[0], raw[1].astype(np.int64))))


def generator():
    import torch

    return torch.Generator().manual_seed(0)


def test_a_torch_loader_is_its_batches(torch_data, tensors, raw):
    for options in (dict(), dict(shuffle=True), dict(shuffle=True, drop_last=True)):
        make = lambda options=options: torch_data.DataLoader(tensors, 16, generator=generator(), **options)
        loader = make()
        epochs = [[(x.numpy(), y.numpy()) for x, y in loader] for _ in range(2)]
        assert equal(fit(make()), fit(lambda epoch, epochs=epochs: epochs[epoch]))
        assert fm.steps_per_epoch(make(), fm.Plan()) == len(epochs[0])
    with pytest.raises(ValueError, match="drop_last must be False, since the DataLoader makes its own batches"):
        fit(make(), drop_last=True)
    with pytest.raises(
        ValueError, match=r"batch_size must be .* 16, the size of the batches that the DataLoader makes, got 8"
    ):
        fit(make(), batch_size=8)
    assert fm.evaluate(adam(), torch_data.DataLoader(tensors, 16))["loss"] == pytest.approx(
        fm.evaluate(adam(), raw)["loss"], rel=1e-6
    )


def test_a_torch_loader_seeks_without_loading(torch_data, raw):
    class Counting(torch_data.Dataset):
        seen = 0

        def __len__(self):
            return 50

        def __getitem__(self, i):
            Counting.seen += 1
            return raw[0][i], raw[1][i]

    make = lambda: torch_data.DataLoader(Counting(), 16)
    assert resumed(make)
    Counting.seen = 0
    source = fm.batches(make(), fm.Plan(), 0, 3)
    assert [len(y) for _, y in source] == [2] and Counting.seen == 2
    for options in (dict(shuffle=True), dict(batch_size=None, sampler=[[3, 4], [5, 6], [7, 8]])):
        first, second = (
            torch_data.DataLoader(Counting(), **{"batch_size": 16, "generator": generator(), **options}) for _ in range(2)
        )
        if options.get("batch_size", 1) is None:
            first.dataset.__class__.__getitem__ = lambda self, i: (raw[0][i], raw[1][i])
        whole, rest = [*fm.batches(first, fm.Plan(), 0)], [*fm.batches(second, fm.Plan(), 0, 2)]
        for (_, a), (_, b) in zip(whole[2:], rest, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_torch_dataset_is_cut_as_arrays_are(torch_data, tensors, raw):
    class Items(torch_data.Dataset):
        def __len__(self):
            return len(raw[0])

        def __getitem__(self, i):
            return raw[0][i], int(raw[1][i])

    expected = fit(raw, batch_size=16)
    for make in (Items, lambda: tensors):
        assert equal(fit(make(), batch_size=16), expected)
        assert resumed(make)
        fm.testing.check_source(make(), batch_size=16)
    assert [len(y) for _, y in fm.batches(Items(), batch_size=16, drop_last=True)] == [16, 16, 16]

    class Unsized(torch_data.Dataset):
        def __getitem__(self, i):
            return raw[0][i]

    with pytest.raises(TypeError, match=r"Unsized has none.*__len__"):
        fit(Unsized())


def test_a_torch_stream(torch_data, raw):
    class Stream(torch_data.IterableDataset):
        def __iter__(self):
            return iter(zip(*raw, strict=True))

    expected = fit(lambda: fm.batches(raw, batch_size=16, seed=None))
    assert equal(fit(Stream(), batch_size=16), expected)
    assert equal(fit(torch_data.DataLoader(Stream(), 16)), expected)
    assert fm.steps_per_epoch(Stream(), fm.Plan()) is None
    assert [len(y) for _, y in fm.batches(Stream(), batch_size=16, drop_last=True)] == [16, 16, 16]


def test_torch_batches_of_other_kinds(torch_data, raw):
    import torch

    class Dicts(torch_data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return dict(x=raw[0][i], y=raw[1][i])

    assert {k: type(v) for k, v in next(fm.batches(torch_data.DataLoader(Dicts(), 2))).items()} == dict(
        x=np.ndarray, y=np.ndarray
    )
    alone = torch_data.TensorDataset(torch.ones(4, 2, dtype=torch.bfloat16))
    assert next(fm.batches(torch_data.DataLoader(alone, 2))).dtype.name == "bfloat16"

    class Words(torch_data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return raw[0][i], "word"

    with pytest.raises(TypeError, match=r"batch 0 of epoch 0: .*must be an array, got str"):
        fit(torch_data.DataLoader(Words(), 2))


def test_an_error_in_a_torch_dataset(torch_data, raw):
    class Broken(torch_data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, i):
            if i == 40:
                raise OSError("no such image")
            return raw[0][i], raw[1][i]

    with pytest.raises(RuntimeError, match="the DataLoader, batch 2 of epoch 0 raised OSError: no such image") as caught:
        fit(torch_data.DataLoader(Broken(), 16))
    assert isinstance(caught.value.__cause__, OSError)


def test_hugging_face_datasets(raw):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(dict(x=raw[0], y=raw[1]))
    assert equal(fit(made, batch_size=16), fit(dict(x=raw[0], y=raw[1]), batch_size=16))
    assert resumed(lambda: made)
    fm.testing.check_source(made, batch_size=16)
    stream = made.to_iterable_dataset()
    expected = fit(lambda: fm.batches(raw, batch_size=16, seed=None))
    assert equal(fit(stream, batch_size=16), expected)
    shuffled = stream.shuffle(seed=0, buffer_size=50)
    first, second = ([b["y"].tolist() for b in fm.batches(shuffled, fm.Plan(batch_size=16), e)] for e in range(2))
    assert first != second
    with pytest.raises(TypeError, match="must be one data set, got a dict of them: 'train'"):
        fit(datasets.DatasetDict(train=made))
    with pytest.raises(ValueError, match="a dict of data must have x"):
        fit(made.rename_column("x", "image"), batch_size=16)


def test_grain(raw):
    grain = pytest.importorskip("grain")
    made = grain.MapDataset.range(50).seed(0).shuffle().map(lambda i: (raw[0][i], raw[1][i])).batch(16)
    repeated = iter(made.repeat(2).to_iter_dataset())
    assert equal(fit(made), fm.fit(adam(), repeated, steps=8, **QUIET)[0])
    assert resumed(lambda: made)
    fm.testing.check_source(made)
    assert equal(fit(made.to_iter_dataset(), epochs=1), fit(made, epochs=1))
    assert fm.steps_per_epoch(made, fm.Plan()) == 4 and fm.steps_per_epoch(made.to_iter_dataset(), fm.Plan()) is None


def test_tensorflow(raw):
    tf = pytest.importorskip("tensorflow")
    made = tf.data.Dataset.from_tensor_slices(raw).batch(16)
    assert equal(fit(made), fit(lambda: fm.batches(raw, batch_size=16, seed=None)))
    assert resumed(lambda: made)
    assert fm.steps_per_epoch(made, fm.Plan()) == 4 and fm.steps_per_epoch(made.repeat(), fm.Plan()) is None


def test_none_of_them_is_imported_by_fulmen(tmp_path):
    code = "import sys, fulmen as fm, numpy as np; [*fm.batches(np.ones((4, 2), np.float32), batch_size=2)]; print(*sys.modules)"
    imported = run_code(code, tmp_path).split()
    assert "fulmen" in imported and not {"torch", "datasets", "grain", "tensorflow"} & {*imported}
    assert not [name for name in imported if name.startswith("fulmen.interop.") and name.endswith("_data")]
