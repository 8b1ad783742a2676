"""Callbacks of a run, and the verbs for user-defined ones."""

from fulmen.core.verbs import due, on, owns, restore_run_state, run_state
from fulmen.train.events import Due, Event, LogsRead, Run, Saver

__all__ = ["Due", "Event", "LogsRead", "Run", "Saver", "due", "on", "owns", "restore_run_state", "run_state"]
