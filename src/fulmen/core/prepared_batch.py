"""`prepared`: what the verbs of batches do with the batch before a method is chosen. Its methods are in batch_checks.py."""

from fulmen.dispatching.registry import verb

__all__: list[str] = []  # the verb is private


@verb(delegates=False)
def prepared(batch, component):
    """What a method gets as its batch: raw data as the component's batch, checked; a batch checked; a `Prediction` as it is."""
