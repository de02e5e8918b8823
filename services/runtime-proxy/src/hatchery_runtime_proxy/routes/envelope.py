"""The envelope of every answer, and the one table from errors to statuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from hatchery_common.errors import (
    BodyTooLarge,
    Conflict,
    DependencyUnavailable,
    HatcheryError,
    InvalidInput,
    NotFound,
    Refused,
)
from hatchery_common.log import get_logger, redact_text
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hatchery_runtime_proxy.domain.table import InstanceNotRunning
from hatchery_runtime_proxy.ports import GatewayRefusedIdentity, GatewayTimeout, GatewayUnavailable, GatewayUnreachable

M = TypeVar("M", bound=BaseModel)
ErrorHandler = Callable[[Request, Any], Coroutine[Any, Any, Response]]
_PREFIX = "openclaw runtime"


class Unauthorised(Refused):
    """The caller has not shown who it is."""

    code = "unauthorized"


# The first class that fits decides, so the narrow ones stand first.
STATUSES: tuple[tuple[type[HatcheryError], int], ...] = (
    (Unauthorised, 401),
    (BodyTooLarge, 413),
    (GatewayRefusedIdentity, 502),
    (GatewayTimeout, 504),
    (GatewayUnavailable, 503),
    (GatewayUnreachable, 502),
    (InstanceNotRunning, 503),
    (InvalidInput, 400),
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 403),
    (DependencyUnavailable, 503),
    (HatcheryError, 500),
)


def status_of(error: HatcheryError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


class _Json(JSONResponse):
    """JSON of what gateways said: half a character, which they may cut off, becomes a question mark."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def done(data: Any, status: int = 200) -> JSONResponse:
    """A good answer."""
    return _Json({"ok": True, "data": data}, status)


def failure(code: str, message: str, status: int, *, hint: str | None = None, **detail: Any) -> JSONResponse:
    """A bad answer: one line for people, a code for programs."""
    line = " ".join(redact_text(f"{_PREFIX}: {message}").split())
    found = {"code": code, "hint": hint, **detail}
    kept = {name: value for name, value in found.items() if value is not None}
    headers = {"retry-after": "2"} if status == 503 else None
    return _Json({"ok": False, "error": line, "error_detail": kept}, status, headers)


def refusal(error: HatcheryError) -> JSONResponse:
    """The answer to a typed error."""
    status = status_of(error)
    retry = 2 if status in (502, 503, 504) else None
    detail = {"state": error.context.get("state"), "gateway_code": error.context.get("gateway_code")}
    return failure(error.code, error.message, status, hint=error.hint, retry_after_s=retry, **detail)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises BodyTooLarge as soon as it is over the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes")
    return bytes(body)


async def read_model(request: Request, model: type[M], limit: int) -> M:
    """The body as this model; raises InvalidInput naming the first fault."""
    body = await read_body(request, limit) or b"{}"
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in fault["loc"]) or "body"
        raise InvalidInput(f"{place}: {fault['msg']}") from None


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object; raises InvalidInput."""
    body = await read_body(request, limit)
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidInput("the body must be a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON, and nobody takes them further on


async def left(_request: Request, _error: Exception) -> Response:
    """The answer to a client that hung up before its request was whole: no fault of ours, and nobody reads it."""
    return failure("client_left", "the client left", 499)


def add_error_handlers(app: FastAPI) -> None:
    """Every failure of this application leaves in the envelope."""

    async def typed(_request: Request, error: HatcheryError) -> Response:
        return refusal(error)

    async def plain(_request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        return failure(codes.get(error.status_code, "invalid_request"), str(error.detail).lower(), error.status_code)

    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        fault = error.errors()[0]
        place = ".".join(str(step) for step in fault.get("loc", ())[1:])
        return failure("invalid_input", f"{place}: {fault.get('msg')}", 400)

    async def unexpected(request: Request, error: Exception) -> Response:
        get_logger("runtime-proxy").error("http.failed", path=request.url.path, exc_info=error)
        return failure("internal", "an unexpected error; the log has the details", 500)

    handlers: dict[Any, ErrorHandler] = {HatcheryError: typed, HTTPException: plain, RequestValidationError: invalid}
    handlers[ClientDisconnect] = left
    handlers[Exception] = unexpected
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
