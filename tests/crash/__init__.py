"""Crash equivalence: the real processes under a seeded schedule of kills and freezes, judged by the pure steps alone.

`python -m tests.crash --seeds 1-50 --broker apache`, or `make test-crash SEED=7` for one of them.
"""
