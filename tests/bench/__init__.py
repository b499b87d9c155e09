"""Benchmarks against limits measured in the same run on the same machine: `python -m tests.bench`."""
