"""The envelope of every answer, and the one table from error codes to HTTP status."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from hatchery_common.bus.errors import RemoteError
from hatchery_common.errors import DependencyUnavailable, HatcheryError, InvalidInput, NotFound
from hatchery_common.log import redact_text
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

T = TypeVar("T")

STATUS: dict[str, int] = {
    "invalid_input": 422,
    "malformed": 400,
    "idempotency_mismatch": 422,
    "body_too_large": 413,
    "unauthenticated": 401,
    "refused": 403,
    "access_required": 403,
    "foreign_origin": 403,
    "not_found": 404,
    "no_user": 404,
    "no_instance": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "instance_deleting": 409,
    "thread_elsewhere": 409,
    "message_expired": 409,
    "sequence_conflict": 409,
    "instance_not_running": 409,
    "thread_busy": 409,
    "instance_unknown": 404,
    "gateway_rejected": 422,
    "gateway_timeout": 504,
    "gateway_unavailable": 503,
    "dependency_unavailable": 503,
    "bus_unavailable": 503,
    "runtime_unavailable": 503,
    "internal": 500,
}
_REMOTE_STATUS = 502  # another service's code that this table does not know
_RETRY_AFTER_S = 2
UNEXPECTED = "something went wrong here; it has been logged"


class ErrorDetail(BaseModel):
    """The error for programs; `code` is stable."""

    code: str
    step: str | None = None
    hint: str | None = None
    operation_id: str | None = None
    retry_after_s: int | None = None


class Failure(BaseModel):
    """The answer to a request that failed: `error` is one prefixed line for people."""

    ok: Literal[False] = False
    error: str = Field(examples=["openclaw createInstance get_instance: instance default is being deleted"])
    error_detail: ErrorDetail


class Envelope(BaseModel, Generic[T]):
    """The answer to a request that succeeded."""

    ok: Literal[True] = True
    data: T


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        400: "The request is malformed",
        401: "No valid proof of who is asking",
        403: "Not allowed, or no access",
        404: "There is no such thing for this caller",
        409: "The state of the thing forbids it now",
        413: "The body is too large",
        422: "The request's values are wrong",
        502: "Another service refused",
        503: "Something this service leans on does not answer",
        504: "The gateway did not answer in time",
    }.items()
}


class MethodNotAllowed(HatcheryError):
    """The path exists, this method on it does not."""

    code = "method_not_allowed"


class Malformed(InvalidInput):
    """The request is no HTTP request that we can read."""

    code = "malformed"


def failure(request: Request, error: HatcheryError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that says what failed: `<family> <operation> <step>: <detail>`."""
    remote = error.remote_code if isinstance(error, RemoteError) else None
    code = remote or error.code
    status = STATUS.get(code, _REMOTE_STATUS if remote else 500)
    retry_after = _RETRY_AFTER_S if status == 503 else None
    step = cast("str | None", error.context.get("step"))
    detail = ErrorDetail(
        code=code,
        step=step,
        hint=redact_text(error.hint) if error.hint else None,
        operation_id=error.context.get("operation_id"),
        retry_after_s=retry_after,
    )
    prefix = f"{route_name(request)} {step}" if step else route_name(request)
    line = " ".join(redact_text(f"{prefix}: {error.message}").split())
    body = Failure(error=line, error_detail=detail)
    if retry_after is not None:
        headers = {**(headers or {}), "Retry-After": str(retry_after)}
    if status == 401:
        headers = {**(headers or {}), "WWW-Authenticate": "Bearer"}
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), status, headers)


def route_name(request: Request) -> str:
    """The prefix of this route's error strings, which is also its name for idempotency."""
    return getattr(request.scope.get("route"), "name", None) or "http"


def install(app: FastAPI) -> None:
    """Every error leaves as an envelope, also those of the framework."""
    app.add_exception_handler(HatcheryError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _typed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HatcheryError)
    if isinstance(error, DependencyUnavailable):
        request.app.state.door.log.warning(
            "api.dependency_unavailable", route=route_name(request), reason=error.message
        )
    return failure(request, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Names what is wrong, without echoing what was sent."""
    assert isinstance(error, RequestValidationError)
    issues = [f"{'.'.join(str(part) for part in issue['loc'])}: {issue['msg']}" for issue in error.errors()]
    text = "; ".join(issues[:5]).encode("utf-8", "replace").decode()
    return failure(request, InvalidInput(text or "the request is not valid", hint="see /openapi.json"))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 404:
        return failure(request, NotFound("there is no such path", hint="see GET /"), headers)
    if error.status_code == 405:
        return failure(request, MethodNotAllowed("this path does not take this method"), headers)
    if error.status_code < 500:
        return failure(request, Malformed(str(error.detail)), headers)
    return failure(request, HatcheryError(UNEXPECTED), headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    request.app.state.door.log.error("api.request.failed", route=route_name(request), exc_info=error)
    return failure(request, HatcheryError(UNEXPECTED))
