"""The readiness probe and the keeper of routes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hatchery_common.contracts.gateways import ProbeRequest, ProbeStage
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.errors import DependencyUnavailable
from hatchery_runtime_proxy.domain.table import RouteTable
from hatchery_runtime_proxy.handlers.probe import machine_of, probe_gateway
from hatchery_runtime_proxy.handlers.routing import RouteKeeper
from hatchery_runtime_proxy.ports import Identity
from proxy_stage import ANN, Proxy


async def probe(proxy: Proxy, **changes):
    given = {"tenant": ANN, "instance_id": "ins_ann", "machine_id": "mch_ann", "route_version": 1}
    request = ProbeRequest(**{**given, **changes})
    return await probe_gateway(request, table=proxy.table, gateways=proxy.gateways)


@pytest.mark.parametrize("state", [RouteState.STARTING, RouteState.RUNNING])
async def test_a_good_gateway_is_proven(proxy: Proxy, state: RouteState) -> None:
    proxy.route(state=state)
    answer = await probe(proxy)
    assert (answer.ok, answer.stage, answer.gateway_version) == (True, ProbeStage.DONE, "2026.9.6")


@pytest.mark.parametrize(
    "changes", [{"instance_id": "ins_no"}, {"machine_id": "mch_no"}, {"tenant": "tno"}, {"route_version": 9}]
)
async def test_a_route_that_does_not_fit_is_named(proxy: Proxy, changes) -> None:
    answer = await probe(proxy, **changes)
    assert (answer.ok, answer.stage) == (False, ProbeStage.ROUTE)
    assert answer.detail


async def test_the_probe_waits_a_moment_for_the_route(proxy: Proxy) -> None:
    asking = asyncio.create_task(probe(proxy, route_version=2))
    await asyncio.sleep(0.2)
    proxy.route(state=RouteState.STARTING)
    assert (await asking).ok


async def test_a_closed_route_is_not_probed(proxy: Proxy) -> None:
    proxy.route(state=RouteState.STOPPED)
    assert (await probe(proxy)).detail == "the route is closed"


async def test_ready_alone_is_not_enough(proxy: Proxy) -> None:
    """A gateway that does not know our identity answers /ready and refuses the hello."""
    proxy.route(machine_id="mch_other")
    answer = await probe(proxy, machine_id="mch_other")
    assert (answer.ok, answer.stage) == (False, ProbeStage.HELLO)
    assert "gateway_refused_identity" in (answer.detail or "")


async def test_an_unready_gateway_and_a_dead_one(proxy: Proxy) -> None:
    proxy.machine.gateway._ready_after = 1e9
    assert (await probe(proxy)).stage is ProbeStage.READY
    await proxy.machine.stop()
    answer = await probe(proxy)
    assert (answer.ok, answer.stage) == (False, ProbeStage.READY)


def route(version: int, **changes) -> Route:
    given = {"tenant": "ta", "state": RouteState.RUNNING, "machine_id": "mch_1", "changed_at_ms": 1}
    return Route(instance_id="ins_a", route_version=version, **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "closes"),
    [
        (None, True),
        ({"state": RouteState.STOPPING}, True),
        ({"state": RouteState.STOPPED, "machine_id": None}, True),
        ({"state": RouteState.GONE, "machine_id": None}, True),
        ({"machine_id": "mch_2"}, True),
        ({"name": "renamed"}, False),
    ],
)
async def test_what_only_the_snapshot_tells_closes_connections_too(
    changes: dict[str, Any] | None, *, closes: bool
) -> None:
    bucket, closed = {"ins_a": route(1)}, []

    async def snapshot() -> dict[str, Route]:
        return dict(bucket)

    async def close(machine_id: str) -> None:
        closed.append(machine_id)

    keeper = RouteKeeper(RouteTable(), snapshot, close, every_s=60)
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.05)
    bucket.clear()
    if changes is not None:
        bucket["ins_a"] = route(2, **changes)
    for _ in range(2):  # what it knows already closes nothing more
        keeper.reread()
        await asyncio.sleep(0.05)
    running.cancel()
    assert closed == (["mch_1"] if closes else [])


async def test_a_machine_may_be_dropped_twice_at_once(proxy: Proxy) -> None:
    machine = machine_of(proxy.routes["ins_ann"])
    for identity in Identity:
        await proxy.gateways.call(machine, "status", {}, identity)
    await asyncio.gather(*(proxy.gateways.drop(machine.machine_id) for _ in range(3)))
    assert (await proxy.gateways.call(machine, "status", {}))["runtimeVersion"], "a new connection"


async def test_the_keeper_reads_again_and_closes_what_is_closed() -> None:
    bucket = {"ins_a": route(1)}
    closed: list[str] = []
    down = False

    async def snapshot() -> dict[str, Route]:
        if down:
            raise DependencyUnavailable("no bus")
        return bucket

    async def close(machine_id: str) -> None:
        closed.append(machine_id)

    table = RouteTable()
    keeper = RouteKeeper(table, snapshot, close, every_s=0.1)
    assert await keeper.check() is not None
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.05)
    assert (await keeper.check(), len(table)) == (None, 1)
    keeper.heard(route(2, state=RouteState.STOPPING))
    await asyncio.sleep(0)
    assert closed == ["mch_1"]
    keeper.heard(route(1))
    assert table.find("ta").state is RouteState.STOPPING
    bucket["ins_b"] = Route(
        instance_id="ins_b", tenant="tb", state=RouteState.RUNNING, route_version=1, changed_at_ms=1
    )
    keeper.reread()
    await asyncio.sleep(0.05)
    assert table.of_instance("ins_b")
    down = True
    await asyncio.sleep(0.5)
    assert "cannot be read" in (await keeper.check() or "")
    running.cancel()
