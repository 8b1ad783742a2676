"""Checkpoints of a run, and what is done with them."""
