"""The one form of the gateway's error answers, and the middleware that gives it to every error.

Body: ``{"error": {"code", "message", "hint"}}``. No content of the request is in it.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_ROUTES: Final = "POST /api/v1/call/incoming, GET /ws, GET /health/live, GET /health/ready"

_KEPT_PLACES: Final = 5
"""Innermost lines of code of an unexpected error that are logged."""


def error_response(status: int, code: str, message: str, hint: str) -> web.Response:
    """An error in JSON: `code` for programs, `message` says what is wrong, `hint` what to do about it."""
    return web.json_response({"error": {"code": code, "message": message, "hint": hint}}, status=status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn aiohttp's own errors, and what a handler did not expect, into the one form.

    This is the boundary that catches everything: an unexpected error is answered 500, which the carrier retries.
    """
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return error_response(404, "not_found", "there is nothing at this path", f"there is {_ROUTES}")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_response(405, "method_not_allowed", "not with this method", f"use {allowed}")
        response.headers["Allow"] = allowed
        return response
    except web.HTTPException as error:
        phrase = HTTPStatus(error.status).phrase
        code = phrase.lower().replace(" ", "_")
        return error_response(error.status, code, phrase, f"there is {_ROUTES}")
    except Exception as error:  # noqa: BLE001 - the boundary
        # Neither its message nor local variables: they may hold what the caller said.
        places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        log.error("request failed", error=type(error).__name__, places=places[-_KEPT_PLACES:])
        return error_response(500, "internal_error", "the request failed", "send it again; the log has the cause")
