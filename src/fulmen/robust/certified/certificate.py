"""`Certificate`, the result of `certify`."""

import textwrap

import numpy as np

from fulmen.core.immutable import Immutable
from fulmen.inspect.text import Picture


class Certificate(Picture, Immutable):
    """A lower bound of a classifier's robust accuracy, in the region that `certify` was given.

    Attributes:
        labels: `(n,)`, the classes.
        predicted: `(n,)`, the predicted classes of the clean inputs; −1 where a smoothed model abstains.
        correct: `(n,)`, whether the prediction is right.
        certified: `(n,)`, whether it is right, and provably so in the whole region.
        radius: `(n,)`, a radius within which the right prediction is certified, in the norm of the region's ball; 0 for a wrong
            one. None if the region has no ball, or several. Interval bounds are tried up to twice the region's radius.
        method: how it was certified.
        region: the region, as text.
        seconds: the duration.
    """

    labels: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    certified: np.ndarray
    radius: np.ndarray | None
    method: str
    region: str
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The share of examples whose clean input is classified correctly."""
        return float(self.correct.mean())

    @property
    def certified_accuracy(self) -> float:
        """The share of examples that are certified: at most the accuracy under any attack."""
        return float(self.certified.mean())

    @property
    def abstained(self) -> float:
        """The share of examples for which a smoothed model makes no prediction."""
        return float((self.predicted < 0).mean())

    def at(self, eps: float) -> float:
        """The certified accuracy at another radius.

        Args:
            eps: the radius, at least 0; for interval bounds at most twice the region's.

        Raises:
            ValueError: if there are no radii.
        """
        if self.radius is None:
            raise ValueError(
                f"the certificate has no radii, since its region has not one ball of one radius: {self.region}."
            )
        return float((self.correct & (self.radius >= eps)).mean())

    def _text(self) -> str:
        lines = [
            f"Certified accuracy {self.certified_accuracy:.3f} of {len(self)} examples, accuracy {self.accuracy:.3f}",
            f"region: {self.region}",
            f"method: {self.method}",
        ]
        if self.radius is not None:
            found = self.radius[self.correct]
            middle = f"median {np.median(found):.4g}, largest {found.max():.4g}" if found.size else "none"
            lines.insert(1, f"radius of the examples that are classified correctly: {middle}")
        if self.abstained:
            lines.insert(1, f"abstained: {self.abstained:.3f}")
        return "\n".join(textwrap.fill(line, 79, subsequent_indent="    ", break_on_hyphens=False) for line in lines)
