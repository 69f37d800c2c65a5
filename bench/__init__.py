"""Measurements of the whole system. Each module is one command: `python -m bench.calls --help`."""
