"""Data in files: memory-mapped arrays, MNIST's and CIFAR-10's formats; damaged ones say what was expected and found."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from test_training import adam, equal
from tiny import data

import fulmen as fm

QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def raw():
    return data()


@pytest.fixture
def folder(tmp_path, raw):
    np.save(tmp_path / "x.npy", raw[0])
    np.save(tmp_path / "y.npy", raw[1].astype(np.int64))
    np.save(tmp_path / "columns.npy", np.asfortranarray(raw[0]))
    np.savez(tmp_path / "both.npz", x=raw[0], y=raw[1])
    np.savez_compressed(tmp_path / "small.npz", x=raw[0], y=raw[1])
    return tmp_path


def pair(folder, x="x.npy"):
    return fm.data.open(folder / x), fm.data.open(folder / "y.npy")


@pytest.mark.parametrize(
    "make",
    [
        pair,
        lambda folder: pair(folder, "columns.npy"),
        lambda folder: fm.data.open(folder / "both.npz"),
        lambda folder: fm.Labeled(*pair(folder)),
        lambda folder: (np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy")),
    ],
)
def test_mapped_arrays_are_arrays(folder, raw, make):
    state = adam()
    expected, _ = fm.fit(state, raw, epochs=2, batch_size=16, **QUIET)
    mapped = make(folder)
    assert equal(fm.fit(state, mapped, epochs=2, batch_size=16, **QUIET)[0], expected)
    part, _ = fm.fit(state, mapped, steps=3, batch_size=16, **QUIET)
    assert equal(fm.fit(part, mapped, steps=5, batch_size=16, **QUIET)[0], expected)
    assert fm.evaluate(state, mapped)["loss"] == pytest.approx(fm.evaluate(state, raw)["loss"], rel=1e-6)
    assert adam().plan == fm.setup(state.system, mapped, optimizer=state.optimizer, batch_size=16).plan
    fm.testing.check_source(mapped, batch_size=16)


def test_only_the_rows_of_a_batch_are_read(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (1 << 18, 64))  # 64 MiB, and sparse
    x[:40] = 1.0
    mapped = fm.data.open(tmp_path / "large.npy")
    assert type(mapped) is np.memmap
    tracemalloc.start()
    batches = fm.batches(mapped, batch_size=32, seed=None)
    assert next(batches).sum() == 32 * 64 and next(batches).sum() == 8 * 64
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_values_of_mapped_arrays_are_checked_batch_by_batch(tmp_path, raw):
    x = raw[0].copy()
    x[20, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = fm.data.open(tmp_path / "x.npy"), raw[1]
    with pytest.raises(ValueError, match=r"batch 1 of epoch 0: x must be finite, got nan at \[4, 1\]"):
        fm.evaluate(adam(), mapped, batch_size=16)
    np.save(tmp_path / "wrong.npy", x[:-1])
    with pytest.raises(ValueError, match="x 49, y 50"):
        fm.fit(adam(), (fm.data.open(tmp_path / "wrong.npy"), raw[1]), epochs=1, **QUIET)
    np.save(tmp_path / "wide.npy", raw[0].astype(np.float64))
    with pytest.warns(UserWarning, match="x was converted from float64"):
        fm.evaluate(adam(), (fm.data.open(tmp_path / "wide.npy"), raw[1]), batch_size=16)


@pytest.mark.parametrize(
    ("name", "make", "error", "words"),
    [
        ("none.npy", None, FileNotFoundError, "does not exist"),
        ("cut.npy", lambda file, whole: file.write(whole[:-10]), ValueError, r"cut.npy is truncated.*800 bytes.*790"),
        ("head.npy", lambda file, whole: file.write(whole[:20]), ValueError, "head.npy is not an array"),
        ("text.npy", lambda file, whole: file.write(b"1, 2, 3"), ValueError, "text.npy is not an array"),
        ("text.npz", lambda file, whole: file.write(b"1, 2, 3"), ValueError, "text.npz is not an .npz"),
        (
            "object.npy",
            lambda file, whole: np.save(file, np.array([{}])),
            ValueError,
            "Python objects, which are not unpickled",
        ),
        ("object.npz", lambda file, whole: np.savez(file, x=np.array([{}])), ValueError, "'x' in .*Python objects"),
        ("small.npz", None, ValueError, "compressed.*'x'.*np.savez"),
    ],
)
def test_files_that_cannot_be_mapped(folder, name, make, error, words):
    if make is not None:
        with open(folder / name, "wb") as file:
            make(file, (folder / "x.npy").read_bytes())
    with pytest.raises(error, match=words):
        fm.data.open(folder / name)


# MNIST and CIFAR-10

IMAGES = {"train": 7, "t10k": 3}


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def digits(name):
    rng = np.random.default_rng(len(name))
    n = IMAGES[name]
    return rng.integers(0, 256, (n, 6, 5), np.uint8), rng.integers(0, 10, n, np.uint8)


def write_mnist(folder, zipped=False):
    for name in IMAGES:
        for array, what in zip(digits(name), ("images-idx3", "labels-idx1"), strict=True):
            content, path = idx(array), folder / f"{name}-{what}-ubyte"
            path.with_name(path.name + ".gz" * zipped).write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    write_mnist(tmp_path, zipped)
    for (x, y), name in zip(fm.data.mnist(tmp_path), IMAGES, strict=True):
        images, labels = digits(name)
        assert (x.dtype, y.dtype, x.shape) == (np.float32, np.int32, (IMAGES[name], 6, 5, 1))
        np.testing.assert_array_equal(np.rint(x[..., 0] * 255), images)
        np.testing.assert_array_equal(y, labels)
        assert x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("kind", [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_of_every_type(tmp_path, kind):
    array = np.arange(12).reshape(3, 4).astype(kind[1])
    (tmp_path / "file").write_bytes(idx(array, kind[0]))
    read = fm.data.read_idx(tmp_path / "file")
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative and read.dtype == array.dtype.newbyteorder("=")


TRAIN = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-5], ["truncated", "226 bytes", "[7, 6, 5]", "found 221"]),
        (lambda content: content + b"12", ["damaged", "226 bytes", "found 228"]),
        (lambda content: content[:10], ["truncated", "16 bytes of header", "found 10"]),
        (lambda content: b"", ["is not an IDX file", "got"]),
        (lambda content: b"\x89PNG" + content, ["is not an IDX file", "89 50 4e 47"]),
        (lambda content: idx(digits("train")[1]), ["3 axes of uint8 (magic 0x00000803)", "got 1 of uint8"]),
        (lambda content: idx(digits("train")[0][:4]), ["labels", "each of the 4 images", "got 7"]),
        (lambda content: b"\0\0\x08\x03" + b"\xff" * 12 + content[16:], ["truncated", "bytes for [4294967295"]),
    ],
)
def test_damaged_idx_files(tmp_path, change, words):
    write_mnist(tmp_path)
    path = tmp_path / TRAIN
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        fm.data.mnist(tmp_path)
    assert str(tmp_path) in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_damaged_archives_labels_and_missing_files(tmp_path):
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / f"{TRAIN}.gz"
    content = path.read_bytes()
    for damaged in (content[:-9], content[:40], b"no gzip at all", content[:30] + b"????" + content[34:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{TRAIN}.gz is not a complete gzip file"):
            fm.data.mnist(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no file {TRAIN}, nor .*it has: t10k"):
        fm.data.mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give the folder"):
        fm.data.mnist(tmp_path / "nowhere")
    write_mnist(tmp_path)
    labels = digits("t10k")[1]
    labels[1] = 77
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ValueError, match=r"t10k-labels.*from 0 to 9, got 77 at example 1"):
        fm.data.mnist(tmp_path)


NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_cifar(folder):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    written = []
    for name in NAMES:
        labels, images = rng.integers(0, 10, (2, 1), np.uint8), rng.integers(0, 256, (2, 3, 32, 32), np.uint8)
        (folder / name).write_bytes(np.concatenate([labels, images.reshape(2, -1)], 1).tobytes())
        written.append((images, labels[:, 0]))
    return written


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inside):
    written = write_cifar(tmp_path / inside)
    (x, y), (x_test, y_test) = fm.data.cifar10(tmp_path)
    assert x.shape == (10, 32, 32, 3) and x_test.shape == (2, 32, 32, 3) and (x.dtype, y.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(np.rint(np.moveaxis(x, -1, 1) * 255), np.concatenate([i for i, _ in written[:5]]))
    np.testing.assert_array_equal(y, np.concatenate([labels for _, labels in written[:5]]))
    np.testing.assert_array_equal(y_test, written[5][1])


def test_damaged_cifar_files(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / NAMES[2]
    content = path.read_bytes()
    for damaged in (content[:-1], content[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"data_batch_3.bin is truncated.*multiple of 3073 bytes, found {len(damaged)}"
        ):
            fm.data.cifar10(tmp_path)
    path.write_bytes(content[: len(content) // 2])  # cut between two images
    with pytest.raises(
        ValueError, match=r"truncated or damaged: data_batch_1.* must have the same number of images, got 2, 2, 1, 2, 2"
    ):
        fm.data.cifar10(tmp_path)
    path.write_bytes(b"\xc8" + content[1:])
    with pytest.raises(ValueError, match=r"data_batch_3.bin is damaged.*from 0 to 9, got 200 at example 0"):
        fm.data.cifar10(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file data_batch_3\.bin"):
        fm.data.cifar10(tmp_path)
    (tmp_path / "test_batch.bin").rename(tmp_path / "test_batch")
    with pytest.raises(FileNotFoundError, match="Python version of CIFAR-10, whose pickles are not read"):
        fm.data.cifar10(tmp_path)
