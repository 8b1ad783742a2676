"""Verbs over plum: registration, resolution, errors, redefinition. Knows nothing of models."""
