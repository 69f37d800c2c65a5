"""The views of the calls: live and ranked, as a page, REST and server-sent events.

Reads the two compacted topics. Decides nothing about a call: level, order and summary come with the records.
"""

from dispatchai.console.queue_view import Change, Entry, QueueView
from dispatchai.console.topic_feed import Feed, FeedState
from dispatchai.console.web import mount, routes

__all__ = ["Change", "Entry", "Feed", "FeedState", "QueueView", "mount", "routes"]
