"""Checkpoints of a run, and what is done with them."""

from fulmen.train.checkpoints.checkpoint_callback import Checkpoint, warn_unless_saved
from fulmen.train.checkpoints.checkpoint_list import checkpoints, find_resumable, restore
from fulmen.train.checkpoints.orbax_store import OrbaxStore
from fulmen.train.checkpoints.retention import Best, Latest
from fulmen.train.checkpoints.state_file import load, save

__all__ = [
    "Best",
    "Checkpoint",
    "Latest",
    "OrbaxStore",
    "checkpoints",
    "find_resumable",
    "load",
    "restore",
    "save",
    "warn_unless_saved",
]
