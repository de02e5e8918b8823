"""The HTTP surface: /health, /ready, /tools/invoke, /v1/models and /v1/responses."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from hatchery_common.testing.fake_gateway.gateway import Gateway
from hatchery_common.testing.fake_gateway.identity import AttributionRequired, attribute, authenticate, is_forwarded
from hatchery_common.testing.fake_gateway.runs import Run
from hatchery_common.testing.fake_gateway.transcripts import listing
from hatchery_common.testing.fake_gateway.wire import Request, Response, Socket, json_response, text_response

_ATTRIBUTION = (
    "Proxy client attribution is required. Configure gateway.trustedProxies narrowly and make the proxy overwrite or safely "
    "rebuild forwarded client headers."
)
_AGENTS = ("openclaw", "openclaw/default", "openclaw/main")


class Surface:
    """Answers HTTP requests and admits WebSocket upgrades for one gateway."""

    def __init__(self, gateway: Gateway, *, never_ready: bool = False) -> None:
        self._gateway, self._never_ready = gateway, never_ready

    async def upgrade(self, request: Request, socket: Socket) -> None:
        """A WebSocket on any path."""
        await self._gateway.converse(request, socket)

    def refuse_upgrade(self, request: Request) -> Response | None:
        """The answer to an upgrade that is refused before it begins, else None."""
        try:
            attribute(self._gateway.configuration, request.headers, request.peer)
        except AttributionRequired:
            return _attribution_required()
        return None

    async def handle(self, request: Request) -> Response:
        """One HTTP request."""
        refused = self.refuse_upgrade(request)
        if refused is not None:
            return refused
        path = request.path.split("?", 1)[0]
        if path in ("/health", "/healthz"):
            return json_response(200, {"ok": True, "status": "live"})
        if path in ("/ready", "/readyz"):
            return self._ready(request)
        routes = {"/tools/invoke": self._invoke, "/v1/responses": self._responses, "/v1/models": self._models}
        if path not in routes:
            return text_response(404, "Not Found")
        if request.method != ("GET" if path == "/v1/models" else "POST"):
            return text_response(405, "Method Not Allowed")
        caller, _reason = authenticate(self._gateway.configuration, request.headers, request.peer)
        if caller is None:
            return json_response(401, {"error": {"message": "Unauthorized", "type": "unauthorized"}})
        try:
            body = request.json()
        except ValueError as error:
            return json_response(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        return await routes[path](request, body)

    def _ready(self, request: Request) -> Response:
        ready = self._gateway.ready and not self._never_ready
        body: dict[str, Any] = {"ready": ready}
        caller, _reason = authenticate(self._gateway.configuration, request.headers, request.peer)
        if caller is not None or not is_forwarded(request.headers):
            body |= {"failing": [] if ready else ["startup-sidecars"], "uptimeMs": self._gateway.uptime_ms}
        return json_response(200 if ready else 503, body)

    async def _models(self, _request: Request, _body: Any) -> Response:
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "openclaw"} for name in _AGENTS]
        return json_response(200, {"object": "list", "data": rows})

    async def _invoke(self, _request: Request, body: Any) -> Response:
        if not isinstance(body, dict) or not isinstance(body.get("tool"), str):
            return _tool_error(400, "invalid_request", "tools.invoke requires name")
        arguments = body.get("args") or {}
        if body["tool"] == "sessions_list":
            return self._sessions_list()
        if body["tool"] == "sessions_history":
            return self._sessions_history(arguments)
        if body["tool"] == "sessions_send" and "sessions_send" in self._gateway.configuration.allowed_tools:
            return await self._sessions_send(arguments)
        return _tool_error(404, "not_found", f"Tool not available: {body['tool']}")

    def _sessions_list(self) -> Response:
        rows = [listing(self._gateway.transcripts, key) for key in self._gateway.transcripts.names()]
        return _tool_result({"count": len(rows), "sessions": rows, "hasMore": False, "limitApplied": 100})

    def _sessions_history(self, arguments: dict[str, Any]) -> Response:
        key = arguments.get("sessionKey")
        if not isinstance(key, str):
            return _tool_error(400, "tool_error", "sessionKey required")
        if self._gateway.transcripts.session(key) is None:
            return _tool_result({"status": "error", "error": f"No session found: {key}"})
        return _tool_result({"sessionKey": key, "messages": self._gateway.transcripts.messages(key)})

    async def _sessions_send(self, arguments: dict[str, Any]) -> Response:
        key, run_id = str(arguments.get("sessionKey")), str(uuid.uuid4())
        run = await self._gateway.runs.collect(key, str(arguments.get("message")), run_id)
        delivery = {"status": "pending", "mode": "announce"}
        return _tool_result(
            {"runId": run_id, "sessionKey": key, "status": "ok", "delivery": delivery, "reply": run.text}
        )

    async def _responses(self, request: Request, body: Any) -> Response:
        if not self._gateway.configuration.responses_enabled:
            return text_response(404, "Not Found")
        if not isinstance(body, dict) or not str(body.get("model", "")).startswith("openclaw"):
            return _request_error("Invalid `model`. Use `openclaw` or `openclaw/<agentId>`.")
        if not body.get("input"):
            return _request_error("input: Invalid input")
        key = request.headers.get("x-openclaw-session-key") or f"agent:main:openresponses:{uuid.uuid4()}"
        turn = self._gateway.runs.collect(key, _input_text(body["input"]), str(uuid.uuid4()))
        if not body.get("stream"):
            return json_response(200, _response(await turn))
        return Response(200, _events(turn), {"content-type": "text/event-stream; charset=utf-8"})


def _attribution_required() -> Response:
    return json_response(403, {"error": {"message": _ATTRIBUTION, "type": "proxy_attribution_required"}})


def _tool_error(status: int, kind: str, message: str) -> Response:
    return json_response(status, {"ok": False, "error": {"type": kind, "message": message}})


def _tool_result(details: dict[str, Any]) -> Response:
    content = [{"type": "text", "text": json.dumps(details, indent=2)}]
    return json_response(200, {"ok": True, "result": {"content": content, "details": details}})


def _request_error(message: str) -> Response:
    return json_response(400, {"error": {"message": message, "type": "invalid_request_error"}})


def _input_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts = [item.get("content", "") for item in value if isinstance(item, dict)]
    return "\n".join(part if isinstance(part, str) else "".join(p.get("text", "") for p in part) for part in parts)


def _response(run: Run) -> dict[str, Any]:
    usage = run.usage or {}
    counts = {"input_tokens": usage.get("prompt_tokens", 0), "output_tokens": usage.get("completion_tokens", 0)}
    item = {"type": "message", "id": "msg_fake", "role": "assistant", "status": "completed"}
    return {
        "id": f"resp_{run.key}",
        "object": "response",
        "status": "completed" if run.outcome == "ok" else "failed",
        "model": "openclaw",
        "output": [{**item, "content": [{"type": "output_text", "text": run.text}]}],
        "usage": {**counts, "total_tokens": sum(counts.values())},
    }


async def _events(turn: Coroutine[Any, Any, Run]) -> AsyncIterator[bytes]:
    started = {"object": "response", "model": "openclaw", "status": "in_progress", "output": []}
    yield _event("response.created", {"response": started})
    yield _event("response.in_progress", {"response": started})
    run = await turn
    yield _event("response.output_item.added", {"output_index": 0})
    yield _event("response.content_part.added", {"output_index": 0, "content_index": 0})
    for start in range(0, len(run.text), 16):
        yield _event("response.output_text.delta", {"delta": run.text[start : start + 16]})
    yield _event("response.output_text.done", {"text": run.text})
    yield _event("response.content_part.done", {"output_index": 0, "content_index": 0})
    yield _event("response.output_item.done", {"output_index": 0})
    response = _response(run)
    yield _event(f"response.{response['status']}", {"response": response})
    yield b"data: [DONE]\n\n"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
