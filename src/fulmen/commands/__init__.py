"""What `python -m fulmen` runs."""
