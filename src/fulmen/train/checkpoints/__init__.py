"""Checkpoints of a run, and what is done with them."""

from typing import Any


def find_resumable(directory: Any) -> Any:
    raise NotImplementedError
