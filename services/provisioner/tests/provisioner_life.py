"""One process life of a provisioner on Postgres with real machines: `python provisioner_life.py <JSON>`.

Commands are delivered as the bus would: all of them, every time, under the same ids. Ends when the status is reached; dies at
the failpoint that HATCHERY_FAILPOINTS names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import sqlalchemy as sa
from hatchery_common.clock import SystemClock
from hatchery_common.contracts.gateways import ProbeRequest, ProbeResponse, ProbeStage
from hatchery_common.contracts.instances import COMMANDS
from hatchery_common.database import Database
from hatchery_common.failpoints import reach
from hatchery_common.log import get_logger
from hatchery_common.owner import Ownership
from hatchery_provisioner.adapters.leases import PostgresLeases
from hatchery_provisioner.adapters.process import Range
from hatchery_provisioner.adapters.sql import PostgresStore
from hatchery_provisioner.domain.limits import Limits
from hatchery_provisioner.handlers import accept_wish
from hatchery_provisioner.main import service
from hatchery_provisioner.reconciler import Reconciler, Tools
from process_rig import ProcessRig, TestSecrets
from provisioner_fakes import TENANT, delivered


class Yes:
    """A data plane that agrees; the controller has said ready before it is asked."""

    async def probe(self, request: ProbeRequest) -> ProbeResponse:
        reach("provisioner.before_probe_answer")
        return ProbeResponse(ok=True, stage=ProbeStage.DONE)


async def live(given: dict[str, Any]) -> None:
    """One life."""
    database = Database(str(given["url"]), "provisioner", produces=frozenset(service.produces))
    leases = PostgresLeases(database, SystemClock(), Range(*given["ports"]), None)
    rig = ProcessRig(leases=leases, root=Path(str(given["root"])))
    store, limits = PostgresStore(database), Limits(drain_s=0.01, stop_grace_s=5, backoff_first_s=0.1)
    tools = Tools(
        store, rig.driver, rig.controllers, Yes(), TestSecrets(), SystemClock(), limits, get_logger("provisioner")
    )
    reconciler = Reconciler(tools)
    async with database.unit_of_work() as work:
        raised = (
            "INSERT INTO owner (one, epoch) VALUES (true, 1) ON CONFLICT (one) DO UPDATE SET epoch = owner.epoch + 1"
        )
        epoch = await work.connection.scalar(sa.text(raised + " RETURNING epoch"))
    task = asyncio.create_task(reconciler.run(Ownership(int(epoch))))
    kinds = {kind.verb: kind for kind in COMMANDS}
    for number, verb in enumerate(given["wishes"], 1):
        command = kinds[verb](tenant=TENANT, instance_id="ins_1", operation_id=f"op_{number}", generation=number)
        delivery = delivered(command, id=f"cmd_{number}")
        await accept_wish(
            delivery, store=store, clock=SystemClock(), limits=limits, driver="process", poke=reconciler.poke
        )
    async with asyncio.timeout(30):
        while True:
            row = await store.get("ins_1")
            if row is not None and row.status.value == given["until"] and row.operation is None:
                break
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait({task})
    await rig.controllers.close()
    await database.close()


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
