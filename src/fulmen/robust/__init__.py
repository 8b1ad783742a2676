"""Adversarial robustness: `attacks`, `defences`, and the `report` of an evaluation."""

__all__ = ["attacks", "defences", "report"]  # pyright: ignore[reportUnsupportedDunderAll] - they are folders
