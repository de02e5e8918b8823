"""The model gateway's application: `/llm/v1/*` for machines, in OpenAI's shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from hatchery_common.contracts.routes import Route
from hatchery_common.errors import DependencyUnavailable, HatcheryError, InvalidInput, Refused
from hatchery_common.log import get_logger, redact_text
from hatchery_common.secrets import verify_model_token
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from hatchery_runtime_proxy.domain.table import RouteTable
from hatchery_runtime_proxy.handlers.models import ModelCalls
from hatchery_runtime_proxy.ports import ProviderTimeout, ProviderUnavailable
from hatchery_runtime_proxy.routes.envelope import Unauthorised, left, read_object, status_of

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")  # it goes into events, which must hold no text of a user


@dataclass(frozen=True)
class ModelTools:
    """What the model gateway's routes work with."""

    table: RouteTable
    calls: ModelCalls
    public_key: bytes
    max_body: int


def _tools(request: Request) -> ModelTools:
    return request.app.state.tools


def _route(request: Request) -> Route:
    """The route of the machine that the bearer token names; raises Unauthorised unless it is open."""
    tools = _tools(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorised("a model token is needed")
    try:
        machine_id = verify_model_token(tools.public_key, token.strip())
    except Refused as error:
        raise Unauthorised(error.message) from None
    route = tools.table.of_machine(machine_id)
    if route is None and tools.table.refreshed_at is None:
        # OpenClaw disables a key for a minute after a 401: one that we cannot judge yet gets an answer to be retried.
        raise DependencyUnavailable("the routes have not been read yet")
    if route is None:
        raise Unauthorised("this machine is not running")
    return route


Tools = Annotated[ModelTools, Depends(_tools)]
MachineRoute = Annotated[Route, Depends(_route)]


def model_gateway(tools: ModelTools) -> FastAPI:
    """The application."""
    app = FastAPI(title="Hatchery model gateway", openapi_url=None)
    app.state.tools = tools
    app.get("/llm/v1/models")(list_models)
    app.post("/llm/v1/chat/completions")(complete_chat)
    app.add_exception_handler(HatcheryError, _typed)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, _unexpected)
    return app


async def list_models(route: MachineRoute, tools: Tools) -> Response:
    """Models that a machine may ask for."""
    rows = [{"id": name, "object": "model", "owned_by": owner} for name, owner in tools.calls.models()]
    return JSONResponse({"object": "list", "data": rows})


async def complete_chat(request: Request, route: MachineRoute, tools: Tools) -> Response:
    """One metered chat completion."""
    body = await read_object(request, tools.max_body)
    if not isinstance(body.get("messages"), list) or not isinstance(body.get("model"), str):
        raise InvalidInput("model and messages are needed")
    if not _MODEL.fullmatch(body["model"]):
        raise InvalidInput("model is not the name of a model")
    if not isinstance(body.get("stream") or False, bool):
        raise InvalidInput("stream must be true or false")  # else the answer could not be scanned for its usage
    passage = await tools.calls.open(route, body)
    own = {"content-type": passage.content_type, "cache-control": "no-store", "x-call-id": passage.call_id}
    return StreamingResponse(passage.chunks, passage.status, {**passage.headers, **own})


def _failure(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    # OpenAI's clients retry 5xx by themselves; a provider that is down is theirs to wait for.
    error = {"message": redact_text(message), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)


async def _typed(_request: Request, error: Any) -> Response:
    if not isinstance(error, ProviderUnavailable):
        return _failure(error.code, error.message, status_of(error))
    # OpenClaw reads texts too: what names a 401, or speaks of being unauthorized, would cost it its own key for a while.
    status = 504 if isinstance(error, ProviderTimeout) else 502
    return _failure(error.code, error.message, status, error.context.get("headers"))


async def _plain(_request: Request, error: Any) -> Response:
    return _failure(
        "not_found" if error.status_code == 404 else "invalid_request", str(error.detail), error.status_code
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    get_logger("runtime-proxy").error("llm.failed", path=request.url.path, exc_info=error)
    return _failure("internal", "an unexpected error; the log has the details", 500)
