"""A call's state and its control: what is known of a call, which commands it needs, and when. Pure.

* `events`: the events as `call-events` has them, and the form of this program's own.
* `state`: folds a call's events to its state. Triage uses it as well.
* `control`: which commands an event, or a dispatcher's action, calls for.
* `timers`: when something is due in a call although no event arrives.
* `config`: the settings of call control.
"""
