"""The store and the leases on a real Postgres, and the whole provisioner over them with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hatchery_common.clock import FixedClock, SystemClock, to_ms
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import (
    DeleteInstance,
    InstanceCommand,
    InstanceStatus,
    ProvisionInstance,
    Route,
    RouteState,
    StopInstance,
)
from hatchery_common.database import Database, outbox
from hatchery_common.errors import OwnershipLost
from hatchery_common.log import get_logger
from hatchery_common.owner import Ownership
from hatchery_common.testing.postgres import PostgresServer, fresh_database
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import Range, identity
from hatchery_provisioner.adapters.process.leases import CONTROLLER_OFFSET
from hatchery_provisioner.adapters.sql import PostgresStore, metadata
from hatchery_provisioner.domain.errors import DriverCapacity
from hatchery_provisioner.domain.instance import Instance, Machine, MachineStage, Operation, Power, StorageStage, Verb
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.domain.metering import Boot
from hatchery_provisioner.domain.status import settle
from hatchery_provisioner.handlers import accept_wish
from hatchery_provisioner.main import service
from hatchery_provisioner.reconciler import Reconciler, Tools
from process_rig import ProcessRig, TestSecrets, free_port
from provisioner_fakes import TENANT, delivered

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncGenerator[Database]:
    async with fresh_database(postgres, service) as databases:
        yield databases["provisioner"]


async def test_migrations_make_what_the_tables_say(database: Database) -> None:
    def compare(connection: sa.Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.connect() as connection:
        assert await connection.run_sync(compare) == []


def instance(**changes: object) -> Instance:
    base = Instance("ins_1", TENANT, "default", "standard", "process", 1, 1, 1, generation=3)
    full = base.evolve(
        operation=Operation("op_1", Verb.RESTART, 3),
        machine=Machine("mch_2", 3, MachineStage.CREATED, Power.ON, "http://h:1", "http://h:2", "b", {"port": 1}),
        retiring=(Machine("mch_1", 1, MachineStage.RETIRING, Power.UNKNOWN),),
        storage=StorageStage.USED,
        route_state=RouteState.STARTING,
        reason="probe_failed",
        next_at_ms=5,
        **changes,
    )
    return settle(None, full, Limits(), 7)


async def test_an_instance_comes_back_as_it_was_saved(database: Database) -> None:
    store, saved = PostgresStore(database), instance()
    async with store.transaction() as work:
        assert await work.lock("ins_1") is None
        await work.save(saved)
    assert await store.get("ins_1") == saved
    assert [one.instance_id for one in await store.pending()] == ["ins_1"]
    assert await store.known_machines() == {"mch_1": "ins_1", "mch_2": "ins_1"}
    forgotten = saved.evolve(retiring=(), next_at_ms=None, status=InstanceStatus.DELETED)
    async with store.transaction() as work:
        assert await work.lock("ins_1") == saved
        await work.save(forgotten)
    assert await store.get("ins_1") == forgotten
    assert not await store.pending()
    assert await store.known_machines() == {"mch_2": "ins_1"}
    assert await store.tombstones(["ins_1", "ins_2"]) == {"ins_1"}


async def test_a_second_live_machine_is_impossible(database: Database) -> None:
    store = PostgresStore(database)
    async with store.transaction() as work:
        await work.save(instance())
    other = sa.text(
        "INSERT INTO machines (machine_id, instance_id, generation, stage, power, state, changed_at_ms) "
        "VALUES ('mch_9', 'ins_1', 4, 'planned', 'off', '{}', 0)"
    )
    with pytest.raises(sa.exc.IntegrityError):
        async with database.unit_of_work() as work:
            await work.connection.execute(other)


async def test_boots_and_epochs(database: Database) -> None:
    store = PostgresStore(database)
    boot = Boot("b1", "ins_1", "mch_1", TENANT, "standard", 10, counted_ms=5)
    async with store.transaction() as work:
        await work.save_boot(boot)
    async with store.transaction() as work:
        assert list(await work.boots("ins_1")) == [boot]
        await work.save_boot(Boot(**{**boot.__dict__, "final": True}))
    async with store.transaction() as work:
        assert not await work.boots("ins_1")
    with pytest.raises(OwnershipLost):
        async with store.transaction(epoch=99):
            pass


async def test_leases_are_never_shared_and_rest_before_they_are_given_again(database: Database) -> None:
    clock = FixedClock(NOW)
    leases = PostgresLeases(database, clock, Range(9000, 2), Range(62000, 5))
    one = await leases.reserve("ins_1")
    assert one == await leases.reserve("ins_1") == await leases.find("ins_1")
    two = await leases.reserve("ins_2")
    assert {one.port, two.port} == {9000, 9001}
    assert one.uid != two.uid
    with pytest.raises(DriverCapacity) as full:
        await leases.reserve("ins_3")
    assert full.value.reason == "no_free_port"
    await leases.release("ins_1")
    await leases.release("ins_1")
    with pytest.raises(DriverCapacity):
        await leases.reserve("ins_3")
    clock.at = NOW + timedelta(minutes=10)
    with pytest.raises(DriverCapacity):
        await leases.reserve("ins_3")
    clock.at = NOW + timedelta(minutes=11)
    assert (await leases.reserve("ins_3")).port == one.port


async def test_concurrent_reservations_get_different_ports(database: Database) -> None:
    leases = PostgresLeases(database, SystemClock(), Range(9000, 30), None)
    found = await asyncio.gather(*(leases.reserve(f"ins_{number % 10}") for number in range(20)))
    assert len({lease.port for lease in found}) == 10


async def test_a_taken_port_moves_the_lease(database: Database) -> None:
    leases = PostgresLeases(database, SystemClock(), Range(9000, 3), None)
    await leases.reserve("ins_1")
    assert (await leases.move("ins_1", 9000)).port == 9001
    assert (await leases.move("ins_1", 9000)).port == 9001, "a repeat must not move it again"


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
            delivered(command),
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
async def whole(database: Database) -> AsyncGenerator[Whole]:
    leases = PostgresLeases(database, SystemClock(), Range(free_port(), CONTROLLER_OFFSET), None)
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
