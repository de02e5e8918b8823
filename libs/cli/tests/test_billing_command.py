"""`hatchery billing` on a real Postgres and stream: sound, then damaged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hatchery_cli.commands.billing import app, telling
from hatchery_cli.preparing import create_database, migrate_bus, migrate_databases
from hatchery_cli.rendering import role_url
from hatchery_common.bus import BatchSubscription, Bus
from hatchery_common.contracts.gateways import UsageOpened
from hatchery_common.database import Database
from hatchery_common.run import installed_services
from hatchery_common.service import Service
from hatchery_common.testing.nats import NatsServer
from hatchery_common.testing.postgres import LocalPostgres, local_postgres
from typer.testing import CliRunner

ROOT_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def own_postgres() -> Generator[LocalPostgres]:
    """A server of its own: here the role's password follows from the root key."""
    with local_postgres() as server:
        yield server


def billing() -> Service:
    return installed_services()["billing"]


def prepare(admin_url: str, nats_url: str) -> None:
    async def work() -> None:
        await create_database(admin_url)
        await migrate_databases(ROOT_KEY, [billing()], admin_url)
        await migrate_bus(nats_url, [billing()], None)

    asyncio.run(work())


def execute(admin_url: str, statement: str) -> None:
    async def work() -> None:
        database = Database(role_url(ROOT_KEY, "billing", admin_url), "billing")
        async with database.engine.begin() as connection:
            await connection.execute(sa.text(statement))
        await database.close()

    asyncio.run(work())


def publish(nats_url: str, call_id: str) -> None:
    outside = Service("outside", billing().open, produces=(UsageOpened,))
    event = UsageOpened(
        tenant="ta", call_id=call_id, instance_id="i", machine_id="m", provider="p", model="m", opened_at_ms=1
    )

    async def work() -> None:
        async with Bus.open(nats_url, outside) as bus:
            await bus.publish(event)

    asyncio.run(work())


def swallow(nats_url: str) -> None:
    """Acknowledge the one event that waits for the ledger, without applying it."""

    async def work() -> None:
        arrived = asyncio.Event()

        async def note(_: Any) -> None:
            arrived.set()

        async with Bus.open(nats_url, billing()) as bus:
            consumption = await bus.subscribe_batches([BatchSubscription(billing().batched, note)])
            await asyncio.wait_for(arrived.wait(), 20)
            await consumption.stop(5)
            assert not any((await bus.lag()).values())

    asyncio.run(work())


def run(*arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, [*arguments, "--json"], env=environment)
    return result.exit_code, json.loads(result.stdout)


def test_verify_and_rebuild_say_what_is_wrong(clean_nats_url: str, own_postgres: LocalPostgres, tmp_path: Path) -> None:
    admin_url = own_postgres.server.at("ledgers")
    prepare(admin_url, clean_nats_url)
    environment = {
        "HATCHERY_DIR": str(tmp_path / "none"),
        "HATCHERY_ROOT_KEY": ROOT_KEY.hex(),
        "HATCHERY_ADMIN_DATABASE_URL": admin_url,
        "HATCHERY_NATS_URL": clean_nats_url,
    }
    assert run("verify", **environment) == (
        0, {"ok": True, "accounts": 0, "transactions": 0, "postings": 0, "events": 0, "findings": []},
    )  # fmt: skip
    publish(clean_nats_url, "c1")
    code, report = run("rebuild", **environment)
    assert (code, report["ok"], report["replayed"], report["pending"]) == (0, True, 0, 1)
    execute(admin_url, "INSERT INTO cursors VALUES ('EVT', 7, 1, 0)")
    code, report = run("verify", **environment)
    assert (code, [finding["code"] for finding in report["findings"]]) == (1, ["cursor_differs"])
    code, report = run("rebuild", **environment)  # behind the cursor, but it is still to be delivered
    assert ({finding["code"] for finding in report["findings"]}, report["pending"]) == ({"cursors_only_live"}, 1)
    swallow(clean_nats_url)
    code, report = run("rebuild", **environment)
    assert code == 1
    assert {finding["code"] for finding in report["findings"]} == {"event_not_applied", "cursors_only_live"}


@pytest.fixture
def clean_nats_url(own_nats: NatsServer) -> str:
    """An empty server without authorization."""
    return own_nats.start().url


def test_the_text_names_each_finding(own_postgres: LocalPostgres, clean_nats_url: str, tmp_path: Path) -> None:
    admin_url = own_postgres.server.at("others")
    prepare(admin_url, clean_nats_url)
    execute(admin_url, "INSERT INTO cursors VALUES ('EVT', 7, 1, 0)")
    environment = {
        "HATCHERY_DIR": str(tmp_path / "none"),
        "HATCHERY_ROOT_KEY": ROOT_KEY.hex(),
        "HATCHERY_ADMIN_DATABASE_URL": admin_url,
    }
    result = CliRunner().invoke(app, ["verify"], env=environment)
    assert result.exit_code == 1
    assert "error[cursor_differs]" in result.output
    assert "NOT sound" in result.output


@pytest.mark.parametrize(("is_terminal", "said"), [(True, "check 2 of 9\n"), (False, "")])
def test_what_takes_long_is_told_where_a_person_looks_on(
    capsys: pytest.CaptureFixture[str], is_terminal: bool, said: str
) -> None:
    async def work() -> None:
        async with telling(is_terminal=is_terminal, every_s=0.02) as progress:
            progress("check 1 of 9")
            progress("check 2 of 9")
            await asyncio.sleep(0.1)
            progress("check 3 of 9")

    asyncio.run(work())
    assert capsys.readouterr().err == said
