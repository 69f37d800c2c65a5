"""Measurements of the whole system. Each module is a command: `python -m bench.calls --help`."""
