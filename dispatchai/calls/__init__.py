"""A call's life: what is known of it, what it calls for, and when. Pure.

* `events`: the facts, as they are in `call-events`, and how this program writes its own.
* `fold`: what the events say of a call. Triage folds by it as well.
* `timers`: when something of a call is due, though nobody says anything.
* `step`: which commands an event, or a dispatcher's action, calls for.
* `config`: what can be set.
"""
