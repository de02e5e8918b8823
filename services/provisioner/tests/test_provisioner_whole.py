"""The whole provisioner on a real Postgres with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from hatchery_common.clock import SystemClock, to_ms
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceCommand,
    InstanceStatus,
    ProvisionInstance,
    StopInstance,
)
from hatchery_common.contracts.routes import Route, RouteState
from hatchery_common.database import Database, outbox
from hatchery_common.log import get_logger
from hatchery_common.owner import Ownership
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import Range, identity
from hatchery_provisioner.adapters.sql import PostgresStore
from hatchery_provisioner.domain.instance import Instance
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.handlers import accept_wish
from hatchery_provisioner.reconciler import Reconciler, Tools
from process_rig import ProcessRig, TestSecrets, machine_ports
from provisioner_fakes import TENANT, delivered


class ReadyProber:
    """Asks the gateway's /ready, as the data plane would before its hello."""

    def __init__(self, routes: PostgresRoutes) -> None:
        self._routes = routes

    async def probe(self, request: ProbeRequest) -> ProbeResponse:
        route = (await self._routes.all())[-1]
        if route.route_version != request.route_version or route.endpoint is None:
            return ProbeResponse(ok=False, stage=ProbeStage.ROUTE)
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{route.endpoint}/ready")
        return ProbeResponse(ok=answer.status_code == 200, stage=ProbeStage.DONE, gateway_version="1")


class PostgresRoutes:
    """The routes that were put, in order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Route]:
        query = sa.select(outbox.c.payload).where(outbox.c.subject.like("$KV.routes.%")).order_by(outbox.c.id)
        async with self._database.connect() as connection:
            return [Route.model_validate_json(row[0]) for row in (await connection.execute(query)).all()]


async def subjects(database: Database) -> list[str]:
    query = sa.select(outbox.c.subject).order_by(outbox.c.id)
    async with database.connect() as connection:
        rows = [row[0] for row in (await connection.execute(query)).all()]
    return [row.split(".")[3] for row in rows if row.startswith("evt.")]


async def causes(database: Database) -> list[tuple[str, str | None, str]]:
    """What each event is, its causation, and its correlation."""
    query = sa.select(outbox.c.subject, outbox.c.headers).where(outbox.c.subject.like("evt.%")).order_by(outbox.c.id)
    async with database.connect() as connection:
        rows = (await connection.execute(query)).all()
    return [(row[0].split(".")[3], row[1].get("ce-causationid"), row[1]["ce-correlationid"]) for row in rows]


class Whole:
    """A provisioner on Postgres with real processes; `life()` is one process life of the control plane."""

    def __init__(self, database: Database, rig: ProcessRig) -> None:
        self.database, self.rig, self.store = database, rig, PostgresStore(database)
        self.limits = Limits(drain_s=0.01, stop_grace_s=5, backoff_first_s=0.1, healthy_s=0.0)
        self.generation, self.epoch = 0, 0
        self.reconciler = self._reconciler()
        self.task: asyncio.Task[None] | None = None

    def _reconciler(self) -> Reconciler:
        prober = ReadyProber(PostgresRoutes(self.database))
        tools = (self.store, self.rig.reborn(), self.rig.controllers, prober, TestSecrets(), SystemClock())
        return Reconciler(Tools(*tools, self.limits, get_logger("test")))

    async def begin(self) -> None:
        self.epoch += 1
        elected = sa.text("INSERT INTO owner (one, epoch) VALUES (true, :e) ON CONFLICT (one) DO UPDATE SET epoch = :e")
        async with self.database.unit_of_work() as work:
            await work.connection.execute(elected, {"e": self.epoch})
        self.reconciler = self._reconciler()
        self.task = asyncio.create_task(self.reconciler.run(Ownership(self.epoch)))

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
            self.task = None

    async def wish(self, kind: type[InstanceCommand]) -> None:
        self.generation += 1
        command = kind(
            tenant=TENANT, instance_id="ins_1", operation_id=f"op_{self.generation}", generation=self.generation
        )
        await accept_wish(
            delivered(command, id=command.operation_id),
            store=self.store,
            clock=SystemClock(),
            limits=self.limits,
            driver="process",
            poke=self.reconciler.poke,
        )

    async def until(self, status: InstanceStatus, limit_s: float = 20) -> Instance:
        found: Instance | None = None
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    found = await self.store.get("ins_1")
                    if found is not None and found.status is status and found.operation is None:
                        return found
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not reached: {found}") from None


@pytest.fixture
def ports() -> Generator[Range]:
    with machine_ports(10) as ports:
        yield ports


@pytest.fixture
async def whole(database: Database, ports: Range) -> AsyncGenerator[Whole]:
    leases = PostgresLeases(database, SystemClock(), ports, None)
    rig = ProcessRig(leases=leases)
    whole = Whole(database, rig)
    await whole.begin()
    try:
        yield whole
    finally:
        await whole.end()
        await rig.close()


async def test_the_whole_life_with_real_processes(whole: Whole) -> None:
    await whole.wish(ProvisionInstance)
    ready = await whole.until(InstanceStatus.READY)
    assert ready.gateway_version == "1"
    await whole.wish(StopInstance)
    stopped = await whole.until(InstanceStatus.STOPPED)
    assert stopped.route_state is RouteState.STOPPED
    await whole.wish(DeleteInstance)
    await whole.until(InstanceStatus.DELETED)
    assert not await whole.rig.driver.list_owned()
    kept = [name for name in await subjects(whole.database) if not name.startswith("step_")]
    assert kept == [
        *("provisioning_began", "start_began", "metered", "started", "operation_finished"),
        *("stop_began", "metered", "metered", "stopped", "operation_finished"),
        *("delete_began", "deleted", "operation_finished"),
    ]
    told = await causes(whole.database)
    assert [kind for kind, cause, _ in told if cause is None] == []
    assert [cause for _, cause, _ in told] == sorted(str(cause) for _, cause, _ in told)
    assert {(cause, correlation) for _, cause, correlation in told} == {(f"op_{n}", f"op_{n}") for n in (1, 2, 3)}


async def test_a_new_owner_adopts_what_runs_and_starts_what_died(whole: Whole) -> None:
    await whole.wish(ProvisionInstance)
    first = await whole.until(InstanceStatus.READY)
    await whole.end()
    await whole.begin()
    await asyncio.sleep(0.5)
    same = await whole.until(InstanceStatus.READY)
    assert first.machine is not None
    assert same.machine is not None
    assert same.machine.boot_id == first.machine.boot_id
    await whole.end()
    labels = whole.rig.driver._directory("ins_1").labels()
    assert labels is not None
    assert labels.pid is not None
    os.kill(labels.pid, signal.SIGKILL)
    await whole.begin()
    async with asyncio.timeout(20):
        while (again := await whole.until(InstanceStatus.READY)).machine is None or (  # noqa: ASYNC110
            again.machine.boot_id == first.machine.boot_id
        ):
            await asyncio.sleep(0.05)
    assert again.machine.machine_id == first.machine.machine_id


async def test_times_of_a_start(whole: Whole) -> None:
    """What we add to the gateway's own start is far below a second."""
    began = to_ms(SystemClock().now())
    await whole.wish(ProvisionInstance)
    ready = await whole.until(InstanceStatus.READY)
    assert ready.last_ready_at_ms is not None
    assert ready.last_ready_at_ms - began < 5_000


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"FAKE_GATEWAY_EXIT": "78"}, "config_rejected"),
        ({"FAKE_GATEWAY_NEVER_READY": "1"}, "start_deadline"),
        ({"FAKE_GATEWAY_EXIT": "1"}, "crash_loop"),
    ],
)
async def test_a_gateway_that_cannot_start_is_an_error_with_a_way_out(
    whole: Whole, fault: dict[str, str], reason: str
) -> None:
    await whole.end()
    sound = whole.rig.places
    whole.rig.places = replace(sound, environment=fault)
    whole.limits = replace(whole.limits, start_s=4.0 if reason == "start_deadline" else 30.0)
    await whole.begin()
    await whole.wish(ProvisionInstance)
    failed = await whole.until(InstanceStatus.ERROR)
    assert failed.reason == reason
    assert "remedy: " in (failed.message or "")
    async with asyncio.timeout(20):
        while list(identity.controllers(sound.machines)):  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.05)
    await whole.end()
    whole.rig.places = sound
    whole.limits = replace(whole.limits, start_s=30.0)
    await whole.begin()
    await whole.wish(ProvisionInstance)
    await whole.until(InstanceStatus.READY)
    await whole.wish(DeleteInstance)
    await whole.until(InstanceStatus.DELETED)
    assert not await whole.rig.driver.list_owned()
    assert [name for name in await subjects(whole.database) if name.startswith("operation_")] == [
        *("operation_failed", "operation_finished", "operation_finished"),
    ]
