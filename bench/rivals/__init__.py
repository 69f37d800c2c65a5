"""The signals job on several stream processors, measured side by side: `python -m bench.rivals --help`.

Each rival is a module that is a process: it reads `audio-frames` of the broker named in BOOTSTRAP, writes `signals`,
byte for byte what the program's own agent writes, and a snapshot of a call's state with each of its signals.
"""
