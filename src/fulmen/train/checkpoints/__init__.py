"""Checkpoints of a run, and what is done with them."""

from typing import Any

from fulmen.train.checkpoints.state_file import load, save

__all__ = ["load", "save"]


def find_resumable(directory: Any) -> Any:
    raise NotImplementedError
