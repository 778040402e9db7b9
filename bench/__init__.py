"""Benchmarks against peers and limits. Run ``make bench``, or ``python -m bench --help``."""
