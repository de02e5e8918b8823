"""Who calls the runtime API, and which instance is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import InvalidInput
from hatchery_common.ids import is_token
from hatchery_common.secrets import same
from starlette.requests import Request

from hatchery_runtime_proxy.domain.deadlines import StreamLimits
from hatchery_runtime_proxy.domain.table import InstanceNotRunning, RouteTable
from hatchery_runtime_proxy.handlers.probe import machine_of
from hatchery_runtime_proxy.ports import Controllers, Gateways, Machine
from hatchery_runtime_proxy.routes.envelope import Unauthorised

SERVICE_TOKEN, TENANT, INSTANCE = "x-openagents-service-token", "x-oa-tenant-key", "x-oa-instance-id"


@dataclass(frozen=True)
class RuntimeTools:
    """What the runtime API's routes work with."""

    table: RouteTable
    gateways: Gateways
    controllers: Controllers
    token_of: Callable[[str], str]
    limits: StreamLimits
    max_body: int


def _tools(request: Request) -> RuntimeTools:
    return request.app.state.tools


def _route(request: Request) -> Route:
    """The route of the caller's instance; raises Unauthorised before it looks anything up."""
    tools = _tools(request)
    tenant = request.headers.get(TENANT, "")
    given = request.headers.get(SERVICE_TOKEN, "")
    if not is_token(tenant) or not same(given, tools.token_of(tenant)):
        raise Unauthorised(f"{SERVICE_TOKEN} and {TENANT} must name one tenant")
    instance_id = request.headers.get(INSTANCE) or None
    if instance_id is not None and not is_token(instance_id):
        raise InvalidInput(f"{INSTANCE} is not an instance id")
    return tools.table.find(tenant, instance_id)


def _machine(route: Annotated[Route, Depends(_route)]) -> Machine:
    """The machine, when its route is open; raises InstanceNotRunning with the state."""
    if route.state is not RouteState.RUNNING or not route.machine_id or not route.endpoint:
        raise InstanceNotRunning(
            f"the instance is {route.state.value}", hint="start it and wait until it is ready", state=route.state.value
        )
    return machine_of(route)


def _session_key(key: str) -> str:
    """A session key of the path, as the gateway would accept it."""
    if not key or len(key) > 256 or not key.isprintable():
        raise InvalidInput("the session key must be 1 to 256 printable characters")
    return key


Tools = Annotated[RuntimeTools, Depends(_tools)]
InstanceRoute = Annotated[Route, Depends(_route)]
OpenMachine = Annotated[Machine, Depends(_machine)]
SessionKey = Annotated[str, Depends(_session_key)]
