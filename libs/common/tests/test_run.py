"""The runner: readiness that names what is missing, isolation between services, draining, recovery of servers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hatchery_common.bus import Bus
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import AccountOpened
from hatchery_common.database import Database
from hatchery_common.errors import SetupError
from hatchery_common.health import Health
from hatchery_common.run import ORDER, run_services
from hatchery_common.service import Listener, Parts, Service, ServiceContext
from hatchery_common.testing.example import service as example
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port
from hatchery_common.testing.postgres import LocalPostgres, PostgresServer, fresh_database
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


@asynccontextmanager
async def nothing(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


tester = Service(name="tester", open=nothing, produces=(OpenAccount,), consumes=(AccountOpened,))


async def prepare(nats: NatsServer, *services: Service) -> None:
    connection = Connection(nats.url, "bus-admin")
    await connection.open()
    await migrate(JetStream(connection), services)
    await connection.close()


class Running:
    """Services in this loop, with a view on their phases."""

    def __init__(self, *services: Service, environment: dict[str, str]) -> None:
        self.base_port = free_port(span=len(ORDER) + 1)  # one for each service of the product, one for any other
        self.stop = asyncio.Event()
        self.phases: dict[str, list[tuple[str, str | None]]] = {one.name: [] for one in services}
        self._changed = asyncio.Event()
        environment = environment | {"HATCHERY_HEALTH_BASE_PORT": str(self.base_port)}
        self.task = asyncio.create_task(run_services(services, environment, stop=self.stop, on_change=self._note))
        self.task.add_done_callback(lambda _: self._changed.set())

    def _note(self, health: Health) -> None:
        self.phases[health.service].append((health.phase, health.reason))
        self._changed.set()

    async def until(self, service: str, phase: str, contains: str = "") -> str | None:
        async with asyncio.timeout(30):
            while True:
                for found, reason in self.phases[service]:
                    if found == phase and contains in (reason or ""):
                        return reason
                if self.task.done():
                    await self.task
                    pytest.fail(f"the runner ended before {service} was {phase}")
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 30)


def environment(nats: NatsServer, database: Database) -> dict[str, str]:
    return {"HATCHERY_NATS_URL": nats.url, "HATCHERY_DATABASE_URL": database.url}


async def notes(database: Database) -> int:
    async with database.connect() as connection:
        return int(await connection.scalar(sa.text("SELECT count(*) FROM notes")) or 0)


async def test_a_command_becomes_rows_and_an_event(clean_nats: NatsServer, postgres: PostgresServer) -> None:
    await prepare(clean_nats, example, tester)
    async with fresh_database(postgres, example) as databases, Bus.open(clean_nats.url, tester) as bus:
        database = databases["example"]
        running = Running(example, environment=environment(clean_nats, database))
        await running.until("example", "running")
        opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def note(delivery: Any) -> None:
            opened.set_result(delivery.causation_id)

        from hatchery_common.bus import Subscription

        consumption = await bus.subscribe([Subscription(AccountOpened, note)])
        await bus.publish(OpenAccount(tenant="tabc"), id="cmd_first")
        assert await asyncio.wait_for(opened, 20) == "cmd_first"
        assert await notes(database) == 1
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.base_port + len(ORDER)}") as client:
            assert (await client.get("/healthz")).json()["ok"] is True
            assert (await client.get("/readyz")).json() | {"for_s": 0} == {
                "ok": True, "service": "example", "phase": "running", "for_s": 0, "restarts": 0, "problems": [],
            }  # fmt: skip
            assert "hatchery_service_ready 1.0" in (await client.get("/metrics")).text
        await consumption.stop()
        await running.end()


async def test_an_older_schema_or_a_missing_durable_is_named_and_waited_for(
    clean_nats: NatsServer, postgres: PostgresServer
) -> None:
    async with fresh_database(postgres, example) as databases:
        database = databases["example"]
        async with database.unit_of_work() as work:
            await work.connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
        running = Running(example, environment=environment(clean_nats, database))
        reason = await running.until("example", "waiting", "schema")
        assert reason is not None
        assert "hatchery db migrate" in reason
        async with database.unit_of_work() as work:
            await work.connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
        reason = await running.until("example", "waiting", "bus migrate")
        assert reason is not None
        assert "CMD/example" in reason
        await prepare(clean_nats, example)
        await running.until("example", "running")
        await running.end()


async def test_a_service_that_fails_is_restarted_and_the_others_never_notice(clean_nats: NatsServer) -> None:
    lives = 0

    async def leave(_: Request) -> PlainTextResponse:
        return PlainTextResponse("alive")

    def serving_on(port: int) -> Service:
        @asynccontextmanager
        async def opened(_: ServiceContext) -> AsyncGenerator[Parts]:
            yield Parts(listeners=[Listener("web", Starlette(routes=[Route("/", leave)]), "127.0.0.1", port)])

        return Service(name="api", open=opened)

    @asynccontextmanager
    async def failing(context: ServiceContext) -> AsyncGenerator[Parts]:
        nonlocal lives
        lives += 1
        Gauge("hatchery_lives", "a metric of a part, as most services have one", registry=context.metrics).set(lives)

        async def loop() -> None:
            if lives == 1:
                raise SystemExit(3)  # what plain uvicorn does when its port is taken
            if lives == 2:
                raise ValueError("a bug")
            await asyncio.Event().wait()

        yield Parts(loops=[loop])

    port = free_port()
    base = {"HATCHERY_NATS_URL": clean_nats.url}
    running = Running(serving_on(port), Service(name="billing", open=failing), environment=base)
    await running.until("billing", "failed", "SystemExit")
    await running.until("billing", "failed", "a bug")
    running.phases["billing"].clear()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "alive"
    assert [phase for phase, _ in running.phases["api"]].count("failed") == 0
    await running.until("billing", "running")
    await running.end()
    assert lives == 3


async def test_sigterm_lets_a_request_in_flight_finish(clean_nats: NatsServer) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> PlainTextResponse:
        entered.set()
        await release.wait()
        return PlainTextResponse("whole")

    port = free_port()

    @asynccontextmanager
    async def opened(_: ServiceContext) -> AsyncGenerator[Parts]:
        yield Parts(listeners=[Listener("web", Starlette(routes=[Route("/", slow)]), "127.0.0.1", port)])

    running = Running(Service(name="api", open=opened), environment={"HATCHERY_NATS_URL": clean_nats.url})
    await running.until("api", "running")
    async with httpx.AsyncClient() as client:
        request = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/", timeout=20))
        await asyncio.wait_for(entered.wait(), 10)
        os.kill(os.getpid(), signal.SIGTERM)
        await running.until("api", "draining")
        release.set()
        assert (await request).text == "whole"
    await asyncio.wait_for(running.task, 20)


async def test_servers_may_restart_under_a_running_service(own_nats: NatsServer, own_postgres: LocalPostgres) -> None:
    own_nats.start()
    await prepare(own_nats, example, tester)
    async with fresh_database(own_postgres.server, example) as databases, Bus.open(own_nats.url, tester) as bus:
        database = databases["example"]
        running = Running(example, environment=environment(own_nats, database))
        await running.until("example", "running")
        await bus.publish(OpenAccount(tenant="ta"))
        own_postgres.stop(signal.SIGKILL)
        await bus.publish(OpenAccount(tenant="tb"))
        own_postgres.start()
        own_nats.kill()
        publishing = asyncio.create_task(bus.publish(OpenAccount(tenant="tc")))
        own_nats.start()
        await publishing
        async with asyncio.timeout(40):
            while await notes(database) < 3:  # noqa: ASYNC110 - rows set no event
                await asyncio.sleep(0.1)
        assert [phase for phase, _ in running.phases["example"]].count("failed") == 0
        await running.end()


async def test_a_taken_port_is_named(clean_nats: NatsServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        @asynccontextmanager
        async def opened(_: ServiceContext) -> AsyncGenerator[Parts]:
            yield Parts(listeners=[Listener("web", Starlette(), "127.0.0.1", port)])

        running = Running(Service(name="api", open=opened), environment={"HATCHERY_NATS_URL": clean_nats.url})
        reason = await running.until("api", "failed", str(port))
        assert reason is not None
        assert "choose another" in reason
        await running.end()


async def test_a_taken_health_port_ends_the_runner_and_is_named(clean_nats: NatsServer) -> None:
    given = {"HATCHERY_NATS_URL": clean_nats.url, "HATCHERY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    running = Running(example, environment=given)
    port = running.base_port + len(ORDER)
    with (
        socket.create_server(("127.0.0.1", port)),  # before the runner's first step
        pytest.raises(SetupError, match=f"example health cannot listen on .*:{port}"),
    ):
        await running.until("example", "running")
