"""The signals job on several stream processors, measured side by side: `python -m bench.rivals --help`.

Each rival is a module that runs as a process. It reads `audio-frames` from the broker named in BOOTSTRAP, and writes
`signals`, byte for byte those of the program's own agent, and a snapshot of a call's state with each of its signals.
"""
