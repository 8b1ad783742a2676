"""What loggers write, as types: `log` dispatches on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fulmen.core.immutable import Immutable


class Record(Immutable, eq=False):
    """Something to write.

    Attributes:
        step: the number of steps that the state has had.
        name: what it is.
        value: see the subclasses.
    """

    step: int
    name: str
    value: Any


class Scalars(Record):
    """Metrics by name, numbers or arrays, such as the logs of a run.

    `name` tells when they were logged: `"epoch"`, `"steps"`, `"minutes"` or `"validation"`. The entry `epoch` is the epoch's number,
    from 1.
    """


class Image(Record):
    """An image `(height, width)`, `(height, width, channels)`, or several in a row, `(n, height, width, channels)`.

    Floating-point values are from 0 to 1, integers from 0 to 255.
    """


class Histogram(Record):
    """An array whose values' distribution is shown."""


class Text(Record):
    """A string."""


class Hyperparameters(Record):
    """Values by name that do not change during the run: numbers, strings, booleans or None."""


def flat_numbers(values: dict[str, Any]) -> dict[str, float]:
    """Metrics as single numbers: an array's entries are named `name/0`, `name/1` and so on.

    >>> from fulmen.train.loggers.records import flat_numbers
    >>> flat_numbers({"loss": 0.5, "recall": jnp.array([1.0, 0.25])})
    {'loss': 0.5, 'recall/0': 1.0, 'recall/1': 0.25}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if getattr(value, "ndim", 0):
            found |= {f"{name}/{i}": float(v) for i, v in enumerate(value.ravel())}
        else:
            found[name] = float(value)
    return found


def image_bytes(value: Any) -> Any:
    """An image as unsigned bytes `(height, width, channels)` with 1, 3 or 4 channels; several are put side by side.

    >>> from fulmen.train.loggers.records import image_bytes
    >>> image_bytes(jnp.ones((2, 4, 4, 1))).shape
    (4, 8, 1)
    """
    image = np.asarray(value)
    if image.ndim == 4:
        image = np.concatenate(list(image), axis=1)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"Image.value must have the shape (height, width[, channels]), got {np.shape(value)}.")
    if np.issubdtype(image.dtype, np.floating):
        image = np.clip(image, 0, 1) * 255 + 0.5
    return image.astype(np.uint8)
