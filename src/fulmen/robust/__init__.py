"""Adversarial robustness: attacks, defences, reports."""
