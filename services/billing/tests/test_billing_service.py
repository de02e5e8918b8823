"""The whole service on a real bus and Postgres: wishes and events in, a balance out, and the stream gives the ledger again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from hatchery_billing.audit import MONEY_EVENTS, rebuild, verify
from hatchery_billing.main import service
from hatchery_cli.commands.billing import stored_events
from hatchery_common.bus import Bus, BusUnavailable
from hatchery_common.bus.connection import Connection
from hatchery_common.bus.jetstream import JetStream
from hatchery_common.bus.topology import migrate
from hatchery_common.contracts.accounts import OpenAccount
from hatchery_common.contracts.billing import SUMMARY, SummaryRequest, SummaryResponse
from hatchery_common.contracts.gateways import UsageOpened, UsageRecorded
from hatchery_common.contracts.instances import InstanceMetered
from hatchery_common.database import Database
from hatchery_common.run import ORDER, run_services
from hatchery_common.service import Parts, Service, ServiceContext
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.ports import free_port


@asynccontextmanager
async def nothing(_: ServiceContext) -> AsyncGenerator[Parts]:
    yield Parts()


outside = Service(
    "outside", nothing, produces=(OpenAccount, InstanceMetered, UsageOpened, UsageRecorded), calls=(SUMMARY,)
)


async def summary_with(bus: Bus, tenant: str, transactions: int) -> SummaryResponse:
    async with asyncio.timeout(30):
        while True:
            try:
                summary = await bus.call(SUMMARY, SummaryRequest(tenant=tenant), timeout_ms=10_000)
            except BusUnavailable:  # it is still starting
                summary = SummaryResponse(tenant=tenant, opened=False)
            if summary.transactions >= transactions:
                return summary
            await asyncio.sleep(0.05)


async def test_from_wish_to_summary_and_back_from_the_stream(clean_nats: NatsServer, database: Database, sample: Any):
    admin = Connection(clean_nats.url, "bus-admin")
    await admin.open()
    await migrate(JetStream(admin), [service, outside])
    environment = {
        "HATCHERY_NATS_URL": clean_nats.url,
        "HATCHERY_DATABASE_URL": database.url,
        "HATCHERY_HEALTH_BASE_PORT": str(free_port(span=len(ORDER))),
        "HATCHERY_BILLING_PRICE_LIST": "none",
        "HATCHERY_BILLING_UNKNOWN_AFTER_S": "10",
    }
    stop = asyncio.Event()
    running = asyncio.create_task(run_services([service], environment, stop=stop))
    async with Bus.open(clean_nats.url, outside) as bus:
        for _ in range(3):
            await bus.publish(OpenAccount(tenant="ta"))
        demo = {"provider": "demo", "model": "demo"}
        for event in (sample.opened("c1"), sample.recorded("c1", **demo), sample.metered(60), sample.opened("c2")):
            await bus.publish(event)
            await bus.publish(event)
        # one grant, one free call, 60 s, and the line of the call that nobody recorded (opened long ago)
        summary = await summary_with(bus, "ta", 4)
    assert (summary.opened, summary.balance_micro, summary.unknown_calls) == (True, 5_000_000 - 60, 1)
    assert sorted(line.kind for line in summary.lines) == ["grant", "machine_time", "model_usage", "usage_unknown"]
    stop.set()
    await asyncio.wait_for(running, 30)
    verified = await verify(database.url)
    assert verified.ok, verified.findings
    rebuilt = await rebuild(database.url, stored_events(admin, MONEY_EVENTS))
    await admin.close()
    assert rebuilt.findings == ()
    assert rebuilt.transactions == verified.transactions == 4
