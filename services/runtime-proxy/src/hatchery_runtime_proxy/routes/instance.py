"""Status, restart, devices, pairing and tools of one instance."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter
from hatchery_common.errors import Conflict, HatcheryError, InvalidInput, NotFound
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from hatchery_runtime_proxy.handlers.probe import machine_of
from hatchery_runtime_proxy.ports import GatewayRejected, Identity, Machine
from hatchery_runtime_proxy.routes.access import InstanceRoute, OpenMachine, RuntimeTools, Tools
from hatchery_runtime_proxy.routes.envelope import done, failure, read_model

router = APIRouter(prefix="/v1")
_INSTANCE_TYPE = "standard"  # the only size there is
_NO_BACKUP = "backups are not available in this version"
_PASSED_HEADERS = tuple(f"x-openclaw-{name}" for name in ("session-key", "agent-id", "message-channel", "account-id"))
_SECRET_KEYS = frozenset({"token", "deviceToken", "accessToken", "refreshToken", "password", "secret", "privateKey"})


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RestartRequest(_Request):
    """Why the gateway shall restart."""

    reason: str = Field(default="asked for over the runtime API", max_length=200)


class PairingApproval(_Request):
    """Which sender to let in; OpenClaw's WebSocket names requests by id, not by the code that the sender sees."""

    requestId: str = Field(min_length=1, max_length=200)  # noqa: N815 - the gateway's own name
    accountId: str | None = Field(default=None, max_length=200)  # noqa: N815
    notify: bool = False


class ToolCall(_Request):
    """A tool of the gateway and its arguments; its policy is the gateway's."""

    tool: str = Field(min_length=1, max_length=200)
    action: str | None = Field(default=None, max_length=200)
    args: dict[str, Any] = Field(default_factory=dict)
    sessionKey: str | None = Field(default=None, max_length=256)  # noqa: N815
    headers: dict[str, str] = Field(default_factory=dict)
    dryRun: bool = False  # noqa: N815


@router.get("/status")
async def read_status(route: InstanceRoute, tools: Tools) -> Response:
    """Gateway state, version, instance type and last backup; answers for an instance in any state."""
    gateway: dict[str, Any] = {"state": route.state.value, "version": None}
    if route.state.value == "running" and route.machine_id and route.endpoint:
        gateway = await _gateway_status(tools, machine_of(route))
    data = {
        "instance_id": route.instance_id,
        "name": route.name,
        "instance_type": _INSTANCE_TYPE,
        "machine_id": route.machine_id,
        "route": {"state": route.state.value, "version": route.route_version, "changed_at_ms": route.changed_at_ms},
        "gateway": gateway,
        "last_backup": None,
        "last_backup_reason": _NO_BACKUP,
    }
    return done(data)


async def _gateway_status(tools: RuntimeTools, machine: Machine) -> dict[str, Any]:
    try:
        found = await tools.gateways.call(machine, "status", {}, Identity.SERVICE)
    except HatcheryError as error:
        return {"state": "unreachable", "version": None, "reason": error.code, "message": error.message}
    return {"state": "ready", "version": found.get("runtimeVersion")}


@router.post("/gateway/restart")
async def restart_gateway(request: Request, machine: OpenMachine, tools: Tools) -> Response:
    """Restarts the gateway inside its machine, through the controller."""
    given = await read_model(request, RestartRequest, tools.max_body)
    await tools.controllers.restart_gateway(machine, given.reason)
    return done({"accepted": True, "machine_id": machine.machine_id}, 202)


@router.get("/devices")
async def list_devices(machine: OpenMachine, tools: Tools) -> Response:
    """Devices that wait for approval, and paired ones."""
    return done(without_secrets(await tools.gateways.call(machine, "device.pair.list", {})))


@router.post("/devices/{request_id}/approve")
async def approve_device(request_id: str, machine: OpenMachine, tools: Tools) -> Response:
    """Lets a device in."""
    return done(await _decide(tools, machine, "approve", request_id))


@router.post("/devices/{request_id}/reject")
async def reject_device(request_id: str, machine: OpenMachine, tools: Tools) -> Response:
    """Turns a device away."""
    return done(await _decide(tools, machine, "reject", request_id))


async def _decide(tools: RuntimeTools, machine: Machine, verb: str, request_id: str) -> Any:
    try:
        answer = await tools.gateways.call(machine, f"device.pair.{verb}", {"requestId": request_id})
    except GatewayRejected as error:
        if "unknown requestId" in error.message:
            raise NotFound(
                "no device waits under this request id", hint="it may have expired: list the devices"
            ) from None
        raise
    return without_secrets(answer)


@router.get("/pairing/{channel}")
async def list_pairing(channel: str, machine: OpenMachine, tools: Tools) -> Response:
    """Senders of a channel that wait for approval."""
    return done({"channel": channel, "requests": await _pairing_requests(tools, machine, channel)})


@router.post("/pairing/{channel}/approve")
async def approve_pairing(request: Request, channel: str, machine: OpenMachine, tools: Tools) -> Response:
    """Lets a sender in."""
    given = await read_model(request, PairingApproval, tools.max_body)
    waiting = {str(row.get("requestId")): row for row in await _pairing_requests(tools, machine, channel)}
    row = waiting.get(given.requestId)
    if row is None:
        raise NotFound("no sender waits under this request id", hint="it may have expired: list the requests")
    if given.accountId is not None and given.accountId != row.get("accountId"):
        raise Conflict("the request belongs to another account")
    params = {"channel": channel, "accountId": row.get("accountId"), "requestId": given.requestId}
    answer = await tools.gateways.call(machine, "channels.pairing.approve", {**params, "notify": given.notify})
    return done(without_secrets(answer))


async def _pairing_requests(tools: RuntimeTools, machine: Machine, channel: str) -> list[dict[str, Any]]:
    found = await tools.gateways.call(machine, "channels.pairing.list", {})
    rows = cast("list[dict[str, Any]]", found.get("requests") or [])
    return [without_secrets(row) for row in rows if row.get("channel") == channel]


@router.post("/tools/invoke")
async def invoke_tool(request: Request, machine: OpenMachine, tools: Tools) -> Response:
    """Runs a tool of the gateway; what it may not run is 404, as the gateway says it."""
    call = await read_model(request, ToolCall, tools.max_body)
    headers = {name.lower(): value for name, value in call.headers.items()}
    foreign = sorted(set(headers) - set(_PASSED_HEADERS))
    if foreign:
        raise InvalidInput(f"headers may only hold {', '.join(_PASSED_HEADERS)}")
    body = call.model_dump(include={"tool", "action", "args", "sessionKey"}, exclude_none=True)
    if call.dryRun:
        return done({"dry_run": True, "would_invoke": body})
    answer = await tools.gateways.post(machine, "/tools/invoke", body, headers)
    found = cast("dict[str, Any]", answer.body) if isinstance(answer.body, dict) else {}
    if answer.status == 200 and found.get("ok"):
        return done(found.get("result"))
    error = found.get("error") or {}
    codes = {404: "tool_not_available", 400: "tool_rejected"}
    status = answer.status if answer.status in codes else 502
    code = codes.get(answer.status, "gateway_error")
    return failure(code, str(error.get("message", f"status {answer.status}")), status, gateway_code=error.get("type"))


def without_secrets(value: Any) -> Any:
    """The value without anything that would let somebody in."""
    if isinstance(value, dict):
        rows = cast("dict[str, Any]", value).items()
        return {name: without_secrets(item) for name, item in rows if name not in _SECRET_KEYS}
    if isinstance(value, list):
        return [without_secrets(item) for item in cast("list[Any]", value)]
    return value
