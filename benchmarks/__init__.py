"""Benchmarks against a named alternative in the same run. Results are JSON with the machine."""
