"""The version of the package, which files that are written carry."""

__all__ = ["__version__"]

__version__ = "0.1.0"
