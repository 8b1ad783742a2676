"""The phases of a run, as types: `run_epoch` dispatches on them."""

from __future__ import annotations

import dataclasses


class Phase:
    """A kind of epoch."""


@dataclasses.dataclass(frozen=True)
class Training(Phase):
    """Epochs in which each batch is a training step."""
