"""SIGKILL of the control plane at named points: the next life ends with exactly one machine, then with nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hatchery_common.clock import SystemClock
from hatchery_common.database import Database, outbox
from hatchery_common.testing.postgres import PostgresServer, fresh_database
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import Range, identity
from hatchery_provisioner.main import service
from process_rig import ProcessRig, machine_ports

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]
LIFE = Path(__file__).with_name("provisioner_life.py")
STARTING = [
    "provisioner.after_intent_commit",
    "provisioner.before_ack",
    "provisioner.after_driver_create",
    "provisioner.after_driver_start",
    "provisioner.before_probe_answer",
    *(f"provisioner.{moment}_commit:{count}" for moment in ("before", "after") for count in (2, 4, 8, 11)),
]
ENDING = [
    "provisioner.after_stop_effect",
    "provisioner.mid_delete",
    "provisioner.after_delete_storage",
    *(f"provisioner.{moment}_commit:{count}" for moment in ("before", "after") for count in (3, 5, 9)),
]


class Stage:
    """A database and a directory for the lives of one test."""

    def __init__(self, database: Database, rig: ProcessRig, ports: Range) -> None:
        self.database, self.rig, self.ports = database, rig, ports

    async def life(self, wishes: list[str], until: str, failpoint: str = "") -> int:
        given = {
            "url": self.database.url,
            "root": str(self.rig.root),
            "ports": [self.ports.first, self.ports.count],
            "wishes": wishes,
            "until": until,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(LIFE), json.dumps(given), env={**os.environ, "HATCHERY_FAILPOINTS": failpoint}
        )
        async with asyncio.timeout(40):
            return await process.wait()

    def controllers(self) -> int:
        return len(list(identity.controllers(self.rig.places.machines)))

    async def operations(self) -> list[str]:
        query = sa.select(outbox.c.subject, outbox.c.payload).where(outbox.c.subject.like("evt.%.operation_%"))
        async with self.database.connect() as connection:
            rows = (await connection.execute(query.order_by(outbox.c.id))).all()
        return [f"{json.loads(row[1])['operation_id']} {row[0].split('.')[3]}" for row in rows]

    async def machines(self) -> int:
        async with self.database.connect() as connection:
            return int(await connection.scalar(sa.text("SELECT count(*) FROM machines")) or 0)


@pytest.fixture
def ports() -> Generator[Range]:
    with machine_ports(10) as ports:
        yield ports


@pytest.fixture
async def stage(postgres: PostgresServer, ports: Range) -> AsyncGenerator[Stage]:
    async with fresh_database(postgres, service) as databases:
        database = databases["provisioner"]
        rig = ProcessRig(leases=PostgresLeases(database, SystemClock(), ports, None))
        try:
            yield Stage(database, rig, ports)
        finally:
            await rig.close()


@pytest.mark.parametrize("failpoint", STARTING)
async def test_killed_while_starting(stage: Stage, failpoint: str) -> None:
    assert await stage.life(["provision"], "ready", failpoint) == -signal.SIGKILL
    assert await stage.life(["provision"], "ready") == 0
    assert (stage.controllers(), await stage.machines()) == (1, 1)
    assert await stage.operations() == ["op_1 operation_finished"]


@pytest.mark.parametrize("failpoint", ENDING)
async def test_killed_while_deleting(stage: Stage, failpoint: str) -> None:
    assert await stage.life(["provision"], "ready") == 0
    assert await stage.life(["provision", "delete"], "deleted", failpoint) == -signal.SIGKILL
    assert await stage.life(["provision", "delete"], "deleted") == 0
    assert stage.controllers() == 0
    assert not list((stage.rig.places.machines).iterdir())
    assert await stage.operations() == ["op_1 operation_finished", "op_2 operation_finished"]
