"""The one form of the gateway's error responses, and the middleware that gives it to every error.

Body: ``{"error": {"code", "message", "hint"}}``. It holds no content of the request.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.process.http_server import places_of
from dispatchai.process.log_limit import LogLimits

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_ROUTES: Final = "POST /api/v1/call/incoming, GET /ws, GET /health/live, GET /health/ready, GET /metrics"

_NOT_SERVED: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.UPGRADE_REQUIRED})


def error_response(status: int, code: str, message: str, hint: str) -> web.Response:
    """An error in JSON: `code` is for programs, `message` says what is wrong, `hint` what to do about it."""
    return web.json_response({"error": {"code": code, "message": message, "hint": hint}}, status=status)


def errors_as_json(metrics: GatewayMetrics) -> Middleware:
    """A middleware that turns aiohttp's own errors, and a handler's unexpected errors, into the one form.

    This boundary catches everything: an unexpected error is answered 500, which the carrier retries.
    """

    failed_log = LogLimits()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _answer(request, handler, failed_log)
        if response.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            metrics.internal_errors += 1
        elif response.status in _NOT_SERVED:
            metrics.requests_not_served += 1
        return response

    return middleware


async def _answer(request: web.Request, handler: Handler, failed_log: LogLimits) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return error_response(404, "not_found", "nothing is served at this path", f"served: {_ROUTES}")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_response(405, "method_not_allowed", "this path does not allow the method", f"use {allowed}")
        response.headers["Allow"] = allowed
        return response
    except web.HTTPException as error:
        phrase = HTTPStatus(error.status).phrase
        code = phrase.lower().replace(" ", "_")
        return error_response(error.status, code, phrase, f"served: {_ROUTES}")
    except Exception as error:  # noqa: BLE001 - the boundary
        name = type(error).__name__
        if count := failed_log.add(name):
            log.error("request_failed", error=name, places=places_of(error), requests=count)
        return error_response(500, "internal_error", "the request failed", "send it again; the log has the cause")
