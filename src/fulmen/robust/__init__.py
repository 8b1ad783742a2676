"""Adversarial robustness: `attacks`, `defences`, `certified` bounds, and the `report` of an evaluation."""

__all__ = ["attacks", "certified", "defences", "report"]  # pyright: ignore[reportUnsupportedDunderAll] - they are folders
