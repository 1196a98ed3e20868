"""Measurements against a named alternative, in one run; results are JSON beside their machine."""
