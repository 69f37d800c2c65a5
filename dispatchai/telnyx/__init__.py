"""Everything that is Telnyx's: its JSON, its signatures, its commands. No other package knows the names in them.

* `webhooks`, `media_messages`, `api_errors`: the JSON that Telnyx sends, as typed values. `fields` reads single fields.
* `commands`, `client`: the call-control commands, and how they are sent. `metrics`: how they ended.
* `signatures`, `stream_tokens`: which webhook and which media socket are genuine.
"""
