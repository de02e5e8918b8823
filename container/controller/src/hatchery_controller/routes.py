"""The controller's HTTP API. Everything but /healthz demands the machine's service token."""

from __future__ import annotations

import hmac
import json
import math
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from hatchery_controller.adapters.server import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatchery_controller.board import Board

LONGEST_WAIT = 60.0
LONGEST_STOP = 330.0  # the gateway's own budget for draining
MOST_LINES = 2000
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    503: "busy",
}


class Control(Protocol):
    """What the API may ask of the supervisor."""

    def stop(self, deadline: float | None) -> None: ...

    def restart(self, why: str) -> bool:
        """False when the machine is being stopped."""
        ...


class BadRequest(ValueError):
    """A parameter or body that makes no sense; the text says which."""


def error_body(status: int, message: str) -> bytes:
    """The body of every error."""
    return json.dumps({"error": {"code": _CODES.get(status, "error"), "message": message}}).encode()


class Routes:
    """Answers requests; until the boot bundle has brought a token, nobody is let in."""

    def __init__(self, board: Board, control: Control, tail: Callable[[int], str]) -> None:
        self._board = board
        self._control = control
        self._tail = tail
        self._token: bytes | None = None

    def let_in(self, token: str) -> None:
        self._token = token.encode()

    async def __call__(self, request: Request) -> Response:
        url = urlsplit(request.target)
        if url.path == "/healthz":
            return _json(200, {"ok": True}) if request.method in ("GET", "HEAD") else _error(405, "GET only")
        if not self._authorised(request):
            return _error(401, "a valid service token is needed")
        method = _METHODS.get(url.path)
        if method is None:
            return _error(404, "no such path")
        if request.method != method:
            return _error(405, f"{method} only")
        try:
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=10)
            return await self._answer(url.path, query, request.body)
        except BadRequest as error:
            return _error(400, str(error))
        except ValueError:
            return _error(400, "malformed query")

    async def _answer(self, path: str, query: dict[str, list[str]], body: bytes) -> Response:
        if path == "/v1/state":
            return await self._state(query)
        if path == "/v1/logs":
            lines = int(_number(query.get("lines", ["200"])[-1], "lines", 1, MOST_LINES))
            return Response(200, self._tail(lines).encode(), "text/plain; charset=utf-8")
        given = _object(body)
        if path == "/v1/stop":
            deadline = given.get("deadline_s")
            self._control.stop(None if deadline is None else _number(deadline, "deadline_s", 0, LONGEST_STOP))
            return _json(202, {"accepted": True})
        reason = given.get("reason", "")
        if not isinstance(reason, str) or len(reason) > 500:
            raise BadRequest("reason must be a short text")
        accepted = self._control.restart(reason)
        return _json(202, {"accepted": True}) if accepted else _error(409, "this machine is being stopped")

    async def _state(self, query: dict[str, list[str]]) -> Response:
        wait = _number(query.get("wait", ["0"])[-1], "wait", 0, math.inf)
        since = query.get("since", [""])[-1]
        if since and not since.isdecimal():
            raise BadRequest("since must be a revision")
        if since and wait:
            await self._board.wait_beyond(int(since), min(wait, LONGEST_WAIT))
        machine = {"machine_id": self._board.machine_id, "ignored_overrides": self._board.ignored_overrides}
        return _json(200, self._board.state.as_json() | machine)

    def _authorised(self, request: Request) -> bool:
        given = [value for name, value in request.headers if name == b"authorization"]
        if self._token is None or len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return hmac.compare_digest(token, self._token) and scheme.lower() == b"bearer"


_METHODS = {"/v1/state": "GET", "/v1/logs": "GET", "/v1/stop": "POST", "/v1/gateway/restart": "POST"}


def _json(status: int, value: dict[str, Any]) -> Response:
    return Response(status, json.dumps(value).encode())


def _error(status: int, message: str) -> Response:
    return Response(status, error_body(status, message))


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be an object")
    return cast("dict[str, Any]", value)


def _number(value: object, name: str, low: float, high: float) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}")
    return number
