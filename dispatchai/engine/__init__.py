"""What makes Faust fit for a keyed stream of many small records. Knows nothing of calls.

`app.create_app` makes an application on the transport of `transport`; `agent.run` is the loop of an agent over a
pure step; `state.States` keeps its per-key states and their snapshots; `coverage` says how far offsets may be
committed; `topics` is the one list of topics; `broker` is the embedded broker.
"""
