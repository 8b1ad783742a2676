"""`train data.npz --model NAME`: loads the arrays, and makes a system of the right sizes."""

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fulmen as fm
from fulmen.commands.one_line_errors import CommandError, nearest
from fulmen.data.arrays import check_arrays

Say = Callable[[str], None]

_FEW = 10  # up to so many distinct whole numbers look like classes


def load_arrays(path: Path, say: Say) -> tuple[np.ndarray, np.ndarray]:
    """The arrays x and y of an `.npz` file, as a model takes them; `say` is called with a line about each conversion.

    Returns:
        x as float32 `(n, …)`; y as int32 `(n,)`, from 0, for classes, or as float32 `(n, outputs)` for regression.
    """
    x, y = (_number_array(path, name, array) for name, array in zip("xy", _read(path), strict=True))
    try:
        check_arrays((x, y))
    except (TypeError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from None
    return _inputs(x, say), (_classes if y.dtype.kind in "iu" else _targets)(path, y, say)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    save = f"np.savez({path.name!r}, x=…, y=…)"
    if not path.is_file():
        here = [str(path.with_name(other.name)) for other in path.parent.glob("*.npz")]
        raise CommandError(f"there is no file {path}; {nearest(str(path), here)}")
    if not zipfile.is_zipfile(path):
        raise CommandError(f"{path} must be a .npz file, and is not, or is damaged; write it with {save}.")
    with np.load(path, allow_pickle=False) as file:
        absent = [name for name in "xy" if name not in file.files]
        if absent:
            names = ", ".join(file.files) or "nothing"
            raise CommandError(f"{path} has no {' and no '.join(absent)}; it has: {names}. Write it with {save}.")
        try:
            return file["x"], file["y"]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CommandError(
                f"{path} is damaged or holds Python objects, which are not unpickled: {error}. Save arrays of numbers: {save}."
            ) from None


def _number_array(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Numbers of 32 bits: jax would round wider ones silently."""
    if array.dtype.kind == "c":
        raise CommandError(f"{path}: {name} must be real, got complex numbers ({array.dtype}).")
    if array.dtype.kind == "b":
        return array.astype(np.int32)
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if np.isinf(single).any() and np.isfinite(array).all():
        raise CommandError(f"{path}: {name} goes up to {np.abs(array).max():.3g}, which float32 cannot represent; scale it.")
    return single


def _inputs(x: np.ndarray, say: Say) -> np.ndarray:
    largest = np.abs(x).max()
    if x.dtype.kind == "f":
        if largest > 10:
            say(
                f"x: {x.dtype}, unchanged; its largest value is {largest:.3g}, and (x - x.mean(0)) / x.std(0) may train better"
            )
        return x
    scale = 255 if x.dtype == np.uint8 else max(int(largest), 1)
    reason = "" if x.dtype == np.uint8 else ", its largest value"
    say(f"x: {x.dtype}, divided by {scale}{reason}")
    return (x / scale).astype(np.float32)


def _classes(path: Path, y: np.ndarray, say: Say) -> np.ndarray:
    if y.shape[1:] not in ((), (1,)):
        raise CommandError(
            f"{path}: y of integers must have shape ({len(y)},), got {y.shape}. For one-hot rows, save y.argmax(1); for regression, "
            "save floats."
        )
    classes, labels = np.unique(y.ravel(), return_inverse=True)
    if len(classes) < 2:
        raise CommandError(f"{path}: y must have at least two classes, got {classes[0]} everywhere.")
    if len(classes) > len(y) // 2:
        raise CommandError(
            f"{path}: y has {len(classes)} different integers in {len(y)} examples, too many for classes; for regression, save "
            "floats: y.astype(np.float32)."
        )
    shown = [str(c) for c in classes] if len(classes) <= 12 else [*map(str, classes[:3]), "…", str(classes[-1])]
    say(f"y: {y.dtype}, {len(classes)} classes: {', '.join(shown)}")
    return labels.astype(np.int32)


def _targets(path: Path, y: np.ndarray, say: Say) -> np.ndarray:
    outputs = math.prod(y.shape[1:])
    say(f"y: {y.dtype}, regression on {outputs} number{'s' * (outputs != 1)}, mean {y.mean():.3g}, deviation {y.std():.3g}")
    y = y.reshape(len(y), outputs)
    if outputs > 1 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        say("y: each row has a single 1; if it marks the class, save y.argmax(1)")
    elif outputs == 1 and (y == np.round(y)).all() and 1 < len(np.unique(y)) <= _FEW:
        say("y: few distinct whole numbers; if they are classes, save them as integers, y.astype(int)")
    return y


def system_for(name: str, x: np.ndarray, y: np.ndarray) -> fm.Component:
    """One of the library's models, sized for the data, as a classifier or a regressor."""
    if name not in _MODELS:
        raise CommandError(f"there is no model {name!r}; {nearest(name, _MODELS)}")
    is_class = y.dtype.kind == "i"
    model = _MODELS[name](name, x.shape[1:], int(y.max()) + 1 if is_class else y.shape[1])
    return (
        fm.Classifier(model)
        if is_class
        else fm.Regressor(model, metrics=(fm.metric_types.MeanAbsoluteError(), fm.metric_types.R2()))
    )


def _linear(name: str, shape: tuple[int, ...], outputs: int) -> fm.Model:
    return fm.models.Chain(fm.models.Flatten(), fm.models.Dense(math.prod(shape), outputs))


def _mlp(name: str, shape: tuple[int, ...], outputs: int) -> fm.Model:
    return fm.models.Chain(fm.models.Flatten(), fm.models.MLP(math.prod(shape), 128, 128, outputs))


def _convnet(name: str, shape: tuple[int, ...], outputs: int) -> fm.Model:
    height, width, channels = _image(name, shape)
    # Two convolutions and a halving, until the input of the dense layers is small.
    halvings = max(1, math.ceil(math.log2(max(height, width) / 16)))
    widths = [min(32 * 2**i, 256) for i in range(halvings) for _ in range(2)]
    return _with_channels(shape, fm.models.ConvNet(channels, outputs, widths, (height, width)))


def _resnet(name: str, shape: tuple[int, ...], outputs: int) -> fm.Model:
    height, width, channels = _image(name, shape)
    stem = "cifar" if max(height, width) <= 64 else "imagenet"
    return _with_channels(shape, getattr(fm.models, name)(outputs, in_channels=channels, stem=stem))


_MODELS = {
    "linear": _linear,
    "mlp": _mlp,
    "convnet": _convnet,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), _resnet),
}


def _image(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels."""
    got = f"got ({', '.join(['n', *map(str, shape)])})"
    if len(shape) not in (2, 3):
        raise CommandError(f"{name} takes images, (n, height, width, channels), {got}; --model mlp takes any shape.")
    height, width, channels = (*shape, 1) if len(shape) == 2 else shape
    if height in (1, 3) and channels not in (1, 3):
        raise CommandError(f"{name} takes images whose channels are last, {got}: np.moveaxis(x, 1, -1).")
    return height, width, channels


def _with_channels(shape: tuple[int, ...], model: fm.Model) -> fm.Model:
    """The model, also for images without an axis of channels."""
    return fm.models.Chain(_add_channel, model) if len(shape) == 2 else model


def _add_channel(x: Any) -> jax.Array:
    return x[..., None]
