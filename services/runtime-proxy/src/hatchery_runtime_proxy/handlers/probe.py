"""The readiness probe: the same path that the owner's bytes take, end to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hatchery_common.contracts.gateways import PROBE, ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import HatcheryError

from hatchery_runtime_proxy.domain.table import RouteTable
from hatchery_runtime_proxy.ports import Gateways, Identity, Machine

_TABLE_WAIT_S = 1.0
# An answer that comes later is heard by nobody, and holds a place among the calls.
DEADLINE_S = PROBE.timeout_ms / 1000 - 0.5
_PROBED = (RouteState.STARTING, RouteState.RUNNING)


async def probe_gateway(
    request: ProbeRequest, *, table: RouteTable, gateways: Gateways, deadline_s: float = DEADLINE_S
) -> ProbeResponse:
    """Whether the route, `/ready` and an authenticated hello of both identities hold, in time for the caller; never raises."""
    deadline = asyncio.get_running_loop().time() + deadline_s
    route = await _route(request, table)
    if isinstance(route, str):
        return ProbeResponse(ok=False, stage=ProbeStage.ROUTE, detail=route)
    machine = machine_of(route)
    stage = ProbeStage.READY
    try:
        async with asyncio.timeout_at(deadline):
            if not await gateways.ready(machine):
                return ProbeResponse(ok=False, stage=stage, detail="the gateway answers, but says that it is not ready")
            stage = ProbeStage.HELLO
            service, owner = await asyncio.gather(
                gateways.hello(machine, Identity.SERVICE), gateways.hello(machine, Identity.OWNER)
            )
    except TimeoutError:
        return ProbeResponse(ok=False, stage=stage, detail="gateway_timeout: the gateway did not answer in time")
    except HatcheryError as error:
        return ProbeResponse(ok=False, stage=stage, detail=f"{error.code}: {error.message}")
    if not owner.scopes or not service.scopes:
        return ProbeResponse(ok=False, stage=stage, detail="the gateway gives our identities no scopes")
    return ProbeResponse(ok=True, stage=ProbeStage.DONE, gateway_version=owner.version)


def machine_of(route: Route) -> Machine:
    """The machine that a route names."""
    return Machine(
        route.machine_id or "", route.endpoint or "", route.controller, route.endpoint_uid, route.controller_uid
    )


async def _route(request: ProbeRequest, table: RouteTable) -> Route | str:
    """The route asked about, waited for a moment; or what is wrong with it."""
    deadline = asyncio.get_running_loop().time() + _TABLE_WAIT_S
    while True:
        route = table.of_instance(request.instance_id)
        problem = _mismatch(request, route)
        if problem is None and route is not None:
            return route
        if asyncio.get_running_loop().time() >= deadline:
            return problem or "the route is unknown"
        await asyncio.sleep(0.02)


def _mismatch(request: ProbeRequest, route: Route | None) -> str | None:
    checks: tuple[tuple[Callable[[Route], bool], str], ...] = (
        (lambda r: r.tenant == request.tenant, "the route belongs to another tenant"),
        (lambda r: r.route_version >= request.route_version, "the proxy has not seen this version of the route yet"),
        (lambda r: r.machine_id == request.machine_id, "the route names another machine"),
        (lambda r: r.state in _PROBED, "the route is closed"),
        (lambda r: bool(r.endpoint), "the route has no endpoint"),
    )
    if route is None:
        return "the route is unknown"
    return next((sentence for holds, sentence in checks if not holds(route)), None)
