"""A warning of images of 0 to 255 for a model that does not scale them."""

from typing import Any

import numpy as np

from fulmen.core import components
from fulmen.dispatching.warning import warn

_EXAMPLES = 100  # that are looked at
_DARK = 100  # images of 0 to 255 have pixels above this, and few other data of whole numbers have


def warn_of_pixels(model: Any, x: Any) -> None:
    """Warn of inputs that look like images of 0 to 255, unless a part of the model normalizes."""
    # Integers of two axes are tokens.
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "uif" or x.ndim < 2 or (x.ndim == 2 and x.dtype.kind != "f"):
        return
    some = np.asarray(x[:_EXAMPLES])
    if not (some.size and _DARK < some.max() <= 255 and some.min() == 0 and (some == np.round(some)).all()):
        return
    if not any(getattr(part, "ignores_scale", False) for _, part in components(model)):
        warn(
            f"x looks like images of 0 to {some.max():g}, on which models train slowly or not at all. Write x.astype(np.float32) / 255, "
            f"or let the model do it, fm.models.Normalized(model, mean=127.5, std=127.5)."
        )
