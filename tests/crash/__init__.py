"""Crash equivalence: the real processes under a seeded schedule of kills and freezes, compared with the pure steps.

`python -m tests.crash --seeds 1-50 --broker apache`, or `make test-crash SEED=7` for a single seed.
"""
