"""Loggers of a run: callbacks that write its metrics, pictures and settings."""

from fulmen.core.verbs import log

__all__ = ["log"]
